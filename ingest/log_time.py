"""Log time: when a message was written, as the log of its partition says.

With LogAppendTime the timestamp is the broker's. With CreateTime it is the producer's, and may be missing (−1) or wrong by
years. Such a timestamp decides the verdict on its own message and nothing else: log time, and with it the generations of
dedup, passes over it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from infra.clock import MINUTE_MS
from infra.columnar.columns import Bools, Ints
from ingest.events import MAX_AHEAD_MS

# No message was written later than now. This much is for clocks that disagree.
AHEAD_MS = 10 * MINUTE_MS
# A rebuild of dedup ids reads three generations: two that are searched, and the one before them.
KEPT_TURNS = 3

Turns = tuple[tuple[int, int], ...]
"""(generation, offset of the first message in it), oldest first."""


def credible(timestamps_ms: Ints, now_ms: int) -> Bools:
    """Which timestamps can be true."""
    return np.asarray((timestamps_ms > 0) & (timestamps_ms <= now_ms + AHEAD_MS))


def log_times(timestamps_ms: Ints, before_ms: int, now_ms: int, *, live: bool) -> Ints:
    """Log time of each message of a partition, in offset order: the running maximum of the credible timestamps.

    `before_ms` is that of the message before. `live`: these messages end the log, so those without a credible timestamp
    were written about now.
    """
    known = np.where(credible(timestamps_ms, now_ms), timestamps_ms, now_ms if live else 0)
    return np.maximum(np.maximum.accumulate(known), before_ms)


def reference_times(timestamps_ms: Ints, now_ms: int) -> Ints:
    """What event times are judged against: the message's own timestamp, or now where it has none."""
    return np.where(timestamps_ms > 0, timestamps_ms, now_ms)


def latest_event_times(references_ms: Ints, by_broker: Bools, now_ms: int) -> Ints:
    """The latest event time that each message may have.

    A producer's timestamp in the future does not make an event of the future valid: it would end its partition's watermark
    years ahead, and everything after it would be too late.
    """
    bounded = np.minimum(references_ms, now_ms + AHEAD_MS)
    return np.where(by_broker, references_ms, bounded) + MAX_AHEAD_MS


def turns_after(turns: Turns, offsets: Ints, generations: npt.NDArray[np.int64]) -> Turns:
    """Where generations began, once these messages are behind; only the newest ones are kept."""
    before = turns[-1][0] if turns else -1
    changed = np.flatnonzero(np.diff(generations, prepend=before) > 0)
    new = zip(generations[changed].tolist(), offsets[changed].tolist(), strict=True)
    return (*turns, *new)[-KEPT_TURNS:]


def generations_at(turns: Turns, offsets: Ints) -> npt.NDArray[np.int64]:
    """The generation of each message, from where generations began; the oldest for those before."""
    numbers, firsts = (np.array(column, np.int64) for column in zip(*turns, strict=True))
    return np.asarray(numbers[np.maximum(np.searchsorted(firsts, offsets, side="right") - 1, 0)])
