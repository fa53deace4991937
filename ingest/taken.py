"""Messages as a worker takes them: of several partitions, by column."""

from __future__ import annotations

import numpy as np

from infra.columns import Stretches
from infra.record_batches import Records

_NONE = np.empty(0, np.int64)


class Taken:
    """What was taken in one go, by column: `rows[p]` are those of partition p. Offsets are those of events."""

    def __init__(self, parts: dict[int, list[Records]], bases: dict[int, int]) -> None:
        self.parts = {p: [records.shifted(bases[p]) for records in held] for p, held in parts.items()}
        parts, self.rows = self.parts, dict[int, slice]()
        whole, start = [records for held in parts.values() for records in held], 0
        for p, held in parts.items():
            stop = start + sum(len(records.offsets) for records in held)
            self.rows[p], start = slice(start, stop), stop
        self.offsets = np.concatenate([_NONE, *(records.offsets for records in whole)])
        self.timestamps_ms = np.concatenate([_NONE, *(records.timestamps_ms for records in whole)])
        by_broker = [np.full(len(records.offsets), records.by_broker) for records in whole]
        self.by_broker = np.concatenate([np.empty(0, np.bool_), *by_broker])
        self.values = Stretches([records.values for records in whole])

    def source(self, row: int) -> tuple[int, int, bytes | None]:
        """Partition, offset and key of a message."""
        p = next(p for p, rows in self.rows.items() if rows.start <= row < rows.stop)
        offset = int(self.offsets[row])
        for records in self.parts[p]:
            if offset < records.next_offset:
                return p, offset, records.keys[int(np.searchsorted(records.offsets, offset))]
        raise AssertionError(f"row {row} of partition {p} lies in no part")
