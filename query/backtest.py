"""What a policy of alerts would have sent: the numbers that are retained, through the rules and the alerting of the stream.

By hour, of all that is retained by hour, or by minute of the last hours. The stream judges minutes as they close; here they are as they
are now, with all that came late.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.clickhouse.alerts import SEVERITIES, Alert
from infra.clock import DAY_MS, iso
from query.anomalies import GRAINS, AnomaliesQuestion, ClosedNumbers, parse_anomalies_question, watch_buckets
from query.bad_question import BadQuestion
from query.parameters import collect_parameters
from query.question import Retention
from query.row_scope import RowScope
from stream.insights.alerting import Alerting, AlertPolicy

PARAMETERS = ("campaign_id", "advertiser_id", "granularity", "since", "severity", "cooldown_s", "alerts_a_day")
_MONTH_MS = 30 * DAY_MS
_OWN = {"cooldown_s": (0, DAY_MS // 1000), "alerts_a_day": (1, 10_000)}


@dataclass(frozen=True)
class BacktestQuestion:
    """Whose numbers, since when, and which policy."""

    anomalies: AnomaliesQuestion
    policy: AlertPolicy


def parse_backtest_question(
    parameters: Sequence[tuple[str, str]], now_ms: int, retention: Retention, scope: RowScope, usual: AlertPolicy
) -> BacktestQuestion:
    """`usual`: the policy of the installation, for what is not given. Raises BadQuestion."""
    values, _ = collect_parameters(parameters, PARAMETERS)
    own = {name: values.pop(name) for name in _OWN if name in values}
    severity = values.pop("severity", usual.severity)
    if severity not in SEVERITIES:
        raise BadQuestion("severity", f"severity must be {' or '.join(SEVERITIES)}, not {severity[:40]!r}")
    cooldown_s, alerts = (
        _integer(name, own[name]) if name in own else default
        for name, default in (("cooldown_s", usual.cooldown_ms // 1000), ("alerts_a_day", usual.daily_cap))
    )
    question = parse_anomalies_question(list(values.items()), now_ms, retention, scope)
    return BacktestQuestion(
        question, replace(usual, severity=severity, cooldown_ms=cooldown_s * 1000, daily_cap=alerts)
    )


def backtest(question: BacktestQuestion, closed: ClosedNumbers) -> list[Alert]:
    """The newest version of each alert that would have opened since then, the newest first. Raises BadQuestion for too many numbers."""
    numbers = question.anomalies.numbers
    alerting, newest = Alerting(question.policy, bucket_ms=GRAINS[numbers.grain][0]), dict[str, Alert]()
    for bucket in watch_buckets(numbers, closed):
        for alert in alerting.take(bucket.at_ms, bucket.findings, bucket.watch.expecting):
            newest[alert.id] = alert
    told = [alert for alert in newest.values() if alert.opened_ms >= question.anomalies.from_ms]
    return sorted(told, key=lambda alert: (-alert.opened_ms, alert.campaign_id, alert.kind))


def backtest_document(question: BacktestQuestion, closed: ClosedNumbers, alerts: Sequence[Alert]) -> dict[str, Any]:
    """As it goes over HTTP. `a_campaign_and_month`: how many alerts there were of each campaign in thirty days."""
    numbers, policy = question.anomalies.numbers, question.policy
    from_ms = max(question.anomalies.from_ms, numbers.start_ms)
    campaigns = len(set(closed.table.groups[0].tolist()))
    months = campaigns * max(0, closed.end_ms(numbers) - from_ms) / _MONTH_MS
    return {
        "policy": {
            "severity": policy.severity, "cooldown_s": policy.cooldown_ms // 1000, "alerts_a_day": policy.daily_cap,
            "granularity": numbers.grain, "since": iso(from_ms),
        },
        "alerts": len(alerts),
        "campaigns": campaigns,
        "a_campaign_and_month": round(len(alerts) / months, 3) if months else None,
        "by_kind": dict(sorted(Counter(alert.kind for alert in alerts).items())),
        "data": [
            {
                "campaign_id": a.campaign_id, "kind": a.kind, "severity": a.severity, "opened": iso(a.opened_ms),
                "ended": iso(a.ended_ms) if a.ended_ms else None, "summary": a.summary, "detail": a.detail,
            }
            for a in alerts
        ],
    }  # fmt: skip


def _integer(name: str, text: str) -> int:
    low, high = _OWN[name]
    if not (text.isascii() and text.isdigit() and low <= int(text[:20]) <= high):
        raise BadQuestion(name, f"{name} must be an integer from {low} to {high:,}, not {text[:40]!r}")
    return int(text)
