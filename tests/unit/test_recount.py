"""The recount of a day against a count row by row, over generated archives in which ids repeat in every way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch import archived_rows, corrections, move_tables, recount
from infra.clock import DAY_MS, HOUR_MS
from ingest.archive.files import UnreadableFile

DAY = 1_000 * DAY_MS
_TIMES = [DAY - HOUR_MS, DAY, DAY + HOUR_MS, DAY + 2 * HOUR_MS - 1, DAY + DAY_MS - 1, DAY + DAY_MS]


def _row(offset: int, **more: Any) -> dict[str, Any]:
    return {
        "event_id": "e", "partition": 0, "offset": offset, "log_time_ms": DAY + offset, "time_ms": DAY, "event_type": "click",
        "campaign_id": 1, "advertiser_id": 2, "ad_id": 3, "publisher_id": 4, "country": "DE", "device": "mobile",
        "cost_micros": 7, "decision": "counted", "weight": 1, "lateness": 0,
    } | more  # fmt: skip


_ELSEWHERE = 4096
"""The first partition of another region."""
_EVENTS = st.lists(
    st.fixed_dictionaries(
        {
            "event_id": st.sampled_from("abcde"), "partition": st.sampled_from([0, 0, 1, _ELSEWHERE]), "time_ms": st.sampled_from(_TIMES),
            "event_type": st.sampled_from(["click", "impression"]), "campaign_id": st.integers(1, 2),
            "decision": st.sampled_from(["counted", "counted", "copy", "too-late", "shed", "doubt"]),
            "weight": st.sampled_from([1, 1, 1, 4]), "lateness": st.sampled_from([0, 0, 1, 2]),
            "log_time_ms": st.sampled_from([DAY, DAY + 1]),
        }
    ),
    min_size=1, max_size=14,
)  # fmt: skip
_SCHEMA = {
    "event_type": pl.Categorical(), "decision": pl.Categorical(), "country": pl.Categorical(), "device": pl.Categorical(),
    "weight": pl.UInt32(), "lateness": pl.UInt8(), "partition": pl.Int32(),
}  # fmt: skip


def _frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema_overrides=_SCHEMA, infer_schema_length=None)


def _in_two_steps(
    rows: pl.DataFrame, files: int, letters: archived_rows.RejectedIds = archived_rows.NO_REJECTED_IDS
) -> tuple[pl.DataFrame, recount.Totals]:
    """Count as the job does: each file alone, and then the ids that files share."""
    rows = archived_rows.with_codes(rows)
    rows = archived_rows.with_hashes(rows[archived_rows.rows_near(rows, DAY)], letters)
    counted = [recount.count_alone(rows[n::files], DAY) for n in range(files)]
    repeated = rows.filter(pl.Series(archived_rows.repeated_hashes(rows["hash"].to_numpy()), dtype=pl.Boolean))
    counted.append(corrections.count_corrections(repeated, DAY))
    return move_tables.merge_moves([c.moves for c in counted]), sum((c.totals for c in counted), recount.Totals())


@given(_EVENTS, st.integers(1, 3), st.booleans())
def test_a_recount_equals_a_count_row_by_row(rows_drawn: list[dict[str, Any]], files: int, read_twice: bool) -> None:
    rows = [_row(n, **row) for n, row in enumerate(rows_drawn)]
    moves, totals = _in_two_steps(_frame(rows + (rows[:3] if read_twice else [])), files)
    exact, stream = Counter[Any](), Counter[Any]()
    seen_ids = set()
    for row in sorted(rows, key=lambda r: (r["log_time_ms"], r["partition"], r["offset"])):
        if not DAY - DAY_MS <= row["time_ms"] < DAY + 2 * DAY_MS:
            continue
        key = (row["time_ms"] // HOUR_MS * HOUR_MS, row["campaign_id"], row["event_type"])
        if row["event_id"] not in seen_ids:
            exact[key] += 1
        seen_ids.add(row["event_id"])
        if row["decision"] == "counted" and row["partition"] < _ELSEWHERE:
            stream[key] += row["weight"]

    def of_day(counts: Counter[Any]) -> dict[Any, int]:
        return {key: n for key, n in counts.items() if n and DAY <= key[0] < DAY + DAY_MS}

    recounted, explained = Counter[Any](), Counter[Any]()
    for row in moves.iter_rows(named=True):
        for kind in ("click", "impression"):
            key = (row["hour_ms"], row["campaign_id"], kind)
            (recounted if row["cause"] == move_tables.EXACT else explained)[key] += row[f"{kind}s"]
    assert of_day(recounted) == of_day(exact)
    # Causes explain all of the difference, but for ids of which the stream counted no row, and the first was taken for a copy.
    unexplained = Counter(recounted)
    unexplained.subtract(stream)
    unexplained.subtract(explained)
    orphans = Counter[Any]()
    first: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda r: (r["log_time_ms"], r["partition"], r["offset"])):
        if DAY - DAY_MS <= row["time_ms"] < DAY + 2 * DAY_MS:
            first.setdefault(row["event_id"], row)
    own = [r for r in rows if r["partition"] < _ELSEWHERE]
    counted_ids = {r["event_id"] for r in own if r["decision"] == "counted" and r["time_ms"] >= DAY - DAY_MS}
    for id_, row in first.items():
        if row["decision"] == "copy" and row["partition"] < _ELSEWHERE and id_ not in counted_ids:
            orphans[(row["time_ms"] // HOUR_MS * HOUR_MS, row["campaign_id"], row["event_type"])] += 1
    assert of_day(unexplained) == of_day(orphans)
    assert totals.rows == sum(DAY <= r["time_ms"] < DAY + DAY_MS for r in rows)


def test_the_digest_does_not_depend_on_how_rows_are_spread_over_files() -> None:
    rows = [_row(n, event_id=str(n % 7), partition=n % 2) for n in range(50)]
    whole = _in_two_steps(_frame(rows), 1)[1]
    assert _in_two_steps(_frame(rows[::-1] + rows[:20]), 3)[1] == whole
    assert _in_two_steps(_frame(rows[1:]), 1)[1].digest != whole.digest


def test_each_difference_has_its_cause() -> None:
    other = {"campaign_id": 9}
    rows = [
        _row(0, event_id="late", decision="too-late"),
        _row(1, event_id="shed", decision="shed"),
        _row(2, event_id="weighed", weight=3),
        _row(3, event_id="doubt", decision="doubt"),
        _row(4, event_id="across"), _row(4, event_id="across", partition=1),
        _row(5, event_id="expired"), _row(6, event_id="expired"),
        _row(7, event_id="unlike"), _row(8, event_id="unlike", **other),
        _row(9, event_id="swapped", decision="too-late"), _row(10, event_id="swapped", **other),
        _row(11, event_id="stands", decision="too-late"), _row(12, event_id="stands"),
        _row(13, event_id="again", decision="too-late"), _row(14, event_id="before", decision="too-late"),
        _row(15, event_id="elsewhere", partition=_ELSEWHERE), _row(15, event_id="elsewhere", partition=2 * _ELSEWHERE),
        _row(16, event_id="both", partition=_ELSEWHERE), _row(17, event_id="both"),
    ]  # fmt: skip
    replayed = pl.DataFrame({"event_id": ["again", "before"], "time_ms": [DAY + 13, DAY + 15]})
    order = np.argsort(archived_rows.id_hashes(replayed))
    letters = archived_rows.RejectedIds(archived_rows.id_hashes(replayed)[order], replayed["time_ms"].to_numpy()[order])
    moves, totals = _in_two_steps(_frame(rows), 2, letters)
    by_cause = (
        moves.with_columns(pl.col("cause").cast(pl.String))
        .group_by("cause", "campaign_id")
        .agg(pl.sum("clicks"))
        .sort("cause", "campaign_id")
        .rows()
    )
    assert by_cause == [
        ("conflicting-copy", 1, 1), ("conflicting-copy", 9, -2), ("cross-partition-duplicate", 1, -1),
        ("dead-letter-replayed", 1, 1), ("doubt", 1, 1), ("exact", 1, 13), ("expired-horizon-duplicate", 1, -1),
        ("late", 1, 2), ("other-region", 1, 1), ("shed", 1, -1),
    ]  # fmt: skip
    assert totals.rows == len(rows)


@pytest.mark.parametrize("wrong", ["gone", "cut", "a column less", "a name that came later"])
def test_a_file_that_cannot_be_counted_is_named(tmp_path: Path, wrong: str) -> None:
    name = "p0000-000000000000000-000000000000009.parquet"
    file = tmp_path / name
    rows = _frame([_row(n) for n in range(9)])
    if wrong == "a name that came later":
        rows = rows.with_columns(device=pl.lit("glasses", pl.Categorical()))
    rows.drop("weight" if wrong == "a column less" else []).write_parquet(file)
    if wrong == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    if wrong == "gone":
        file.unlink()
    with pytest.raises(UnreadableFile, match=str(file)):
        archived_rows.read_rows(archived_rows.Archives([str(tmp_path)]), [f"0:{name}"])


def test_repeated_hashes_are_detected() -> None:
    hashes = np.array([5, 1, 5, 2, 1, 1, 9], np.uint64)
    assert archived_rows.repeated_hashes(hashes).tolist() == [True, True, True, False, True, True, False]


@given(
    _EVENTS,
    st.dictionaries(
        st.sampled_from([DAY - DAY_MS, DAY]), st.dictionaries(st.sampled_from([0, 1, _ELSEWHERE]), st.integers(0, 14))
    ),
    st.sampled_from([1, _ELSEWHERE]),
)
def test_events_that_no_bill_has_are_those_behind_what_the_run_of_their_day_read(
    rows_drawn: list[dict[str, Any]], billed: dict[int, dict[int, int]], times: int
) -> None:
    rows = [_row(n, **row | {"partition": row["partition"] * times}) for n, row in enumerate(rows_drawn)]
    unbilled = recount.count_unbilled(archived_rows.with_codes(_frame(rows)), billed, DAY + DAY_MS)
    late, never = Counter[int](), Counter[int]()
    for row in rows:
        day_ms = row["time_ms"] // DAY_MS * DAY_MS
        if row["decision"] == "copy" or day_ms > DAY:
            continue
        if day_ms not in billed:
            never[day_ms] += 1
        elif billed[day_ms] and row["offset"] >= billed[day_ms].get(row["partition"], 0):
            late[day_ms] += 1
    assert (unbilled.late, unbilled.never) == (late, never)


def test_files_of_two_archives_are_read_as_two_regions(tmp_path: Path) -> None:
    name = "p0001-000000000000000-000000000000009.parquet"
    for region in ("own", "other"):
        (tmp_path / region).mkdir()
        _frame([_row(n, event_id=f"{region}{n}", partition=1) for n in range(2)]).write_parquet(
            tmp_path / region / name
        )
    archives = archived_rows.Archives([str(tmp_path / "own"), str(tmp_path / "other")])
    rows = archived_rows.read_rows(archives, [f"0:{name}", f"1:{name}"])
    assert list(zip(rows["event_id"], rows["partition"], strict=True)) == [
        ("own0", 1), ("own1", 1), ("other0", _ELSEWHERE + 1), ("other1", _ELSEWHERE + 1),
    ]  # fmt: skip
