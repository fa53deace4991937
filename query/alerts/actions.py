"""Acknowledges alerts, and mutes and unmutes them, within what a key may see. Each change is in the audit log."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from query.alerts.mutes import MOST_MUTES, Mute, MuteSubject
from query.alerts.reader import AlertReader
from query.alerts.records import Acknowledgement
from query.alerts.scope import AlertScope
from query.alerts.store import AlertStore
from query.bad_question import BadQuestion


class NoSuchMute(Exception):
    """There is none of this id, it has ended, or the key may not see it."""


class AlertActions:
    """Thread-safe. Every method may raise Unavailable."""

    def __init__(self, store: AlertStore, reader: AlertReader, now: Callable[[], int]) -> None:
        """`now`: epoch ms."""
        self._store, self._reader, self._now = store, reader, now

    def acknowledge(self, id_: str, version: int | None, scope: AlertScope, actor: str) -> dict[str, Any]:
        """Acknowledge a version of an alert, None: the current one; returns the alert. Nothing changes where that version, or a newer one,
        is acknowledged. Raises NoSuchAlert, and BadQuestion for a version that there is not."""
        versions = self._reader.history(id_, scope)
        alert = versions[-1]
        version = alert.version if version is None else version
        if version not in {v.version for v in versions}:
            raise BadQuestion(
                "version", f"alert {id_} has no version {version}; its newest one is {alert.version}", 422, "no-such-version"
            )  # fmt: skip
        former = self._store.acknowledgements([id_]).get(id_)
        if former is None or former.version < version:
            self._store.acknowledge(alert, Acknowledgement(version, actor, self._now()))
        (document,) = self._reader.describe([alert], self._now())
        return document

    def mute(self, subject: MuteSubject, until_ms: int, actor: str) -> Mute:
        """Mute alerts until a moment, in the place of a former mute of the same subject. Both are checked before (`parse_mute`)."""
        now_ms = self._now()
        active = {mute.subject: mute for mute in self._store.mutes(now_ms, [subject.advertiser])}
        former = active.get(subject)
        if former is not None and former.until_ms == until_ms:
            return former
        if former is None and len(active) >= MOST_MUTES:
            raise BadQuestion(
                "advertiser_id", f"advertiser {subject.advertiser} has {len(active):,} mutes, which is the limit; delete one", 422,
                "too-many-mutes",
            )  # fmt: skip
        # Versions of a subject rise also where the clock of another router is ahead.
        mute = Mute(subject, until_ms, actor, now_ms, max(now_ms, self._store.mute_version(subject) + 1))
        self._store.write_mute(mute)
        return mute

    def mutes(self, scope: AlertScope, advertiser: int | None = None) -> list[Mute]:
        """The mutes that have not ended, of alerts that a key may see; those that end first come first."""
        mutes = self._store.mutes(self._now(), None if advertiser is None else [advertiser])
        return [mute for mute in mutes if mute.visible_in(scope)]

    def unmute(self, id_: str, scope: AlertScope, actor: str) -> Mute:
        """End a mute; returns what it was. Raises NoSuchMute, and BadQuestion (403) where the key may see only some of what is muted."""
        for mute in self.mutes(scope):
            if mute.subject.id == id_:
                mute.subject.refuse_foreign(scope)
                self._store.delete_mute(mute, actor, self._now())
                return mute
        raise NoSuchMute
