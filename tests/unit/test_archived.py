"""Archived events on the wire: what went in comes out, in parts too, however wide or odd."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.columns import Values
from ingest import archived, blocks
from ingest.archived import Decision

_HEX = st.text("0123456789abcdef", min_size=32, max_size=32)
_OTHER = st.text(min_size=1, max_size=40) | st.text("0123456789abcdefABCDEFg-", min_size=32, max_size=32)
_LIMITS = {
    name: np.iinfo(kind.to_pandas_dtype())
    for name, kind in zip(archived.SCHEMA.names, archived.SCHEMA.types, strict=True)
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
            st.lists(column | st.none() if name in archived.NULLABLE else column, min_size=size, max_size=size)
        )
    return [{name: columns[name][i] for name in archived.SCHEMA.names} for i in range(size)]


@settings(deadline=None)
@given(_rows())
def test_rows_come_off_the_wire_as_they_went_on(rows: list[dict[str, Any]]) -> None:
    kinds = dict(zip(archived.SCHEMA.names, archived.SCHEMA.types, strict=True))
    numbers = {n: np.array([r[n] or 0 for r in rows], kinds[n].to_pandas_dtype()) for n in _LIMITS}
    missing = {n: np.array([r[n] is None for r in rows], np.bool_) for n in archived.NULLABLE}
    ids = Values.of([row["event_id"].encode() for row in rows])
    wanted = pa.Table.from_pylist(rows, schema=archived.SCHEMA)
    messages = []
    for some in (slice(0, 2), slice(2, None)):
        here, gaps = ({name: column[some] for name, column in columns.items()} for columns in (numbers, missing))
        part = archived.on_wire(ids.take(some), here, gaps)
        messages.append(blocks.unpack(blocks.pack(part, b"{}"))[0])
    assert pa.concat_tables(archived.off_wire(message) for message in messages).equals(wanted)


def test_ids_of_hexadecimal_digits_take_half_the_room() -> None:
    names = [b"%032x" % (n * 7**20) for n in range(100)]
    rows = archived.on_wire(Values.of(names), {n: np.zeros(100, np.int64) for n in _LIMITS}, {})
    assert rows.column("event_id").nbytes == 1_600
    assert archived.off_wire(pa.Table.from_batches([rows])).column("event_id").to_pylist() == [
        n.decode() for n in names
    ]


def test_of_several_reasons_the_first_in_order_decides() -> None:
    order = [Decision.DOUBT, Decision.COPY, Decision.TOO_LATE, Decision.SHED]
    for holds in itertools.product([False, True], repeat=len(order)):
        doubt, copy, too_late, shed = (np.array([flag]) for flag in holds)
        expected = next((d for d, flag in zip(order, holds, strict=True) if flag), Decision.COUNTED)
        (decision,) = archived.decide(shed=shed, too_late=too_late, copy=copy, doubt=doubt).tolist()
        assert decision == expected, holds
