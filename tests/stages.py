"""A stage's intake and state, driven as a stage partition drives them, without a log behind them."""

from __future__ import annotations

from ingest.blocks import BlockHeader
from ingest.partials import Partials
from stream.chunks import ChunkHeader
from stream.flush_policy import Fresh
from stream.intake import Durable, Intake
from stream.published import Publication
from stream.state import COMPACT_ABOVE_ROWS, Flush, StageState
from stream.window import Window

_LONG_AGO_S = 1e9


class Stage:
    """One partition of a stage."""

    def __init__(
        self,
        grain_ms: int,
        source_partitions: int,
        compact_above_rows: int = COMPACT_ABOVE_ROWS,
        *,
        shards: int = 1,
        sends_closed: bool = False,
    ) -> None:
        self._grain_ms, self._sources, self._compact_above_rows = grain_ms, source_partitions, compact_above_rows
        self._shards, self._sends_closed = shards, sends_closed
        self.state = self._empty_state()
        self.intake = Intake(grain_ms, source_partitions, Durable(), shards=shards)
        self.flush: Flush | None = None

    @property
    def windows(self) -> dict[int, Window]:
        return self.state.windows

    @property
    def next_message(self) -> int:
        return self.intake.next_message

    def apply_block(self, offset: int, rows: Partials, header: BlockHeader, where: str) -> None:
        self.intake.apply_block(offset, rows, header, where)

    def apply_chunk(self, offset: int, rows: Partials, header: ChunkHeader, where: str) -> None:
        self.intake.apply_chunk(offset, rows, header, where)

    def flush_due(self, now_ms: int) -> bool:
        if not self.intake.may_flush:
            return False
        self.intake.tick(now_ms)
        return Fresh().is_due(self.intake.waiting(), _LONG_AGO_S, _LONG_AGO_S, 1)

    def begin_flush(self) -> Flush:
        self.flush = self.state.fold(self.intake.take())
        return self.flush

    def commit(self) -> Publication:
        assert self.flush is not None
        published = self.state.commit(self.flush)
        self.intake.settle(self.state.durable)
        return published

    def abort(self) -> None:
        assert self.flush is not None
        self.state.abort(self.flush)
        self.intake.settle(self.state.durable)

    def restore(self, log: list[tuple[bytes, bytes]]) -> None:
        self.state = self._empty_state()
        self.state.restore(log, "here")
        self.intake = Intake(self._grain_ms, self._sources, self.state.durable, shards=self._shards)

    def _empty_state(self) -> StageState:
        return StageState(self._grain_ms, self._sources, self._compact_above_rows, sends_closed=self._sends_closed)
