"""Positions in the stream of versions of alerts: each version is sent once, also after a reconnect. Pure.

A version may become visible a little later than others that were written after it. So a position stays behind by the time that this
may take, and names what was sent of that time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from query.alerts.records import AlertVersion
from query.cursor import read_page
from query.signing import Signer

OVERLAP_MS = 60_000
"""How much later than others a version may become visible: an insert takes no longer."""
MOST_NAMED = 100
"""Sent versions that a position names. Of more, the oldest are passed over."""
_KIND = "alert-stream"


@dataclass(frozen=True)
class StreamPosition:
    """All versions that were written before `from_ms` have been sent, and of later ones those in `sent`: when each was written, and a
    digest of its id and version."""

    from_ms: int
    sent: tuple[tuple[int, str], ...] = ()

    @staticmethod
    def after(versions: Sequence[AlertVersion], as_of_ms: int) -> StreamPosition:
        """The position of a client that has all versions that could be seen at a moment. `versions`: those of the overlap before it."""
        return StreamPosition(as_of_ms - OVERLAP_MS).advanced(versions, as_of_ms)

    def unsent(self, versions: Iterable[AlertVersion]) -> list[AlertVersion]:
        """Those that have not been sent, as they were written, each once."""
        sent = {digest for _, digest in self.sent}
        fresh: dict[str, AlertVersion] = {}
        for version in sorted(versions, key=lambda v: (v.at_ms, v.id, v.version)):
            if version.at_ms >= self.from_ms and (digest := _digest(version)) not in sent:
                fresh.setdefault(digest, version)
        return list(fresh.values())

    def advanced(self, sent: Iterable[AlertVersion], until_ms: int) -> StreamPosition:
        """The position once more versions have been sent. `until_ms`: all that could be seen of versions written up to then was looked at."""
        from_ms = max(self.from_ms, until_ms - OVERLAP_MS)
        marks = sorted({*self.sent, *((version.at_ms, _digest(version)) for version in sent)})
        marks = [mark for mark in marks if mark[0] >= from_ms]
        if len(marks) > MOST_NAMED:
            # What was written in one millisecond, as by one insert, is sent together.
            from_ms = marks[-MOST_NAMED - 1][0] + 1
            marks = [mark for mark in marks if mark[0] >= from_ms]
        return StreamPosition(from_ms, tuple(marks))

    def encode(self, signer: Signer) -> str:
        """As a client gives it back in Last-Event-ID."""
        marks = [[at_ms - self.from_ms, digest] for at_ms, digest in self.sent]
        return signer.sign({"of": _KIND, "t": self.from_ms, "s": marks})


def read_position(text: str, signer: Signer) -> StreamPosition:
    """The position that a client gives back. Raises BadQuestion for any other text."""
    payload = read_page(text, _KIND, signer)
    from_ms = payload["t"]
    return StreamPosition(from_ms, tuple((from_ms + after_ms, digest) for after_ms, digest in payload["s"]))


def _digest(version: AlertVersion) -> str:
    return hashlib.sha256(f"{version.id}/{version.version}".encode()).hexdigest()[:10]
