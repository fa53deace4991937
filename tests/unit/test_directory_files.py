"""Files of entries: what is read is what was written, and what cannot be taken is reported with its line."""

from __future__ import annotations

import datetime as dt
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.errors import UserError
from ingest.synthetic.directory_file import HALF_HOUR_ZONE, write_directory
from ingest.synthetic.generator import Spec, generate_events
from query.directory.entries import KINDS, Ad, BadEntry, Campaign, Entry, kind_of, parse_entry
from query.directory.files import FORMATS, read_rows, write_rows
from query.directory.snapshot import Names, Search, Snapshot, fold
from query.directory.store import _COLUMNS, Change, _row, _table
from query.row_scope import RowScope


def rows_of(changes: list[Change], version: int) -> pl.DataFrame:
    """Changes as the table has them."""
    types = _COLUMNS | {"changed_at": pa.null()}
    rows = [dict(_row(change, version, None)) for change in changes]  # type: ignore[arg-type]
    frame = pl.DataFrame(_table(types, rows))
    return frame.rename({"start_date": "start", "end_date": "end"})


_ids = st.integers(0, 2**63 - 1)
_names = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1, max_size=500).filter(
    lambda text: text == text.strip()
)
_dates = st.none() | st.dates(dt.date(1970, 1, 1), dt.date(2199, 12, 31))


@st.composite
def _entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(list(KINDS)))
    values: dict[str, Any] = {"id": draw(_ids), "name": draw(_names)}
    if kind in ("advertiser", "campaign"):
        values["timezone"] = draw(st.sampled_from(["UTC", "Asia/Kolkata", "Europe/Berlin"]))
    if kind == "ad":
        values["campaign_id"] = draw(_ids)
    if kind == "campaign":
        start, end = sorted([draw(_dates), draw(_dates)], key=lambda date: (date is not None, date))
        budget = draw(st.sampled_from([None, "daily", "total"]))
        values |= {"advertiser_id": draw(_ids), "status": draw(st.sampled_from(["active", "paused", "ended"]))}
        values |= {"start": start and start.isoformat(), "end": end and end.isoformat(), "budget": budget}
        values |= {"budget_micros": draw(_ids) if budget else None}
    return parse_entry(kind, values)


@settings(max_examples=40)
@given(st.lists(_entries(), max_size=20, unique_by=lambda entry: (kind_of(entry), entry.id)), st.sampled_from(FORMATS))
def test_a_file_that_was_written_is_read_as_the_same_entries(entries: list[Entry], form: str) -> None:
    snapshot = Snapshot.empty().with_rows(rows_of([Change(None, entry) for entry in entries], 1))
    file = io.BytesIO()
    assert write_rows(snapshot, tuple(KINDS), form, file) == len(entries)
    rows = [row for _, row in read_rows(io.BytesIO(file.getvalue()), form, None)]
    assert sorted(map(repr, rows)) == sorted(map(repr, entries))


_CSV = [
    b"kind,id,name,advertiser_id,timezone,budget,budget_micros",
    b"advertiser,1,Acme,,Asia/Kolkata,,",
    b'campaign,7,"Winter, ""big""",1,,daily,5000000',
    b"campaign,8,Two,1,,daily,-5",
    b"campaign,9,Three",
    b"campaign,x,Four,1,,,",
    b"ad,3,Five,,UTC,,",
    b"advertiser,2,Six,,Asia/Kolkatta,,",
    b"",
    b"advertiser,4,Se\xffven,,,,",
    b"shop,4,Eight,,,,",
    b'publisher,5,"=HYPERLINK(""http://x"")",,,,',
]
_NDJSON = [
    b'{"kind":"advertiser","id":1,"name":"Acme"}',
    b'{"kind":"advertiser","id":2,"name":"Two","colour":"red"}',
    b'{"kind":"advertiser","id":2.5,"name":"Three"}',
    b"not json",
    b"[1]",
    b'{"id":3,"name":"Four"}',
    b'{"kind":"advertiser","id":3,"name":"F\xffive"}',
    b'{"kind":"advertiser","id":4,"name":"a\\u0000b"}',
    b'{"kind":"advertiser","id":4,"name":"' + b"x" * 70_000 + b'"}',
    b'{"kind":"publisher","id":5,"name":"Nine"}',
]


@pytest.mark.parametrize(
    ("form", "lines", "refused", "taken"),
    [
        (
            "csv", _CSV,
            {4: "budget_micros", 5: "", 6: "id", 7: "timezone", 8: "timezone", 10: "name", 11: "kind"},
            {2: 1, 3: 7, 12: 5},
        ),
        ("ndjson", _NDJSON, {2: "colour", 3: "id", 4: "", 5: "", 6: "kind", 7: "", 8: "name", 9: ""}, {1: 1, 10: 5}),
    ],
)  # fmt: skip
def test_each_bad_row_is_reported_with_its_line_and_field(
    form: str, lines: list[bytes], refused: dict[int, str], taken: dict[int, int]
) -> None:
    rows = list(read_rows(io.BytesIO(b"\n".join(lines)), form, None))
    assert {line: row.field for line, row in rows if isinstance(row, BadEntry)} == refused
    assert {line: row.id for line, row in rows if not isinstance(row, BadEntry)} == taken


