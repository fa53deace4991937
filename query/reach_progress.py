"""What users of the stream may lack, by how far they are counted (`stream.reach.progress`). Pure."""

from __future__ import annotations

from collections.abc import Sequence

from infra.clock import HOUR_MS, MINUTE_MS
from query import warnings
from query.plan import Piece
from stream.reach.progress import LATE_MS, Hole, Progress

BEHIND_MS = 2 * MINUTE_MS
"""Users that follow counts within this are up to date."""
Partitions = Sequence[Progress | None]
"""The progress of each partition; None where none is known."""


def is_behind(partitions: Partitions, now_ms: int) -> bool:
    """Whether the newest users are missing, or may be."""
    return any(progress is None or now_ms - progress.read_ms > BEHIND_MS for progress in partitions)


def warn_of_missing_users(partitions: Partitions, pieces: Sequence[Piece], since_ms: int, now_ms: int) -> list[str]:
    """Warnings of users that pieces of the stream's tables may lack. `since_ms`: of what was before there is another warning."""
    if not pieces:
        return []
    notes = list[str]()
    end_ms = max(piece.end_ms for piece in pieces)
    # The least event time of what each partition lacks.
    borders_ms = [
        None if progress is None or progress.watermark_ms is None else progress.watermark_ms - LATE_MS
        for progress in partitions
        if is_behind([progress], now_ms)
    ]
    if None in borders_ms:
        notes.append(warnings.USERS_UNKNOWN)
    elif (border_ms := min((ms for ms in borders_ms if ms is not None), default=end_ms)) < end_ms:
        notes.append(warnings.users_behind(border_ms // HOUR_MS * HOUR_MS))
    notes += [
        warnings.users_deleted_unread(from_ms, to_ms)
        for from_ms, to_ms in _union(partitions)
        if to_ms > since_ms and any(from_ms < piece.end_ms and piece.start_ms < to_ms for piece in pieces)
    ]
    return notes


def _union(partitions: Partitions) -> list[Hole]:
    """The holes of all partitions, in the order of time; those that overlap are one."""
    union = list[Hole]()
    for from_ms, to_ms in sorted(hole for progress in partitions if progress is not None for hole in progress.holes):
        if union and from_ms <= union[-1][1]:
            union[-1] = union[-1][0], max(union[-1][1], to_ms)
        else:
            union.append((from_ms, to_ms))
    return union
