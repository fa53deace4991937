"""What a trace says of an event: the same as the recount of its day, in sentences; and what an id may be."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from batch import archived_rows, move_tables
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS
from infra.errors import UsageError
from infra.file_store import FileStore
from ingest.archive import files as archive_files
from ingest.archive import schema as archive_schema
from ingest.archive import search
from ingest.archive import worker as archive_worker
from ingest.archive.search import ArchivedMessage
from ingest.dead_letters.letters import LettersSearch, is_about
from query.runs import PublishedRun
from query.trace.billing import BillingReader
from query.trace.command import parse_id, parse_range
from query.trace.gather import SearchRange, TracedEvent, note_set_aside
from query.trace.verdicts import explain_decision, judge_night
from tests.unit.test_recount import _EVENTS, _frame, _in_two_steps, _row

DAY = 1_000 * DAY_MS


def message(offset: int, **more: Any) -> ArchivedMessage:
    return ArchivedMessage(**(_row(offset) | {"copy_of": None} | more))


@given(_EVENTS, st.booleans())
# Of three rows the first is not counted; the third is in the partition of the second, or of the first.
@example([{"decision": "too-late"}, {"partition": 1}, {"partition": 1}], False)
@example([{"decision": "too-late"}, {"partition": 1}, {"partition": 0}], False)
# Copies two days apart both count.
@example([{"time_ms": DAY - DAY_MS - 1}, {}], False)
def test_the_verdicts_on_each_message_add_up_to_the_recount_of_its_day(
    drawn: list[dict[str, Any]], rejected: bool
) -> None:
    # A trace searches the archive of its own region.
    rows = [_row(n, **row | {"partition": row.get("partition", 0) % 2}) for n, row in enumerate(drawn)]
    letters, rejected_ms = archived_rows.NO_REJECTED_IDS, None
    if rejected:
        rejected_ms = DAY
        ids = pl.DataFrame({"event_id": list("abcde")})
        hashes = np.sort(archived_rows.id_hashes(ids))
        letters = archived_rows.RejectedIds(hashes, np.full(5, rejected_ms))
    moves, _ = _in_two_steps(_frame(rows), 1, letters)
    recounted = Counter[Any]()
    for row in moves.iter_rows(named=True):
        for kind in ("click", "impression"):
            recounted[row["cause"], row["hour_ms"], row["campaign_id"], kind] += row[f"{kind}s"]
    traced = Counter[Any]()
    by_id = sorted((ArchivedMessage(copy_of=None, **row) for row in rows), key=lambda m: m.event_id)
    for _, group in groupby(by_id, lambda m: m.event_id):
        of_id = list(group)
        for m in of_id:
            if not DAY <= m.time_ms < DAY + DAY_MS:
                continue
            verdict = judge_night(m, of_id, rejected_ms)
            place = (m.time_ms // HOUR_MS * HOUR_MS, m.campaign_id, m.event_type)
            traced[move_tables.EXACT, *place] += verdict.counts
            traced[verdict.cause, *place] += verdict.moved
    assert {key: n for key, n in traced.items() if n} == {key: n for key, n in recounted.items() if n}


@pytest.mark.parametrize(
    ("other_ends", "paths", "has_read"),
    [
        ({}, ["/eu/event_date=1972-09-27/hour=00/{file}"], True),
        ({}, ["/before/a/move/event_date=1972-09-27/hour=00/{file}"], True),
        ({"us": [9]}, ["/eu/event_date=1972-09-27/hour=00/{file}"], True),
        ({"us": [9]}, ["/us/event_date=1972-09-27/hour=00/{file}"], False),
        ({"us": [9]}, ["/eu/us/event_date=1972-09-27/hour=00/{file}"], False),
    ],
)
def test_a_run_has_read_a_message_if_it_has_read_the_file_of_this_regions_archive(
    other_ends: dict[str, list[int]], paths: list[str], has_read: bool
) -> None:
    file = archive_files.file_name(0, 10, 20)
    paths = [path.format(file=file) for path in paths]
    run = PublishedRun(dt.date(1972, 9, 27), "a", 0, True, True, 0, {"ends": [0], "other_ends": other_ends})

    def rows(_: str, parameters: dict[str, Any]) -> list[Any]:
        of_root = [path for path in paths if path.startswith(parameters["root"])]
        return [(len(of_root), of_root)]

    traced = message(15, file=f"event_date=1972-09-27/hour=00/{file}")
    client = cast(ClickHouse, SimpleNamespace(database="adclick", rows=rows))
    assert BillingReader(client, "/eu", [traced], None)._read_by(run) == ([traced] if has_read else [])


def test_an_event_that_may_be_in_a_batch_set_aside_unread_is_not_simply_not_found() -> None:
    def traced(**more: Any) -> TracedEvent:
        event = TracedEvent("e", SearchRange(0), "/eu", letters=LettersSearch(set_aside=1_200), **more)
        note_set_aside(event)
        return event

    text = "1,200 messages were set aside unread: the event may be among them"
    assert traced().describe_problems() == f"dead letters: {text}"
    assert traced(problems={"dead letters": "time ran out"}).problems == {"dead letters": f"time ran out; {text}"}
    assert traced(messages=[message(1)]).describe_problems() == ""


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "counted"),
        ({"lateness": 1}, "late by up to 5 min"),
        ({"lateness": 2}, "late_events"),
        ({"weight": 10}, "standing for 10 events"),
        ({"decision": "copy", "copy_of": 17, "partition": 3}, "copy of 3/17"),
        ({"decision": "too-late", "lateness": 3}, "more than 1 h behind"),
        ({"decision": "shed"}, "overloaded"),
        ({"decision": "doubt"}, "Redis has lost"),
    ],
)
def test_each_decision_is_explained(facts: dict[str, Any], expected: str) -> None:
    assert expected in explain_decision(message(20, **facts))


def test_files_are_searched_by_id_alone_and_an_unreadable_one_is_named(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path))
    facts: dict[str, Any] = dict.fromkeys(archive_schema.SCHEMA.names, 0) | {"copy_of": None, "user": None}
    # The first and the last row of a file, an id that begins like another one, and one that is no ASCII.
    ids = ["a", "ab", "b", "ü\x1b", "a"]
    rows = [facts | {"event_id": id_, "offset": n, "time_ms": DAY + n} for n, id_ in enumerate(ids)]
    wire = pa.Table.from_pylist(rows, schema=archive_schema.SCHEMA)
    archive_worker.write_files(store, 2, 0, 5, wire)
    archive_worker.write_files(store, 2, 5, 9, wire.slice(1, 2))
    (broken,) = tmp_path.rglob("*-000000000000009.parquet")
    broken.write_bytes(broken.read_bytes()[:-20])
    files = archive_files.parse_names(store.files())
    found = search.search_files(store, files, "a")
    assert [m.place for m in found.messages] == [(2, 0), (2, 4)]
    assert (found.files, found.rows, len(found.unreadable)) == (1, 5, 1)
    assert broken.name in found.unreadable[0]
    assert [m.offset for m in search.search_files(store, files, "ü\x1b").messages] == [3]
    assert search.search_files(store, files, "").messages == []
    assert [file.to_offset for file in search.files_with(files, {2: [6], 1: [0]})] == [9]


@pytest.mark.parametrize(
    ("event_id", "key", "value", "expected"),
    [
        ("9f1c", b"9f1c", None, True),
        ("9f1c", None, b'{"event_id": "9f1c"}', True),
        ("9f1c", None, b'{"event_id": "9f1c7"}', False),
        ("9f1c", b"other", b'{"event_id":"9f1', False),
        # A truncated message, whose id cannot be read.
        ("9f1c", None, b'{"event_id":"9f1c","event_ty', True),
        ("9f1c", None, b'{"event_id":"7","ad":"9f1c"}', False),
        ("ü", None, rb'{"event_id":"\u00fc"}', True),
        ("a\0b", None, rb'{"event_id":"a\u0000b"}', True),
    ],
)
def test_a_message_is_about_an_event_by_its_key_or_its_id_however_written(
    event_id: str, key: bytes | None, value: bytes | None, expected: bool
) -> None:
    assert is_about(event_id, key, value) is expected


def test_an_id_in_quotes_is_json() -> None:
    assert [parse_id(text) for text in ("9f1c", '"a\\u0000b"', '"\\"quoted\\""')] == ["9f1c", "a\0b", '"quoted"']
    for wrong in ("", '""', '"\\x1b"'):
        with pytest.raises(UsageError):
            parse_id(wrong)


def test_ranges() -> None:
    now = DAY + 5 * HOUR_MS
    assert parse_range(None, None, now) == SearchRange(DAY - 2 * DAY_MS)
    assert parse_range(None, "-90m", now) == SearchRange(now - 90 * MINUTE_MS)
    day = parse_range("1972-09-27", None, now)
    assert day == SearchRange(DAY, DAY + DAY_MS)
    assert parse_range(None, "1972-09-27", now).start_ms == DAY
    hours = {h: day.has(archive_files.folder_name("1972-09-27", h)) for h in (0, 23)}
    assert hours == {0: True, 23: True}
    assert not day.has(archive_files.folder_name("1972-09-28", 0))
    assert SearchRange(now - 90 * MINUTE_MS).has(archive_files.folder_name("1972-09-27", 3))
    assert not SearchRange(now - 90 * MINUTE_MS).has(archive_files.folder_name("1972-09-27", 2))
    for date, since in (("today", None), (None, "yesterday"), ("1972-09-27", "-1h")):
        with pytest.raises(UsageError):
            parse_range(date, since, now)
