"""From what rules find to versions of alerts: only what has changed is written, so the same facts twice write nothing. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from infra.clickhouse.alerts import NOBODY, SEVERITIES, Alert, alert_id

OPEN, CLOSED = "open", "closed"


@dataclass(frozen=True)
class Condition:
    """Something that holds now, and for which an alert is to be open. `occasion`: the same for as long as it is the same alert."""

    kind: str
    occasion: str
    severity: str
    opened_ms: int
    summary: str
    detail: dict[str, Any] = field(default_factory=dict)
    advertiser_id: int = NOBODY
    campaign_id: int = NOBODY

    @property
    def id(self) -> str:
        """Of its alert."""
        return alert_id(self.kind, self.advertiser_id, self.campaign_id, self.occasion)


@dataclass(frozen=True)
class RuleFindings:
    """What a rule finds of some kinds of alerts. `is_complete`: whether what is not among the conditions no longer holds; False where
    facts are missing. `undecided`: ids of alerts of which that is not known."""

    kinds: tuple[str, ...]
    conditions: tuple[Condition, ...] = ()
    is_complete: bool = True
    undecided: frozenset[str] = frozenset()


def find_changes(current: Mapping[str, Alert], all_findings: Iterable[RuleFindings], now_ms: int) -> list[Alert]:
    """The versions to be written. `current`: the newest version of each alert, by id: of all that are open, and of those that the
    conditions are about."""
    conditions = dict[str, Condition]()
    judged, undecided = set[str](), set[str]()
    for findings in all_findings:
        for condition in findings.conditions:
            former = conditions.get(condition.id)
            if former is None or is_worse(condition.severity, former.severity):
                conditions[condition.id] = condition
        undecided |= findings.undecided
        if findings.is_complete:
            judged |= {*findings.kinds}
    changes = [
        change for id_, condition in conditions.items() if (change := _opened(current.get(id_), condition)) is not None
    ]
    ended = (
        alert for id_, alert in current.items()
        if alert.state == OPEN and alert.kind in judged and id_ not in conditions and id_ not in undecided
    )  # fmt: skip
    return changes + [
        replace(alert, version=alert.version + 1, state=CLOSED, ended_ms=max(alert.opened_ms, now_ms))
        for alert in ended
    ]


def _opened(current: Alert | None, condition: Condition) -> Alert | None:
    """The version that says that a condition holds; None where the current one does."""
    if current is not None and current.state == OPEN and not is_worse(condition.severity, current.severity):
        return None
    is_open = current is not None and current.state == OPEN
    return Alert(
        condition.id, 1 if current is None else current.version + 1, condition.kind, condition.severity, OPEN,
        condition.advertiser_id, condition.campaign_id,
        current.opened_ms if is_open and current is not None else condition.opened_ms, 0, condition.summary, condition.detail,
    )  # fmt: skip


def is_worse(severity: str, than: str) -> bool:
    """Whether a severity is above another one."""
    return SEVERITIES.index(severity) > SEVERITIES.index(than)
