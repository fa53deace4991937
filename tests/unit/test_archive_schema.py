"""Archived events survive encoding and decoding, also in parts, whatever their values."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.columnar.columns import Values
from ingest import blocks
from ingest.archive import schema as archive_schema
from ingest.archive.schema import Decision

_HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
_OTHER = st.text(min_size=1, max_size=40) | st.text("0123456789abcdefABCDEFg-", min_size=32, max_size=32)
_LIMITS = {
    name: np.iinfo(kind.to_pandas_dtype())
    for name, kind in zip(archive_schema.SCHEMA.names, archive_schema.SCHEMA.types, strict=True)
    if name != "event_id"
}


@st.composite
def _rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    size = draw(st.integers(0, 6))
    ids = draw(st.lists(draw(st.sampled_from([_HEX, _HEX | _OTHER])), min_size=size, max_size=size))
    columns: dict[str, list[Any]] = {"event_id": ids}
    for name, limits in _LIMITS.items():
        # As far apart as numbers of 64 bits with one sign are.
        least, most = (0, int(limits.max)) if draw(st.booleans()) else (int(limits.min), min(0, int(limits.max)))
        column = st.integers(least, most)
        columns[name] = draw(
            st.lists(column | st.none() if name in archive_schema.NULLABLE else column, min_size=size, max_size=size)
        )
    return [{name: columns[name][i] for name in archive_schema.SCHEMA.names} for i in range(size)]


@settings(deadline=None)
@given(_rows())
def test_archived_rows_survive_encoding_and_decoding(rows: list[dict[str, Any]]) -> None:
    kinds = dict(zip(archive_schema.SCHEMA.names, archive_schema.SCHEMA.types, strict=True))
    numbers = {n: np.array([r[n] or 0 for r in rows], kinds[n].to_pandas_dtype()) for n in _LIMITS}
    missing = {n: np.array([r[n] is None for r in rows], np.bool_) for n in archive_schema.NULLABLE}
    ids = Values.of([row["event_id"].encode() for row in rows])
    expected, names = (
        pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA),
        ["user", "offset", "decision", "copy_of"],
    )
    messages, numbers_alone = [], []
    for half in (slice(0, 2), slice(2, None)):
        columns_of_half, missing_of_half = (
            {name: column[half] for name, column in columns.items()} for columns in (numbers, missing)
        )
        part = archive_schema.encode_archived(ids.take(half), columns_of_half, missing_of_half)
        message = blocks.pack_rows(part, b"{}")
        messages.append(blocks.unpack_rows(message)[0])
        numbers_alone.append(archive_schema.decode_numbers(blocks.unpack_rows(message, names)[0]))
    for name in names:
        of_rows = [archive_schema.NO_VALUE if row[name] is None else row[name] for row in rows]
        assert np.concatenate([numbers_of_half[name] for numbers_of_half in numbers_alone]).tolist() == of_rows
    assert pa.concat_tables(archive_schema.decode_archived(message) for message in messages).equals(expected)


def test_hexadecimal_ids_are_packed_into_half_the_bytes() -> None:
    names = [b"%032x" % (n * 7**20) for n in range(100)]
    rows = archive_schema.encode_archived(Values.of(names), {n: np.zeros(100, np.int64) for n in _LIMITS}, {})
    assert rows.column("event_id").nbytes == 1_600
    assert archive_schema.decode_archived(pa.Table.from_batches([rows])).column("event_id").to_pylist() == [
        n.decode() for n in names
    ]


def test_the_first_reason_that_applies_is_the_decision() -> None:
    order = [Decision.DOUBT, Decision.COPY, Decision.TOO_LATE, Decision.SHED]
    for holds in itertools.product([False, True], repeat=len(order)):
        doubt, copy, too_late, shed = (np.array([flag]) for flag in holds)
        expected = next((d for d, flag in zip(order, holds, strict=True) if flag), Decision.COUNTED)
        (decision,) = archive_schema.choose_decisions(shed=shed, too_late=too_late, copy=copy, doubt=doubt).tolist()
        assert decision == expected, holds
