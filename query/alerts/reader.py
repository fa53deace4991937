"""Reads alerts for a key: pages, one alert with its history, and the versions that a stream has not sent yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.clock import MINUTE_MS
from query.alerts.mutes import ActiveMutes
from query.alerts.positions import OVERLAP_MS, StreamPosition, read_position
from query.alerts.questions import CURSOR_KIND, AlertFilter, AlertsQuestion
from query.alerts.records import AlertVersion, describe_alert, describe_history
from query.alerts.scope import AlertScope
from query.alerts.store import AlertStore
from query.alerts.summary import AlertSummary
from query.reply_cache import ReplyCache
from query.signing import Signer

# Streams share what is read of the last minutes, for this long.
_SHARED_S = 0.5
_RECENT_MS = OVERLAP_MS + 2 * MINUTE_MS
_MOST_RECENT, _MOST_AT_ONCE = 5_000, 1_000


class NoSuchAlert(Exception):
    """There is none of this id, or the key may not see it."""


@dataclass(frozen=True)
class RecentVersions:
    """All versions that were written since `from_ms`, of all alerts, as they could be seen at `as_of_ms`."""

    from_ms: int
    as_of_ms: int
    versions: list[AlertVersion]

    @property
    def bytes(self) -> int:
        """Memory, roughly."""
        return sum(500 + len(version.summary) + len(version.detail) for version in self.versions)


@dataclass(frozen=True)
class StreamStep:
    """What a stream sends next: alerts as documents, and the position behind them."""

    alerts: list[dict[str, Any]]
    position: StreamPosition
    rows_read: int


class AlertReader:
    """Thread-safe. Every method may raise Unavailable."""

    def __init__(self, store: AlertStore, signer: Signer) -> None:
        self._store, self._signer = store, signer
        self._recent: ReplyCache[RecentVersions] = ReplyCache(lambda recent: recent.bytes, _SHARED_S)

    def page(self, question: AlertsQuestion, now_ms: int) -> dict[str, Any]:
        """A page of alerts as it goes over HTTP. Its first one has where a stream goes on (`as_of`)."""
        as_of_ms, stream_from = question.as_of_ms, None
        if as_of_ms is None:
            # Before the page is read: a version that comes between is in both.
            position = self.begin(question.filter)
            as_of_ms, stream_from = self._store.now_ms(), position.encode(self._signer)
        versions = self._store.page(question, as_of_ms, now_ms)
        alerts, more = versions[: question.limit], len(versions) > question.limit
        cursor = None
        if more:
            last = alerts[-1]
            cursor = self._signer.sign({
                "of": CURSOR_KIND, "q": question.digest, "at": as_of_ms, "s": question.since_ms, "k": [last.opened_ms, last.id],
            })  # fmt: skip
        document = {"data": self.describe(alerts, now_ms), "rows": len(alerts), "next_cursor": cursor}
        return document | ({} if stream_from is None else {"as_of": stream_from})

    def history(self, id_: str, scope: AlertScope) -> list[AlertVersion]:
        """All versions of an alert, the oldest first. Raises NoSuchAlert."""
        versions = [v for v in self._store.versions([id_]) if scope.sees(v.advertiser_id, v.campaign_id)]
        if not versions:
            raise NoSuchAlert
        return versions

    def show(self, id_: str, scope: AlertScope, now_ms: int) -> dict[str, Any]:
        """An alert with all its versions, as it goes over HTTP. Raises NoSuchAlert."""
        versions = self.history(id_, scope)
        (alert,) = self.describe(versions[-1:], now_ms)
        return alert | {"history": describe_history(versions)}

    def summary(self, scope: AlertScope, advertiser: int | None, now_ms: int) -> AlertSummary:
        """How many of the last alerts of campaigns were false, of those that a key may see."""
        return self._store.summary(scope, advertiser, now_ms)

    def describe(self, versions: Sequence[AlertVersion], now_ms: int) -> list[dict[str, Any]]:
        """Versions with who has acknowledged them, and until when they are muted."""
        if not versions:
            return []
        acknowledgements = self._store.acknowledgements(sorted({v.id for v in versions}))
        mutes = ActiveMutes(self._store.mutes(now_ms, sorted({v.advertiser_id for v in versions})))
        return [describe_alert(v, acknowledgements.get(v.id), mutes.until_ms(v)) for v in versions]

    # -- streams ------------------------------------------------------------------------------------------------

    def begin(self, filter_: AlertFilter) -> StreamPosition:
        """The position of a stream that begins now."""
        recent = self._recent.get("recent", self._read_recent)
        return StreamPosition.after([v for v in recent.versions if filter_.accepts(v)], recent.as_of_ms)

    def resume(self, text: str) -> StreamPosition:
        """The position that a client gives back. Raises BadQuestion."""
        return read_position(text, self._signer)

    def next(self, position: StreamPosition, filter_: AlertFilter, now_ms: int) -> StreamStep:
        """The versions that have not been sent."""
        recent = self._recent.get("recent", self._read_recent)
        versions, until_ms = recent.versions, recent.as_of_ms
        if position.from_ms < recent.from_ms:
            versions = self._store.written_since(filter_, position.from_ms, _MOST_AT_ONCE)
            if len(versions) >= _MOST_AT_ONCE:
                # There may be more, and of the last one's millisecond there are none.
                until_ms = versions[-1].at_ms + 1 + OVERLAP_MS
        fresh = [v for v in position.unsent(versions) if filter_.accepts(v)]
        return StreamStep(self._unmuted(fresh, filter_, now_ms), position.advanced(fresh, until_ms), len(fresh))

    def encode(self, position: StreamPosition) -> str:
        """A position as the id of an event."""
        return position.encode(self._signer)

    def _unmuted(self, versions: Sequence[AlertVersion], filter_: AlertFilter, now_ms: int) -> list[dict[str, Any]]:
        alerts = self.describe(versions, now_ms)
        return [alert for alert in alerts if filter_.muted or alert["muted_until"] is None]

    def _read_recent(self) -> RecentVersions:
        as_of_ms = self._store.now_ms()
        from_ms = as_of_ms - _RECENT_MS
        versions = self._store.newest(from_ms, _MOST_RECENT)
        if len(versions) >= _MOST_RECENT:
            from_ms = versions[-1].at_ms
        return RecentVersions(from_ms, as_of_ms, versions)
