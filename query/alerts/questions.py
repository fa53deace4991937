"""Questions about alerts: which are listed, or followed by a stream. Pure; `now_ms` comes in."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from infra.clickhouse.alerts import SEVERITIES, STATES
from query.alerts.records import AlertVersion
from query.alerts.scope import AlertScope
from query.bad_question import BadQuestion
from query.cursor import read_page
from query.parameters import collect_parameters, parse_campaigns, parse_id
from query.signing import Signer
from query.times import parse_time

FILTERS = ("kind", "severity", "state", "campaign_id", "advertiser_id", "muted")
"""The parameters that lists and streams have in common."""
LIST_PARAMETERS = (*FILTERS, "since", "limit", "cursor")
MOST_LISTED, USUALLY_LISTED = 1_000, 100
KIND_PATTERN = "[a-z0-9][a-z0-9-]{0,63}"
CURSOR_KIND = "alerts"


@dataclass(frozen=True)
class AlertFilter:
    """Which alerts. `kind` and `state` empty: any. `campaigns` empty: all. `muted`: also those that are muted."""

    scope: AlertScope
    kind: str = ""
    severities: tuple[str, ...] = SEVERITIES
    state: str = ""
    campaigns: tuple[int, ...] = ()
    advertiser: int | None = None
    muted: bool = False

    @property
    def parts(self) -> list[Any]:
        """The same list for equal filters, for digests."""
        return [
            self.scope.parts, self.kind, self.severities, self.state, self.campaigns, self.advertiser, self.muted,
        ]  # fmt: skip

    def accepts(self, alert: AlertVersion) -> bool:
        """Whether a version of an alert is one of these, muted or not."""
        return (
            self.scope.sees(alert.advertiser_id, alert.campaign_id)
            and self.kind in ("", alert.kind)
            and alert.severity in self.severities
            and self.state in ("", alert.state)
            and (not self.campaigns or alert.campaign_id in self.campaigns)
            and self.advertiser in (None, alert.advertiser_id)
        )

    def fixed_conditions(self) -> tuple[list[str], dict[str, Any]]:
        """SQL conditions on what is the same in all versions of an alert, and their parameters."""
        conditions, parameters = self.scope.conditions()
        if self.kind:
            conditions.append("kind = {kind:String}")
            parameters["kind"] = self.kind
        if self.advertiser is not None:
            conditions.append("advertiser_id = {advertiser:UInt64}")
            parameters["advertiser"] = self.advertiser
        if self.campaigns:
            conditions.append("campaign_id IN {campaigns:Array(UInt64)}")
            parameters["campaigns"] = list(self.campaigns)
        return conditions, parameters


@dataclass(frozen=True)
class AlertsQuestion:
    """A page of alerts, the newest first. `as_of_ms`: what was written later is not in it; None on the first page. `after`: when the last
    alert of the page before had opened, and its id."""

    filter: AlertFilter
    since_ms: int | None
    limit: int
    digest: str
    as_of_ms: int | None = None
    after: tuple[int, str] | None = None


def parse_alerts_question(
    parameters: Sequence[tuple[str, str]], now_ms: int, scope: AlertScope, signer: Signer
) -> AlertsQuestion:
    """Raises BadQuestion."""
    values, _ = collect_parameters(parameters, LIST_PARAMETERS)
    filter_ = _parse_filter(values, scope)
    since_ms = parse_time("since", values, now_ms) if "since" in values else None
    # As it was written: a page later, -7d is another moment, and the cursor has the one of the first page.
    parts = [filter_.parts, values.get("since")]
    digest = hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).hexdigest()[:24]
    question = AlertsQuestion(filter_, since_ms, _parse_limit(values), digest)
    if "cursor" not in values:
        return question
    payload = read_page(values["cursor"], CURSOR_KIND, signer, digest)
    opened_ms, id_ = payload["k"]
    return replace(question, since_ms=payload["s"], as_of_ms=payload["at"], after=(opened_ms, id_))


def parse_alert_filter(parameters: Sequence[tuple[str, str]], scope: AlertScope) -> AlertFilter:
    """The filter of a stream. Raises BadQuestion."""
    values, _ = collect_parameters(parameters, FILTERS)
    return _parse_filter(values, scope)


def parse_kind(text: str) -> str:
    """The kind of an alert; which ones there are, those say that raise them. Raises BadQuestion."""
    if not re.fullmatch(KIND_PATTERN, text, re.ASCII):
        raise BadQuestion("kind", f"kind must be a name like spend-spike, not {text[:40]!r}")
    return text


def _parse_filter(values: Mapping[str, str], scope: AlertScope) -> AlertFilter:
    advertiser = parse_id("advertiser_id", values["advertiser_id"]) if "advertiser_id" in values else None
    campaigns = parse_campaigns(values["campaign_id"]) if "campaign_id" in values else ()
    scope.refuse_foreign(advertiser, campaigns)
    severity = _parse_choice("severity", values, SEVERITIES) or SEVERITIES[0]
    return AlertFilter(
        scope,
        parse_kind(values["kind"]) if "kind" in values else "",
        SEVERITIES[SEVERITIES.index(severity) :],
        _parse_choice("state", values, STATES),
        campaigns,
        advertiser,
        _parse_choice("muted", values, ("false", "true")) == "true",
    )


def _parse_choice(name: str, values: Mapping[str, str], choices: tuple[str, ...]) -> str:
    """One of some words; empty where the parameter is left out. Raises BadQuestion."""
    text = values.get(name)
    if text is not None and text not in choices:
        raise BadQuestion(name, f"{name} must be {' or '.join(choices)}, not {text[:40]!r}")
    return text or ""


def _parse_limit(values: Mapping[str, str]) -> int:
    text = values.get("limit", str(USUALLY_LISTED))
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= MOST_LISTED:
        raise BadQuestion("limit", f"limit must be a number from 1 to {MOST_LISTED}, not {text[:40]!r}")
    return int(text)
