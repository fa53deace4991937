"""Lines to send, with the keys they are sent under and their event times."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.decoding import json_fields
from ingest.replay.shifting import Shift, shift_event


@dataclass(frozen=True)
class ReplayBatch:
    """Lines with the keys they are sent under, null where there is no id, and their event times where they have one."""

    lines: list[bytes]
    keys: list[bytes | None]
    times_ms: list[int | None]

    @classmethod
    def of(cls, lines: list[bytes], shift: Shift | None = None) -> ReplayBatch:
        """Read ids and times from the JSON of lines, and move events where there is a shift."""
        ids, times_ms = json_fields.read_ids_and_times(lines)
        if shift is not None:
            lines = [shift_event(*event, shift) for event in zip(lines, ids, times_ms, strict=True)]
            ids, times_ms = json_fields.read_ids_and_times(lines)
        return cls(lines, list(map(json_fields.key_of, ids)), times_ms)

    @property
    def foreign(self) -> int:
        """How many lines have no id that can be read: they will be dead letters."""
        return self.keys.count(None)
