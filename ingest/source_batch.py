"""Messages as a worker takes them: of several partitions, by column."""

from __future__ import annotations

import numpy as np

from infra.columnar.columns import Stretches
from infra.kafka.record_batches import Records

_NONE = np.empty(0, np.int64)


class SourceBatch:
    """What was taken in one go, by column: `rows[p]` are those of partition p. Offsets are those of events."""

    def __init__(self, parts: dict[int, list[Records]], bases: dict[int, int]) -> None:
        self.parts = {p: [records.shifted(bases[p]) for records in records_of] for p, records_of in parts.items()}
        parts, self.rows = self.parts, dict[int, slice]()
        in_order, start = [records for records_of in parts.values() for records in records_of], 0
        for p, records_of in parts.items():
            stop = start + sum(len(records.offsets) for records in records_of)
            self.rows[p], start = slice(start, stop), stop
        self.offsets = np.concatenate([_NONE, *(records.offsets for records in in_order)])
        self.timestamps_ms = np.concatenate([_NONE, *(records.timestamps_ms for records in in_order)])
        by_broker = [np.full(len(records.offsets), records.by_broker) for records in in_order]
        self.by_broker = np.concatenate([np.empty(0, np.bool_), *by_broker])
        self.values = Stretches([records.values for records in in_order])

    def source(self, row: int) -> tuple[int, int, bytes | None]:
        """Partition, offset and key of a message."""
        p, records, at = self._record(row)
        return p, int(self.offsets[row]), records.keys[at]

    def headers(self, row: int) -> dict[bytes, bytes]:
        """The headers of a message."""
        _, records, at = self._record(row)
        return records.headers(at)

    def _record(self, row: int) -> tuple[int, Records, int]:
        """A message's partition, the part that it lies in, and its place there."""
        p = next(p for p, rows in self.rows.items() if rows.start <= row < rows.stop)
        offset = int(self.offsets[row])
        for records in self.parts[p]:
            if offset < records.next_offset:
                return p, records, int(np.searchsorted(records.offsets, offset))
        raise AssertionError(f"row {row} of partition {p} lies in no part")
