"""What a flush made durable, as a value that never changes: all that a sink gets, and nothing leads back from it to the state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ingest.canary.arrivals import NO_CANARIES, Canaries
from ingest.events import EVENT_TYPES
from ingest.partials import BILLED, WINDOW, Partials
from stream.window import Window


@dataclass(frozen=True)
class Publication:
    """A flush, or a snapshot: all that is durable, as if it had just become so. Windows share their rows with the state.

    A snapshot has no `delta` and nothing `corrected`; its windows are all that are held, `newly_closed` those that are closed.
    """

    sequence: int
    """How many flushes are durable with this one."""
    closed_ms: int | None
    """The closing watermark."""
    settled_ms: int
    """No event can change windows any more that end at or before this."""
    dropped_ms: int
    """The state no longer holds windows that end at or before this."""
    sent_ms: int
    """When the newest block was sent that this contains; 0 for none since a recovery."""
    delta: Partials
    """Rows by window, in the order of windows and campaigns."""
    newly_closed: tuple[Window, ...]
    """Whole windows."""
    corrected: tuple[Window, ...]
    """Windows that were closed before, with rows in `delta`; in order."""
    open: tuple[Window, ...]
    """Windows that are still open, with rows in `delta`."""
    newest_ms: int | None
    """Start of the newest window that the state holds."""
    canaries: Canaries = NO_CANARIES
    """The last canaries of the source partitions before the end of this."""

    @property
    def events(self) -> int:
        """How many counted events the delta sums up."""
        return sum(int(self.delta[measure].sum()) for measure in BILLED[: len(EVENT_TYPES)])

    def corrections(self, *, whole: bool) -> list[Partials]:
        """For each corrected window, all its rows of the campaigns that changed; `whole`: one for each key."""
        window, campaign = self.delta[WINDOW], self.delta["campaign_id"]
        corrected = [w.start for w in self.corrected]
        starts, stops = (np.searchsorted(window, corrected, side) for side in ("left", "right"))
        return [
            w.of(np.unique(campaign[start:stop]).astype(np.int64), whole=whole)
            for w, start, stop in zip(self.corrected, starts.tolist(), stops.tolist(), strict=True)
        ]
