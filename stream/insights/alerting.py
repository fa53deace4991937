"""From unusual minutes to alerts: what opens, worsens, closes and is withdrawn. Pure: it lives in event time alone.

An alert is an episode of a campaign and kind. It opens with its first minute that is unusual enough, and closes when there was none for a
while. Late events may open one, too; where they take away all that was unusual, it is withdrawn. What is said of one is a series of versions; see
`infra.clickhouse.alerts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from infra.clickhouse.alerts import NOBODY, SEVERITIES, Alert, alert_id
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.settings import Settings
from infra.structs import decodable
from stream.insights import rules
from stream.insights.rules import Finding
from stream.insights.watch import Key

ALL_SILENT = "all-silent"
"""The kind of the one alert for the operator in place of many of silent campaigns."""
# So many campaigns, and such a share of those that expect impressions, are silent at once: then it is not theirs.
_SILENT_CAMPAIGNS, _SILENT_SHARE = 20, 0.5
# Minutes without anything unusual after which an episode is over, and for how long late events may still correct its minutes.
_QUIET_MS, _CORRECTABLE_MS = 5 * MINUTE_MS, HOUR_MS + 10 * MINUTE_MS
# So many minutes in a row that are unusual in the same way count as a critical one. Deviations are of two minutes at least: a single
# one in which a small campaign was lucky can make two of them a spike, and only the third one says more.
_MINUTES_IN_A_ROW = {"ctr-drop": 2, "spend-spike": 3, "zero-impressions": 2, "surge-ctr-collapse": 2}
_BUCKETS = {MINUTE_MS: "a minute", HOUR_MS: "an hour"}
_VERBS = {
    "ctr-drop": "its click rate fell to {value}, where {expected} is usual",
    "spend-spike": "it spent {value} in {bucket}, where {expected} is usual",
    "zero-impressions": "it had no impressions in {bucket}, where {expected} are usual",
    "surge-ctr-collapse": "it had {value} impressions in {bucket}, where {expected} are usual, and hardly any clicks",
}


@dataclass(frozen=True)
class AlertPolicy:
    """Of what alerts are made. `severity`: how severe a minute must be to open one; two in a row that are
    unusual in the same way count as a critical one, three of a spend spike. `cooldown_ms`: how long after an alert the next one of
    its campaign and kind opens at the earliest. `daily_cap`: alerts of a campaign on a day of UTC at most."""

    severity: str = "critical"
    cooldown_ms: int = 30 * MINUTE_MS
    daily_cap: int = 20
    currency: str = "USD"

    @classmethod
    def of(cls, settings: Settings) -> AlertPolicy:
        """That of an installation."""
        return cls(settings.alert_severity, settings.alert_cooldown_s * 1000, settings.alerts_a_day, settings.currency)

    def is_severe(self, finding: Finding) -> bool:
        """Whether a minute is unusual enough by itself."""
        return SEVERITIES.index(finding.severity) >= SEVERITIES.index(self.severity)


@decodable
class RunningAlert(msgspec.Struct):
    """An alert as it is told so far: by its newest version, and the unusual minutes that can still be corrected."""

    kind: str
    campaign: int
    advertiser: int
    opened_ms: int
    last_ms: int
    """The start of its last unusual minute."""
    version: int
    severity: str
    worst: Finding
    minutes: dict[int, Finding]
    firm: int = 0
    """How many unusual minutes can no longer be corrected."""
    closed: bool = False


@decodable
class State(msgspec.Struct):
    """All that is remembered between minutes."""

    episodes: list[RunningAlert] = []
    opened_on: dict[int, dict[str, int]] = {}
    """Day (epoch ms) → campaign and advertiser, as CAMPAIGN/ADVERTISER → how many alerts have opened."""
    silent: RunningAlert | None = None
    newest_ms: int = 0
    """The start of the minute that was taken last."""
    newest: dict[str, int] = {}
    """Campaign, advertiser and kind of all that was unusual in it, as CAMPAIGN/ADVERTISER/KIND → for how many minutes in a row."""


class Alerting:
    """The alerts of campaigns."""

    def __init__(
        self, policy: AlertPolicy, state: bytes = b"", *, bucket_ms: int = MINUTE_MS, all_campaigns: bool = False
    ) -> None:
        """Raises ValueError for a `state` that is not what `encode` gave, to be gone on with. `bucket_ms`: the length of what is called a
        minute here. `all_campaigns`: whether these are all that there are, of which something may be said together."""
        self.policy, self._bucket_ms, self._all_campaigns = policy, bucket_ms, all_campaigns
        self._quiet_ms = max(_QUIET_MS, bucket_ms)
        try:
            self._state = msgspec.json.decode(state, type=State) if state else State()
        except msgspec.MsgspecError as error:
            raise ValueError(f"not the state of alerting: {error}") from error
        self._episodes: dict[Key, list[RunningAlert]] = {}
        for episode in self._state.episodes:
            self._episodes.setdefault((episode.campaign, episode.advertiser), []).append(episode)

    def by_id(self) -> dict[str, RunningAlert]:
        """The alerts that are remembered."""
        episodes = [e for episodes in self._episodes.values() for e in episodes]
        silent = [self._state.silent] if self._state.silent else []
        return {self._id_of(e): e for e in (*episodes, *silent)}

    def open_version(self, episode: RunningAlert) -> Alert:
        """How an open alert stands, as its newest version."""
        return self._version_of(episode, "open", 0)

    def encode(self) -> bytes:
        """All that is remembered."""
        self._state.episodes = [e for episodes in self._episodes.values() for e in episodes]
        return msgspec.json.encode(self._state)

    def take(self, at_ms: int, findings: Iterable[tuple[Key, Finding]], expecting: int) -> Iterator[Alert]:
        """The unusual minutes that begin at `at_ms`; `expecting`: how many campaigns were to have impressions then."""
        severe = list(self._severe(at_ms, findings))
        silent = [key for key, finding in severe if finding.kind == "zero-impressions"]
        if self._all_campaigns and len(silent) >= max(_SILENT_CAMPAIGNS, _SILENT_SHARE * expecting):
            yield from self._open_silence(at_ms)
        # While all are silent, nothing is said of each.
        hushed = self._state.silent is not None and self._state.silent.last_ms == at_ms
        for key, finding in severe:
            if not (hushed and finding.kind == "zero-impressions"):
                yield from self._add(key, at_ms, finding)
        yield from self._close(at_ms)
        self._forget(at_ms)

    def _severe(self, at_ms: int, findings: Iterable[tuple[Key, Finding]]) -> Iterator[tuple[Key, Finding]]:
        before = self._state.newest if self._state.newest_ms == at_ms - self._bucket_ms else {}
        self._state.newest_ms, self._state.newest = at_ms, {}
        for (campaign, advertiser), finding in findings:
            place = f"{campaign}/{advertiser}/{finding.kind}"
            count = self._state.newest[place] = before.get(place, 0) + 1
            if self.policy.is_severe(finding) or count >= _MINUTES_IN_A_ROW[finding.kind]:
                yield (campaign, advertiser), finding

    def _open_silence(self, at_ms: int) -> Iterator[Alert]:
        silent = self._state.silent
        if silent is not None:
            silent.last_ms = at_ms
            return
        finding = Finding("zero-impressions", "impressions", 0.0, 0.0, 0.0)
        self._state.silent = RunningAlert(ALL_SILENT, NOBODY, NOBODY, at_ms, at_ms, 1, "critical", finding, {})
        yield self._version_of(self._state.silent, "open", 0)

    def _add(self, key: Key, at_ms: int, finding: Finding) -> Iterator[Alert]:
        running = next((e for e in self._of(key, finding.kind) if not e.closed), None)
        if running is None:
            yield from self._open(key, at_ms, finding)
            return
        running.last_ms = at_ms
        running.minutes[at_ms] = finding
        if abs(finding.deviations) > abs(running.worst.deviations):
            running.worst = finding
        if SEVERITIES.index(finding.severity) > SEVERITIES.index(running.severity):
            running.severity = finding.severity
            yield self._next_version(running, "open", 0)

    def _open(self, key: Key, at_ms: int, finding: Finding) -> Iterator[Alert]:
        campaign, advertiser = key
        opened = self._state.opened_on.setdefault(at_ms // DAY_MS * DAY_MS, {})
        name = f"{campaign}/{advertiser}"
        wait_ms = self.policy.cooldown_ms
        cools_down = any(
            e.opened_ms - wait_ms < at_ms < e.last_ms + self._bucket_ms + wait_ms for e in self._of(key, finding.kind)
        )
        if cools_down or opened.get(name, 0) >= self.policy.daily_cap:
            return
        opened[name] = opened.get(name, 0) + 1
        episode = RunningAlert(
            finding.kind, campaign, advertiser, at_ms, at_ms, 1, finding.severity, finding, {at_ms: finding}
        )
        self._episodes.setdefault(key, []).append(episode)
        yield self._version_of(episode, "open", 0)

    def _close(self, at_ms: int) -> Iterator[Alert]:
        silent = self._state.silent
        if silent is not None and at_ms >= silent.last_ms + self._quiet_ms:
            self._state.silent = None
            yield self._next_version(silent, "closed", silent.last_ms + self._bucket_ms)
        for episode in [e for episodes in self._episodes.values() for e in episodes]:
            if not episode.closed and at_ms >= episode.last_ms + self._quiet_ms:
                episode.closed = True
                yield self._next_version(episode, "closed", episode.last_ms + self._bucket_ms)

    def _forget(self, at_ms: int) -> None:
        """Drop what nothing can change any more."""
        keep_ms = max(_CORRECTABLE_MS, self.policy.cooldown_ms)
        for key, episodes in list(self._episodes.items()):
            kept = [e for e in episodes if not e.closed or at_ms < e.last_ms + keep_ms]
            for episode in kept:
                for minute in [minute for minute in episode.minutes if at_ms >= minute + _CORRECTABLE_MS]:
                    del episode.minutes[minute]
                    episode.firm += 1
            self._episodes[key] = kept
            if not kept:
                del self._episodes[key]
        days = self._state.opened_on
        for day in [day for day in days if at_ms >= day + 2 * DAY_MS]:
            del days[day]

    def correct(self, at_ms: int, key: Key, impressions: float, clicks: float, spend: float) -> Iterator[Alert]:
        """A closed minute has other numbers now. An alert of which no unusual minute is left is withdrawn."""
        for episode in self._of(key, None):
            finding = episode.minutes.get(at_ms)
            if finding is None:
                continue
            changed = rules.still_unusual(finding, impressions, clicks, spend)
            if changed is not None:
                episode.minutes[at_ms] = changed
                continue
            del episode.minutes[at_ms]
            if not episode.minutes and not episode.firm:
                self._episodes[key].remove(episode)
                yield self._next_version(episode, "withdrawn", episode.last_ms + self._bucket_ms)

    def add_late(self, at_ms: int, key: Key, finding: Finding) -> Iterator[Alert]:
        """A minute that was closed before has become unusual by late events. It opens an alert unless there is another one nearby, which is
        then of more minutes."""
        # Late events bring no silence.
        if finding.kind == "zero-impressions" or not self.policy.is_severe(finding):
            return
        around = [e for e in self._of(key, finding.kind) if e.opened_ms <= at_ms <= e.last_ms]
        for episode in around:
            episode.minutes.setdefault(at_ms, finding)
        if not around:
            yield from self._open(key, at_ms, finding)

    def _of(self, key: Key, kind: str | None) -> list[RunningAlert]:
        return [e for e in self._episodes.get(key, []) if kind in (e.kind, None)]

    def has(self, key: Key) -> bool:
        """Whether anything of a campaign may be corrected."""
        return key in self._episodes

    def _next_version(self, episode: RunningAlert, state: str, ended_ms: int) -> Alert:
        episode.version += 1
        return self._version_of(episode, state, ended_ms)

    def _version_of(self, episode: RunningAlert, state: str, ended_ms: int) -> Alert:
        worst = episode.worst
        if episode.kind == ALL_SILENT:
            summary, detail = "All campaigns have had no impressions at once", dict[str, Any]()
        else:
            bucket = _BUCKETS.get(self._bucket_ms, "a bucket")
            sentence = _VERBS[episode.kind].format(
                value=self._written(worst, worst.value), expected=self._written(worst, worst.expected), bucket=bucket
            )
            summary = f"Campaign {episode.campaign}: {sentence}"
            detail = {
                "measure": worst.measure, "value": _rounded(worst.value), "expected": _rounded(worst.expected),
                "deviations": round(worst.deviations, 2),
            }  # fmt: skip
        return Alert(
            self._id_of(episode), episode.version, episode.kind, episode.severity, state, episode.advertiser, episode.campaign,
            episode.opened_ms, ended_ms, summary, detail,
        )  # fmt: skip

    def _written(self, finding: Finding, value: float) -> str:
        if finding.measure == "spend_micros":
            return f"{self.policy.currency} {value / 1e6:,.2f}"
        return f"{_rounded(value):,}"

    def _id_of(self, episode: RunningAlert) -> str:
        return alert_id(episode.kind, episode.advertiser, episode.campaign, episode.opened_ms)


def _rounded(value: float) -> float | int:
    return round(value) if abs(value) >= 100 else round(value, 4)
