"""Writes messages of a release, and what they say, for tests of later ones. README.md says which files there are, and of which commit.

It runs in a checkout of that commit, by its code: `python write.py FOLDER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import msgspec
import numpy as np

from infra.columnar.columns import Values
from ingest import blocks, partials
from ingest.archive import schema as archive_schema
from ingest.blocks import SourceRange
from ingest.partials import KEYS, SUMS, WINDOW, Partials
from stream import chunks
from stream.chunks import ChunkHeader, Sent
from stream.closing import Closing, Upstream

_ROWS, _START_MS, _MINUTE_MS = 60, 1_795_132_800_000, 60_000
_RANGES = (SourceRange(0, 10, 70, _START_MS + 9, False), SourceRange(1, 0, 0, None, True))


def sums(rng: np.random.Generator, more: tuple[str, ...] = ()) -> Partials:
    """Rows with small and large sums, a sum that is 0 in all of them, and a key that is the same in all."""
    columns = {name: rng.integers(1, 400, _ROWS) for name in KEYS}
    columns[WINDOW] = _START_MS + _MINUTE_MS * rng.integers(0, 5, _ROWS)
    columns |= {"country": rng.integers(0, 8, _ROWS), "device": rng.integers(0, 3, _ROWS)}
    columns["advertiser_id"] = np.full(_ROWS, 7)
    columns |= {name: rng.integers(0, 3, _ROWS) for name in (*SUMS, *more)}
    columns |= {"spend_micros": rng.integers(0, 2**40, _ROWS), "sampled": np.zeros(_ROWS, np.int64)}
    return Partials.of(columns)


def rows_of(rows: Partials) -> dict[str, list[int]]:
    """Column → values."""
    return {name: column.tolist() for name, column in rows.columns.items()}


def archived(rng: np.random.Generator) -> tuple[bytes, dict[str, list[object]]]:
    """A message of `ad-archive`, and its columns."""
    ids = [f"{n:032x}" for n in rng.integers(0, 2**62, _ROWS).tolist()]
    numbers = {name: rng.integers(0, 3, _ROWS) for name in archive_schema.SCHEMA.names if name != "event_id"}
    numbers |= {
        "offset": 10 + np.arange(_ROWS),
        "time_ms": _START_MS + rng.integers(-(10**6), 10**6, _ROWS),
        "user": rng.integers(-(2**62), 2**62, _ROWS),
    }
    missing = {name: numbers["device"] == place for place, name in enumerate(archive_schema.NULLABLE)}
    part = archive_schema.encode_archived(Values.of([text.encode() for text in ids]), numbers, missing)
    (value,) = blocks.encode_block([part], _RANGES[:1], _START_MS)
    columns: dict[str, list[object]] = {name: column.tolist() for name, column in numbers.items()}
    for name, nulls in missing.items():
        columns[name] = [None if null else v for null, v in zip(nulls.tolist(), columns[name], strict=True)]
    return value, columns | {"event_id": list(ids)}


def main(folder: Path) -> None:
    """Write the files."""
    rng = np.random.default_rng(20_261_130)
    block, delta, base = sums(rng), sums(rng, (chunks.CHANGED,)), sums(rng, (chunks.CHANGED,))
    closing = Closing(closed_ms=_START_MS)
    header = ChunkHeader(
        chunks.SCHEMA_VERSION,
        12,
        10,
        14,
        closing,
        _START_MS - _MINUTE_MS,
        _START_MS - 9 * _MINUTE_MS,
        shard=3,
        sent=Sent(11, 9),
    )
    base_header = msgspec.structs.replace(
        header, sequence=13, base=True, upstream={0: Upstream(7, _START_MS, 0)}, closed_before_ms=None
    )
    (value,) = blocks.encode_block(blocks.split_rows(block.arrow()), _RANGES, _START_MS)
    (empty,) = blocks.encode_block(blocks.split_rows(partials.empty_partials().arrow()), _RANGES, _START_MS)
    ((_, chunk),) = chunks.encode(delta, header)
    ((_, base_chunk),) = chunks.encode(base, base_header)
    archive, events = archived(rng)
    messages = {"block": value, "heartbeat": empty, "chunk": chunk, "base": base_chunk, "archive": archive}
    for name, message in messages.items():
        (folder / f"{name}.arrow").write_bytes(message)
    headers = {name: blocks.unpack_rows(message)[1].decode() for name, message in messages.items()}
    rows = {"block": rows_of(block), "heartbeat": {}, "chunk": rows_of(delta), "base": rows_of(base), "archive": events}
    said = {name: {"header": json.loads(headers[name]), "rows": rows[name]} for name in messages}
    (folder / "said.json").write_text(json.dumps(said, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