@pytest.mark.parametrize(
    ("head", "kind", "message"),
    [
        ("", None, "is empty"),
        ("id,nmae", "publisher", "did you mean name?"),
        ("id,name", None, "no column kind"),
        ("id,name", "campaign", "no column advertiser_id"),
        ("id,name,id", "publisher", "there twice"),
        ("id,name,status", "publisher", "no such column: 'status'"),
        ('"id', "publisher", "no head"),
        ("ID;Name", "publisher", "did you mean id?"),
        ("id,n\udce4me", "publisher", "no text in UTF-8"),
        ("PK\x03\x04\x14\x00\x06\x00", "publisher", "save the sheet as CSV UTF-8"),
    ],
)
def test_wrong_columns_are_refused_before_any_row(head: str, kind: str | None, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        list(read_rows(io.BytesIO(head.encode(errors="surrogateescape")), "csv", kind))


@pytest.mark.parametrize(
    ("sheet", "lines"),
    [
        ('\ufeffid,name\r\n5,Acme\r\n6,"a, b"\r\n', [2, 3]),
        ("\ufeffid;name\r\n5;Acme\r\n6;a, b\r\n", [2, 3]),
        ("id\tname\r\n5\tAcme\r\n6\ta, b\r\n", [2, 3]),
        ('sep=,\r\nid,name\r\n5,Acme\r\n6,"a, b"\r\n', [3, 4]),
        ("\ufeffsep=;\r\nid;name\r\n5;Acme\r\n6;a, b\r\n", [3, 4]),
        ('\r\n,,\r\nid,name,\r\n5,Acme,\r\n,,\r\n\r\n6,"a, b",,,\r\n,,\r\n', [4, 7]),
        ('id,name\r5,Acme\r6,"a, b"\r', [2, 3]),
    ],
    ids=["byte-order-mark", "semicolons", "tabs", "sep=,", "sep=;", "empty-rows-and-columns", "carriage-returns"],
)
def test_csv_files_are_read_as_spreadsheets_write_them(sheet: str, lines: list[int]) -> None:
    rows = [
        (line, getattr(row, "name", row)) for line, row in read_rows(io.BytesIO(sheet.encode()), "csv", "publisher")
    ]
    assert rows == list(zip(lines, ["Acme", "a, b"], strict=True))


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16"])
def test_a_file_in_utf_16_is_refused_by_that_name(form: str, encoding: str) -> None:
    with pytest.raises(UserError, match="UTF-8"):
        list(read_rows(io.BytesIO('\ufeff{"id":1},id,name\r\n5,Acme\r\n'.encode(encoding)), form, "publisher"))


def test_synthetic_events_name_only_entries_of_their_directory(tmp_path: Path) -> None:
    spec = Spec(events=20_000, campaigns=40, publishers=60, start_ms=1_795_132_800_000)
    files = [tmp_path / "a", tmp_path / "b"]
    assert write_directory(spec, files[0]) == write_directory(spec, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    with files[0].open("rb") as file:
        entries = [row for _, row in read_rows(file, "ndjson", None)]
    assert not [row for row in entries if isinstance(row, BadEntry)]
    known = {(kind_of(entry), entry.id): entry for entry in entries}  # type: ignore[arg-type, union-attr]
    counts = generate_events(spec).truth.counts
    for kind in KINDS:
        assert {(kind, id_) for id_ in counts[f"{kind}_id"].to_list()} <= known.keys()
    owners = {(row["campaign_id"], row["advertiser_id"]) for row in counts.iter_rows(named=True)}
    assert {(e.id, e.advertiser_id) for e in known.values() if isinstance(e, Campaign)} >= owners
    assert HALF_HOUR_ZONE in files[0].read_text()


@settings(max_examples=40)
@given(st.lists(st.tuples(_entries(), st.booleans()), max_size=20), st.integers(1, 5))
def test_a_snapshot_that_follows_has_what_was_written_last(writes: list[tuple[Entry, bool]], pace: int) -> None:
    followed, truth = Snapshot.empty(), dict[tuple[str, int], Entry]()
    for first in range(0, len(writes), pace):
        batch = {(kind_of(entry), entry.id): (entry, deleted) for entry, deleted in writes[first : first + pace]}
        changes = [Change(entry, None) if deleted else Change(None, entry) for entry, deleted in batch.values()]
        followed = followed.with_rows(rows_of(changes, first + 1))
        for key, (entry, deleted) in batch.items():
            truth.pop(key, None)
            truth |= {} if deleted else {key: entry}
    for kind in KINDS:
        expected = {id_: entry for (of, id_), entry in truth.items() if of == kind}
        assert followed.entries(kind, [*expected, 2**62 + 1]) == [*expected.values(), expected.get(2**62 + 1)]
        pages, after = list[tuple[str, int]](), None
        while True:
            page, after = followed.search(Search(kind, limit=3, after=after), RowScope())
            pages += [(entry["name"], entry["id"]) for entry in page]
            if after is None:
                break
        assert sorted(pages) == sorted((entry.name, entry.id) for entry in expected.values())
        assert [name for name, _ in pages] == sorted((name for name, _ in pages), key=fold)


def test_a_name_that_may_not_be_seen_is_a_number() -> None:
    snapshot = Snapshot.empty().with_rows(
        rows_of([Change(None, entry) for entry in (Campaign(7, "Mine", 1), Campaign(8, "Other", 2), Ad(9, "Ad", 8))], 1)
    )
    ids = np.array([8, 7, 7, 99])

    def shown(dimension: str, scope: RowScope) -> list[str]:
        names, numbers = Names(snapshot, scope).of(dimension, ids)
        return [str(names[int(number)]) for number in numbers]

    assert shown("campaign_id", RowScope()) == ["Other", "Mine", "Mine", "99"]
    assert shown("campaign_id", RowScope(frozenset({1}))) == ["8", "Mine", "Mine", "99"]
    assert shown("campaign_id", RowScope(None, frozenset({8}))) == ["Other", "7", "7", "99"]
    assert shown("ad_id", RowScope(frozenset({1}))) == ["8", "7", "7", "99"]
