"""What `adclick doctor` finds wrong, for tests."""

from __future__ import annotations

import time
from collections.abc import Callable

from infra.doctor import Examination
from infra.settings import Settings


def problems(settings: Settings, process: str = "", clock: Callable[[], float] = time.time) -> dict[str, list[str]]:
    """Backend → what is wrong with it, a line each."""
    lines = dict[str, list[str]]()
    for outcome in Examination(settings, process, clock).outcomes():
        if outcome.problem:
            lines.setdefault(outcome.backend, []).append(outcome.problem)
    return lines
