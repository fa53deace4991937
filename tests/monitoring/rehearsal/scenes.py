"""What a scene of a rehearsal is: alerts that are caused together, how, where the runbook looks, and what it does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tests.monitoring.rehearsal.prometheus import AlertKey
from tests.monitoring.rehearsal.stack import RehearsedStack

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True)
class Expected:
    """An alert of a scene. `step`: the runbook's, as it is done here. `look`: a place that the runbook names (`RehearsedStack.look`);
    `shows`: a regular expression that is found there while the alert fires."""

    alert: str
    severity: Severity
    how: str
    step: str
    look: str
    shows: str

    @property
    def key(self) -> AlertKey:
        """As the monitor has it."""
        return self.alert, self.severity


@dataclass(frozen=True)
class Scene:
    """Alerts that have one cause. `repair` does what the runbook says."""

    name: str
    expected: tuple[Expected, ...]
    cause: Callable[[RehearsedStack], None]
    repair: Callable[[RehearsedStack], None]
