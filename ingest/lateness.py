"""Watermarks and the verdict of lateness: functions of one source partition's log, no clock involved.

The verdict watermark is the maximum event time of the partition's valid first occurrences so far, less 5 s. An event is
late by (that watermark just before it − the end of its minute).
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import numpy.typing as npt

from infra.clock import HOUR_MS, MINUTE_MS

DISORDER_MS = 5_000
CORRECTS_UP_TO_MS = 5 * MINUTE_MS
ACCEPTED_UP_TO_MS = HOUR_MS
NO_WATERMARK = np.iinfo(np.int64).min


class Lateness(IntEnum):
    """How late an event is, by its minute's end."""

    ON_TIME = 0
    CORRECTS = 1  # up to 5 min: the window is corrected
    FLAGGED = 2  # up to 1 h: corrected, and counted in late_events
    TOO_LATE = 3  # beyond: dead letter, and left to the nightly job


def judge_lateness(
    time_ms: npt.NDArray[np.int64], first: npt.NDArray[np.bool_], watermark_ms: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], int]:
    """Lateness of each event in offset order, by how much (ms, negative when early), and the watermark after.

    `first` marks first occurrences: copies neither move the watermark nor are judged (they come out as ON_TIME).
    `watermark_ms` is the one before the batch, NO_WATERMARK when the partition has had no valid event.
    """
    if not len(time_ms):
        return np.empty(0, np.uint8), np.empty(0, np.int64), watermark_ms
    floor = np.int64(NO_WATERMARK)
    reached = np.where(first, time_ms - DISORDER_MS, floor)
    after = np.maximum(np.maximum.accumulate(reached), watermark_ms)
    before = np.concatenate((np.array([watermark_ms], np.int64), after[:-1]))
    ends = (time_ms // MINUTE_MS + 1) * MINUTE_MS
    late_by = np.where(before == floor, np.int64(-1), before - ends)
    verdict = np.searchsorted(np.array([0, CORRECTS_UP_TO_MS, ACCEPTED_UP_TO_MS]), late_by, side="left")
    return np.where(first, verdict, 0).astype(np.uint8), late_by, int(after[-1])
