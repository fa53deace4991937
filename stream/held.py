"""The durable rows of one window, as they are held: in pieces, and in the smallest integers that hold them.

A row is some 25 bytes here and 120 when it is used. An hour of open minutes is what a worker's memory is spent on.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import polars as pl

from stream import chunks

_MERGE_PIECES = 32


def by_window(frame: pl.DataFrame) -> dict[int, pl.DataFrame]:
    """Rows of many windows, narrow and without their window, by its start."""
    pieces = _narrow(frame).partition_by("window_ms", as_dict=True, include_key=False)
    return {int(start): piece for (start,), piece in pieces.items()}


def _narrow(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(column.shrink_dtype() for column in frame.iter_columns())


@dataclass
class Window:
    """Rows of the window that begins at `start`, in pieces that are merged when somebody needs them whole."""

    start: int
    pieces: list[pl.DataFrame] = field(default_factory=list)
    loose: int = 0
    """How many of the last pieces were never merged."""

    @property
    def merged(self) -> bool:
        """Whether there is one row for each key for certain."""
        return len(self.pieces) + self.loose < 2

    def add(self, piece: pl.DataFrame) -> None:
        """Take more rows in, as `by_window` gives them."""
        self.pieces.append(piece)
        self.loose += 1
        if self.loose > _MERGE_PIECES:
            self._merge_last(self._worthwhile())

    def _worthwhile(self) -> int:
        """How many of the last pieces to merge: the loose ones, and those before that are no larger than all after them.

        So a row is merged log n times, however much its window holds (a log-structured merge).
        """
        count = self.loose
        rows = sum(piece.height for piece in self.pieces[-count:])
        while count < len(self.pieces) and self.pieces[-count - 1].height <= rows:
            rows += self.pieces[-count - 1].height
            count += 1
        return count

    def _merge_last(self, count: int) -> pl.DataFrame:
        merged = chunks.merge([self._wide(self.pieces[-count:])])
        self.pieces[-count:] = [_narrow(merged.drop("window_ms"))]
        self.loose = 0
        return merged

    def whole(self) -> pl.DataFrame:
        """All rows, one for each key."""
        return self._wide(self.pieces) if self.merged else self._merge_last(len(self.pieces))

    def together(self) -> pl.DataFrame:
        """All rows; one for each key only where that is worth a merge."""
        loose = self._wide(self.pieces)
        return self.whole() if not self.merged and chunks.repeats(loose) else loose

    def of(self, campaigns: pl.Series) -> pl.DataFrame:
        """The rows of some campaigns, one for each key. Merges only those: a correction touches few."""
        wanted = pl.col("campaign_id").is_in(campaigns.implode())
        return chunks.merge([self._wide([piece.filter(wanted) for piece in self.pieces])])

    def _wide(self, pieces: list[pl.DataFrame]) -> pl.DataFrame:
        if not pieces:
            return chunks.empty()
        window = pl.lit(self.start, pl.Int64).alias("window_ms")
        return (
            pl.concat(pieces, how="vertical_relaxed")
            .with_columns(window)
            .select(list(chunks.SCHEMA))
            .cast(chunks.SCHEMA)
        )
