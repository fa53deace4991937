"""The rules of the pipeline: overload, rejected messages, silence, workers and a detector that stopped. The alerts are the operator's. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from infra.clickhouse.alerts import NOBODY, Alert
from infra.clock import HOUR_MS, MINUTE_MS, iso
from query.notify.changes import Condition, RuleFindings

OVERLOAD, DEAD_LETTERS, SILENCE, WORKER_STOPPED = "overload", "dead-letters", "silence", "worker-stopped"
DETECTOR_STOPPED = "detector-stopped"
OVERLOADED_FOR_MS = MINUTE_MS
# Over how long the share of rejected messages is taken, and how many of them say nothing.
_WINDOW_MS, _FEWEST_REJECTED = 5 * MINUTE_MS, 10
# A silence is worth an alert where so many events would usually have come in it.
_FEWEST_MISSED = 30


@dataclass(frozen=True)
class PipelineFacts:
    """What is known of the pipeline now; None for what is not. `arrived`: how many messages other than canaries have come.
    `messages`, `rejected`: of the last minutes. The `…_since_ms` say from when on a value has been seen unchanged."""

    level: str | None = None
    level_since_ms: int = 0
    arrived: int | None = None
    arrived_since_ms: int = 0
    messages: int | None = None
    rejected: int | None = None
    stopped: Mapping[str, str] | None = None
    stopped_detector: str | None = None
    """Why the detector has stopped; empty where it works."""


@dataclass(frozen=True)
class _WorkerCounts:
    """What an ingest worker has done since it started; `started_ms` 0: it does not say when that was."""

    started_ms: int
    messages: int
    rejected: int


@dataclass
class PipelineWatch:
    """What was seen of the pipeline so far. Knows no clock."""

    _is_normal: bool | None = None
    _level_since_ms: int = 0
    _arrived: int = -1
    _arrived_since_ms: int = 0
    _samples: deque[tuple[int, dict[str, _WorkerCounts]]] = field(default_factory=deque)

    def observe(self, status: Mapping[str, Any], now_ms: int) -> PipelineFacts:
        """The facts of a status, as `query.status.read_status` has it."""
        level = None if status["level"] == "unknown" else str(status["level"])
        if level is not None and (level == "normal") != self._is_normal:
            self._is_normal, self._level_since_ms = level == "normal", now_ms
        arrived = status["arrived_events"]
        if arrived is not None and arrived != self._arrived:
            self._arrived, self._arrived_since_ms = arrived, now_ms
        is_redis_away = "redis" in status["problems"] and not status["ingest_workers"]
        messages, rejected = (None, None) if is_redis_away else self._count(status["ingest_workers"], now_ms)
        stopped = None if is_redis_away else status["stopped_workers"] | status.get("poisoned", {})
        detector = None if is_redis_away else str(status["stopped_detector"])
        return PipelineFacts(
            level, self._level_since_ms, arrived, self._arrived_since_ms, messages, rejected, stopped, detector
        )  # fmt: skip

    def _count(self, workers: Sequence[Mapping[str, Any]], now_ms: int) -> tuple[int | None, int | None]:
        """Messages and rejected ones over the window; None while less than a minute of it is known."""
        counts = {
            str(w["worker"]): _WorkerCounts(
                w.get("started_ms", 0), w["counts"]["messages"] - w["counts"].get("canary", 0), w["counts"]["rejected"]
            )
            for w in workers
            if "counts" in w
        }
        self._samples.append((now_ms, counts))
        while len(self._samples) > 2 and self._samples[1][0] <= now_ms - _WINDOW_MS:
            self._samples.popleft()
        first_ms = self._samples[0][0]
        if now_ms - first_ms < MINUTE_MS:
            return None, None
        growth = [self._growth(worker, last) for worker, last in counts.items()]
        return sum(messages for messages, _ in growth), sum(rejected for _, rejected in growth)

    def _growth(self, worker: str, last: _WorkerCounts) -> tuple[int, int]:
        """By how much the counts of a worker have grown within the samples. One that started within them counts from 0. Of one that
        ran before, but whose reports the first samples lack, only what later ones show counts."""
        at_ms, first = next((at_ms, counts[worker]) for at_ms, counts in self._samples if worker in counts)
        since_ms = self._samples[0][0]
        is_new = at_ms > since_ms and last.started_ms > since_ms
        if is_new or last.started_ms != first.started_ms or last.messages < first.messages:
            return last.messages, last.rejected
        return last.messages - first.messages, last.rejected - first.rejected


def judge_overload(facts: PipelineFacts, open_alerts: Sequence[Alert], now_ms: int) -> RuleFindings:
    """The overload level is not normal for more than a minute; critical where events are shed."""
    if facts.level is None:
        return RuleFindings((OVERLOAD,), is_complete=False)
    if facts.level == "normal" or (not open_alerts and now_ms - facts.level_since_ms <= OVERLOADED_FOR_MS):
        return RuleFindings((OVERLOAD,))
    severity = "warning" if facts.level == "elevated" else "critical"
    summary = f"the overload level is {facts.level}: ingest is behind"
    return RuleFindings(
        (OVERLOAD,), (_lasting(OVERLOAD, open_alerts, facts.level_since_ms, severity, summary, {"level": facts.level}),)
    )


def judge_dead_letters(
    facts: PipelineFacts, open_alerts: Sequence[Alert], most_share: float, now_ms: int
) -> RuleFindings:
    """Of the messages of the last minutes a larger share than this was rejected."""
    if facts.messages is None or facts.rejected is None:
        return RuleFindings((DEAD_LETTERS,), is_complete=False)
    if facts.rejected < _FEWEST_REJECTED or facts.rejected <= most_share * facts.messages:
        return RuleFindings((DEAD_LETTERS,))
    summary = f"{facts.rejected:,} of the last {facts.messages:,} messages were rejected; see adclick dead-letters list"
    detail = {"messages": facts.messages, "rejected": facts.rejected}
    return RuleFindings((DEAD_LETTERS,), (_lasting(DEAD_LETTERS, open_alerts, now_ms, "warning", summary, detail),))


def is_silent(facts: PipelineFacts, for_ms: int, now_ms: int) -> bool:
    """Whether no message, other than canaries, has come for so long."""
    return facts.arrived is not None and now_ms - facts.arrived_since_ms >= for_ms


def judge_silence(
    facts: PipelineFacts, open_alerts: Sequence[Alert], for_ms: int, usual_per_hour: float, now_ms: int
) -> RuleFindings:
    """No event has come for so long, at a time at which there usually are some. One alert, whatever else is missing because of it."""
    if facts.arrived is None:
        return RuleFindings((SILENCE,), is_complete=False)
    if any(alert.detail.get("arrived") == facts.arrived for alert in open_alerts):
        since_ms = open_alerts[0].opened_ms
    elif is_silent(facts, for_ms, now_ms) and usual_per_hour * for_ms / HOUR_MS >= _FEWEST_MISSED:
        since_ms = facts.arrived_since_ms
    else:
        return RuleFindings((SILENCE,))
    summary = (
        f"no event has come since {iso(since_ms // 1000 * 1000)}; {usual_per_hour:,.0f} an hour are usual at this time"
    )
    detail = {"arrived": facts.arrived, "usual_per_hour": round(usual_per_hour)}
    return RuleFindings((SILENCE,), (_lasting(SILENCE, open_alerts, since_ms, "critical", summary, detail),))


def judge_workers(facts: PipelineFacts, open_alerts: Sequence[Alert], now_ms: int) -> RuleFindings:
    """A worker has stopped with an error."""
    if facts.stopped is None:
        return RuleFindings((WORKER_STOPPED,), is_complete=False)
    conditions = []
    for worker, error in sorted(facts.stopped.items()):
        of_worker = [alert for alert in open_alerts if alert.detail.get("worker") == worker]
        detail = {"worker": worker, "error": error}
        summary = f"{worker} stopped: {error}"
        conditions.append(_lasting(WORKER_STOPPED, of_worker, now_ms, "critical", summary, detail, worker))
    return RuleFindings((WORKER_STOPPED,), tuple(conditions))


def judge_detector(facts: PipelineFacts, open_alerts: Sequence[Alert], now_ms: int) -> RuleFindings:
    """The detector has stopped with an error: nothing is said of campaigns, and all of them are counted."""
    if facts.stopped_detector is None:
        return RuleFindings((DETECTOR_STOPPED,), is_complete=False)
    conditions = []
    if error := facts.stopped_detector:
        summary = f"the detector stopped, and raises no alerts: {error}"
        conditions.append(_lasting(DETECTOR_STOPPED, open_alerts, now_ms, "critical", summary, {"error": error}))
    return RuleFindings((DETECTOR_STOPPED,), tuple(conditions))


def _lasting(
    kind: str, open_alerts: Sequence[Alert], since_ms: int, severity: str, summary: str, detail: dict[str, Any], subject: str = ""
) -> Condition:  # fmt: skip
    """A condition that is the same for as long as its alert is open, also to a worker that has not seen it begin."""
    opened_ms = open_alerts[0].opened_ms if open_alerts else since_ms
    occasion = f"{subject}/{opened_ms}" if subject else f"{opened_ms}"
    return Condition(kind, occasion, severity, opened_ms, summary, detail, NOBODY, NOBODY)
