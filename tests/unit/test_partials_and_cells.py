"""Folding, rolling up and packing keep every sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.errors import CorruptLog
from ingest import blocks, partials, salting
from ingest.blocks import SourceRange
from ingest.partials import Partials
from query.tiers.fold import fold
from stream import chunks
from stream.hot import cell_format

HOUR = 3_600_000


def partial(**changes: Any) -> dict[str, Any]:
    base = dict.fromkeys((*partials.KEYS, *partials.SUMS), 1) | {"window_ms": 60_000}
    return base | changes


_rows = st.lists(
    st.fixed_dictionaries(
        {
            "window_ms": st.integers(0, 200).map(lambda m: m * 60_000),
            "campaign_id": st.integers(1, 3),
            "ad_id": st.integers(1, 2),
            "country": st.integers(0, 3),
            "impressions": st.integers(0, 50),
            "spend_micros": st.integers(0, 10**14),
            "late": st.integers(0, 2),
        }
    ).map(lambda r: partial(**r)),
    max_size=40,
)


def as_frame(rows: Partials) -> pl.DataFrame:
    """With 64 bits for each sum and key."""
    return pl.DataFrame({name: column.astype(np.int64) for name, column in rows.columns.items()})


def frame(rows: list[dict[str, Any]]) -> Partials:
    names = (*partials.KEYS, *partials.SUMS)
    return Partials.of({name: np.array([row[name] for row in rows], np.int64) for name in names})


def totals(rows: Partials, *keys: str) -> dict[Any, Any]:
    sums = as_frame(rows).group_by(keys).agg(pl.col(list(partials.SUMS)).sum())
    return {row[: len(keys)]: row[len(keys) :] for row in sums.iter_rows()}


@given(_rows, st.integers(0, 40))
def test_rolling_up_preserves_sums_and_order_does_not_matter(rows: list[dict[str, Any]], cut: int) -> None:
    whole = frame(rows)
    parts = [whole.take(slice(cut, None)), whole.take(slice(None, cut))]
    split = partials.merge_partials([partials.widened(part, HOUR) for part in parts])
    direct = partials.merge_partials([partials.widened(partials.merge_partials([whole]), HOUR)])
    assert totals(split, *partials.KEYS) == totals(direct, *partials.KEYS)
    assert len(split) == len(totals(split, *partials.KEYS)) == len(partials.merge_partials([split]))
    assert (split["window_ms"] % HOUR == 0).all()
    for keys in (("campaign_id",), ("ad_id", "country")):
        assert totals(split, *keys) == totals(whole, *keys)


@given(_rows, _rows)
def test_among_keeps_the_rows_whose_keys_others_have(
    drawn_rows: list[dict[str, Any]], drawn_others: list[dict[str, Any]]
) -> None:
    rows, others = partials.merge_partials([frame(drawn_rows)]), frame(drawn_others)
    shared = totals(rows, *partials.KEYS).keys() & totals(others, *partials.KEYS).keys()
    kept = totals(partials.among(rows, others), *partials.KEYS)
    assert kept == {key: sums for key, sums in totals(rows, *partials.KEYS).items() if key in shared}


@given(_rows, st.integers(1, 8))
def test_every_partial_goes_to_exactly_one_shard(rows: list[dict[str, Any]], shards: int) -> None:
    whole = frame(rows)
    assigned = salting.assign_shards(whole, shards)
    assert len(assigned) == len(whole)
    assert all(0 <= s < shards for s in assigned)


def test_a_hot_campaign_is_spread_and_a_small_one_is_not() -> None:
    hot = frame([partial(campaign_id=1, ad_id=n) for n in range(400)])
    small = frame([partial(campaign_id=2, ad_id=n) for n in range(20)])
    assigned = salting.assign_shards(Partials.joined([hot, small]), 4)
    assert len(set(assigned[:400].tolist())) == 4
    assert len(set(assigned[400:].tolist())) == 1


def test_a_sum_that_would_overflow_is_refused() -> None:
    big = frame([partial(spend_micros=2**61), partial(spend_micros=2**61)])
    with pytest.raises(OverflowError):
        partials.merge_partials([big])


def chunk_frame(rows: list[dict[str, Any]]) -> Partials:
    return frame(rows).with_column(chunks.CHANGED, np.zeros(len(rows), np.int64))


_DIMENSIONS = ("advertiser_id", "ad_id", "publisher_id", "country", "device")


@given(_rows, st.sampled_from([0, 2**40, 2**62]), st.sets(st.sampled_from(_DIMENSIONS)), st.booleans())
def test_packed_rows_add_up_to_what_was_packed(
    rows: list[dict[str, Any]], large: int, group_by: set[str], filtered: bool
) -> None:
    if large:
        # So that sums of two do not fit into 64 bits.
        rows = [*rows, *(partial(impressions=2**40, spend_micros=large + n, ad_id=n) for n in range(2))]
    chunk, dimensions = chunk_frame(rows), sorted(group_by)
    cells, values, _ = cell_format.pack(chunk)
    assert len(set(cells)) == len(cells) == len(values)
    folded = fold(values, range(len(values)), dimensions, [("country", [0, 3]), ("ad_id", [0, 1])] if filtered else [])
    summed = ("impressions", "clicks", "conversions", "late_events", "late_clicks", "spend_micros")
    groups = zip(
        (cells[place] for place in folded.places), *(g.tolist() for g in folded.groups),
        *(folded.sums[name].tolist() for name in summed), strict=True,
    )  # fmt: skip
    expected: dict[Any, list[int]] = {}
    for row in as_frame(chunk).iter_rows(named=True):
        if not filtered or (row["country"] in (0, 3) and row["ad_id"] in (0, 1)):
            key = ((row["window_ms"], row["campaign_id"]), *(row[d] for d in dimensions))
            expected[key] = [
                a + row[name] for a, name in zip(expected.get(key, [0] * len(summed)), summed, strict=True)
            ]
    assert {row[: 1 + len(dimensions)]: list(row[1 + len(dimensions) :]) for row in groups} == expected
    assert folded.rows_read == len(rows)


def test_narrow_and_wide_values_of_one_cell_are_added_up() -> None:
    _, narrow, _ = cell_format.pack(chunk_frame([partial()]))
    _, wide, _ = cell_format.pack(chunk_frame([partial(clicks=2**33)]))
    folded = fold([*narrow, *wide, *narrow], [4, 2, 2], [], [])
    assert dict(zip(folded.places.tolist(), folded.sums["clicks"].tolist(), strict=True)) == {4: 1, 2: 2**33 + 1}


def test_a_block_survives_encoding_in_parts_below_the_size_limit() -> None:
    many = frame([partial(ad_id=n) for n in range(45_000)])
    ranges = (SourceRange(0, 10, 20, 5, False), SourceRange(1, 0, 0, None, True))
    messages = list(blocks.encode_block(blocks.split_rows(many.arrow()), ranges, 7))
    assert len(messages) == 3
    assert max(map(len, messages)) < blocks.MAX_BLOCK_BYTES
    decoded = [blocks.decode_block(m, "here") for m in messages]
    assert as_frame(Partials.joined([Partials.of_arrow(f) for f, _ in decoded])).equals(as_frame(many))
    assert [(h.part, h.parts, h.ranges) for _, h in decoded] == [(n, 3, ranges) for n in range(3)]


@pytest.mark.parametrize("value", [b"", b"nonsense", b"\xff" * 100])
def test_a_message_that_is_no_block_stops_the_reader(value: bytes) -> None:
    with pytest.raises(CorruptLog):
        blocks.decode_block(value, "ad-blocks/0/7")


def test_an_unknown_schema_version_is_named() -> None:
    with pytest.raises(CorruptLog, match="ad-blocks/0/7: schema version 99"):
        blocks.decode_block(blocks.pack_rows(partials.empty_partials().arrow(), b'{"version":99}'), "ad-blocks/0/7")


@pytest.mark.parametrize(("start", "word"), [(9, "overlap"), (11, "hole")])
def test_ranges_must_tile(start: int, word: str) -> None:
    with pytest.raises(CorruptLog, match=word):
        blocks.check_tiles(10, SourceRange(3, start, 20, None, False), "here")
    blocks.check_tiles(10, SourceRange(3, 10, 20, None, False), "here")
    blocks.check_tiles(None, SourceRange(3, start, 20, None, False), "here")
