"""The archived event: what `ad-archive` carries and the Parquet files hold. Batch and replay read it.

On the wire each column of numbers is its difference from the least, in as few bytes as that takes, offsets how they differ
from counting, and ids of hexadecimal digits bytes: half of the size, and of the cost of every copy on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from infra.columnar import hex_ids
from infra.columnar.columns import Bools, Ints, Values
from ingest import events


class Decision(IntEnum):
    """What the stream did with a valid event."""

    COUNTED = 0
    COPY = 1
    TOO_LATE = 2
    SHED = 3
    DOUBT = 4  # its id may be among those that Redis lost and the topic no longer holds: taken for a copy


def choose_decisions(*, shed: Bools, too_late: Bools, copy: Bools, doubt: Bools) -> npt.NDArray[np.uint8]:
    """The decision on each event where several reasons may hold: doubt goes before copy, too late and shed, in this order.

    Ingest decides by it, and `adclick audit` decides again.
    """
    reasons = [(doubt, Decision.DOUBT), (copy, Decision.COPY), (too_late, Decision.TOO_LATE), (shed, Decision.SHED)]
    conditions, decisions = zip(*reasons, strict=True)
    return np.select(conditions, [np.uint8(d) for d in decisions], np.uint8(Decision.COUNTED))


DECISIONS = tuple(d.name.lower().replace("_", "-") for d in Decision)

SCHEMA = pa.schema(
    {
        "offset": pa.int64(),
        "log_time_ms": pa.int64(),
        "event_id": pa.large_string(),
        "event_type": pa.uint8(),
        "time_ms": pa.int64(),
        "campaign_id": pa.int64(),
        "ad_id": pa.int64(),
        "advertiser_id": pa.int64(),
        "publisher_id": pa.int64(),
        "country": pa.uint16(),
        "device": pa.uint8(),
        "user": pa.int64(),  # the keyed hash of user_id
        "cost_micros": pa.int64(),
        "decision": pa.uint8(),
        "weight": pa.uint32(),
        "lateness": pa.uint8(),
        "copy_of": pa.int64(),
    }
)
"""An archived event, in codes."""
NULLABLE = ("user", "copy_of")
NO_VALUE = -1
"""What stands for null in a column of NULLABLE where it is numbers."""
_NAMES = {
    "event_type": events.EVENT_TYPES,
    "country": events.COUNTRIES,
    "device": events.DEVICES,
    "decision": DECISIONS,
}
_LEAST, _COUNTED = b"least", b"counted"
_MAX_COUNTED = 2**62


def encode_archived(
    ids: Values, numbers: Mapping[str, npt.NDArray[Any]], missing: Mapping[str, Bools]
) -> pa.RecordBatch:
    """The rows of one message of `ad-archive`. `ids` lie one right after the other; `missing` marks nulls in columns of NULLABLE."""
    fields, columns = list[pa.Field](), list[pa.Array]()
    for name in SCHEMA.names:
        if name == "event_id":
            column, metadata = hex_ids.pack_hex(ids) or _texts(ids), None
        elif name in missing:
            column, metadata = pa.array(numbers[name], mask=missing[name]), None
        else:
            values, counted = numbers[name], b"0"
            if name == "offset" and len(values) and values.min() >= 0 and values.max() < _MAX_COUNTED:
                values, counted = values - np.arange(len(values)), b"1"
            least = int(values.min()) if len(values) else 0
            narrow = np.min_scalar_type(int(values.max()) - least) if len(values) else np.dtype(np.uint8)
            column = pa.array(values.astype(narrow) if least == 0 else (values - least).astype(narrow))
            metadata = {_LEAST: b"%d" % least, _COUNTED: counted}
        fields.append(pa.field(name, column.type, metadata=metadata))
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))


def decode_archived(table: pa.Table) -> pa.Table:
    """The rows of one message of `ad-archive`, in the types of SCHEMA."""
    columns = []
    for wanted in SCHEMA:
        sent, column = table.schema.field(wanted.name), table.column(wanted.name).combine_chunks()
        if sent.type == wanted.type and not sent.metadata:
            columns.append(column)
        elif pa.types.is_fixed_size_binary(sent.type):
            columns.append(hex_ids.spell_hex(column))
        else:
            columns.append(pa.array(_widened(sent, column).astype(wanted.type.to_pandas_dtype(), copy=False)))
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def decode_numbers(table: pa.Table) -> dict[str, Ints]:
    """Columns of numbers of one message of `ad-archive`, with NO_VALUE for null."""
    fields, columns = table.schema, table.columns
    return {f.name: _widened(f, c.combine_chunks()) for f, c in zip(fields, columns, strict=True)}


def _widened(sent: pa.Field, column: pa.Array) -> Ints:
    present = column.fill_null(NO_VALUE) if column.null_count else column
    values: Ints = present.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    metadata = sent.metadata or {}
    if least := int(metadata.get(_LEAST, b"0")):
        values = values + least
    return values + np.arange(len(values)) if metadata.get(_COUNTED) == b"1" else values


def _texts(ids: Values) -> pa.Array:
    edges = np.concatenate((ids.starts[:1], ids.ends)) if len(ids) else np.zeros(1, np.int64)
    return pa.LargeStringArray.from_buffers(len(ids), pa.py_buffer(edges), pa.py_buffer(ids.data))


def stored_rows(rows: pa.Table, partition: int) -> pa.Table:
    """Rows of SCHEMA as they are stored: names instead of codes, and the source partition beside the offset."""
    columns = {"partition": pa.array(np.full(rows.num_rows, partition, np.int32))}
    for name in SCHEMA.names:
        column = rows.column(name).combine_chunks()
        named = pa.DictionaryArray.from_arrays
        columns[name] = named(column, pa.array(_NAMES[name])) if name in _NAMES else column
    return pa.table(columns)
