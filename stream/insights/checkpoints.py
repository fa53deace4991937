"""What the detector knows, kept in ClickHouse: more than a state log should carry, since each minute changes all of it.

The state log holds the minutes since; with a checkpoint they give what was known before a worker ended.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

import pyarrow as pa

from infra import logs
from infra.clickhouse.client import ClickHouse

TABLE = "detector_checkpoints"
_PART_BYTES = 8 << 20
_SLOTS = 2
_SHARD = 0
"""The table has room for several detectors; there is one."""
_VERSION = "3"
"""A new one for each change of what the detector's numbers mean."""


@dataclass(frozen=True)
class Checkpoint:
    """As of `upto_ms`: all minutes that end by then were taken. `empty`: how many minutes in a row were without any event then."""

    upto_ms: int
    watch: bytes
    alerting: bytes
    empty: int = 0


def read_checkpoint(client: ClickHouse) -> tuple[Checkpoint | None, int]:
    """The newest one that is complete, None where there is none; and the slot for the next. Raises Unavailable."""
    rows = client.rows(
        f"SELECT slot, upto_ms, part, parts, body FROM {client.database}.{TABLE} FINAL"
        " WHERE shard = {shard:UInt16} ORDER BY upto_ms DESC, part",
        {"shard": _SHARD},
    )
    # Of a slot that was written in part, some rows are of the checkpoint before: these have another moment.
    for slot, upto_ms in dict.fromkeys((row[0], row[1]) for row in rows):
        parts = [row for row in rows if (row[0], row[1]) == (slot, upto_ms)]
        if len(parts) == parts[0][3]:
            checkpoint = _decode(int(upto_ms), "".join(row[4] for row in parts))
            if checkpoint is not None:
                return checkpoint, (int(slot) + 1) % _SLOTS
            logs.get("stream").warning("a checkpoint of the detector cannot be read", slot=slot)
    return None, 0


def _decode(upto_ms: int, body: str) -> Checkpoint | None:
    """None for one of another version, or a damaged one."""
    version, *values = body.split(" ")
    if version != _VERSION or len(values) != 3:
        return None
    try:
        watch, alerting = (base64.b64decode(value, validate=True) for value in values[:2])
        return Checkpoint(upto_ms, watch, alerting, int(values[2]))
    except ValueError:
        return None


def write_checkpoint(client: ClickHouse, slot: int, checkpoint: Checkpoint) -> None:
    """Write one into a slot. Safe to repeat. Raises Unavailable."""
    watch, alerting = (base64.b64encode(value).decode() for value in (checkpoint.watch, checkpoint.alerting))
    body = f"{_VERSION} {watch} {alerting} {checkpoint.empty}"
    parts = [body[start : start + _PART_BYTES] for start in range(0, len(body), _PART_BYTES)]
    for number, part in enumerate(parts):
        row = {
            "shard": _SHARD,
            "slot": slot,
            "part": number,
            "parts": len(parts),
            "upto_ms": checkpoint.upto_ms,
            "body": part,
        }
        client.insert(TABLE, pa.table({name: [value] for name, value in row.items()}))
