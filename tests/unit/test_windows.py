"""A window consists of frozen pieces: adding rows gives another window, and a piece is merged once for all that share it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from ingest import partials
from ingest.partials import Partials
from stream.window import Window, WindowPiece
from tests.unit.test_partials_and_cells import frame, partial


def rows(*campaigns: int, impressions: int = 1) -> Partials:
    return partials.merge_partials([frame([partial(campaign_id=c, impressions=impressions) for c in campaigns])])


def total(part: Partials) -> int:
    return int(part["impressions"].sum())


def test_adding_rows_gives_a_new_window_that_shares_the_pieces_of_the_former() -> None:
    before = Window(0).with_rows(rows(1)).with_rows(rows(1, 2))
    after = before.with_rows(rows(3, impressions=5))
    assert (total(before.whole()), total(after.whole())) == (3, 8)
    assert all(a is b for a, b in zip(before.pieces, after.pieces, strict=False))


@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_pieces_are_merged_so_that_few_are_left_and_no_row_is_lost(count: int) -> None:
    window = Window(0)
    for _ in range(count):
        window = window.with_rows(rows(1, 2), merge_pieces=4)
    assert total(window.whole()) == 2 * count
    assert len(window.pieces) <= 4 + count.bit_length()


def test_a_gathered_window_is_merged_once_for_all_that_share_it() -> None:
    gathered = Window(0).with_rows(rows(1)).with_rows(rows(1)).gathered()
    later = gathered.with_rows(rows(2))
    assert len(later.parts) == 3
    assert len(gathered.whole()) == 1
    assert len(later.parts) == 2, "the later window has the merged rows, too"
    assert gathered.whole() is gathered.pieces[0].merged()
    assert total(later.whole()) == 3


def test_merging_changes_no_answer() -> None:
    window = Window(0).with_rows(rows(1, 2)).with_rows(rows(2, 3)).gathered()
    campaigns = rows(2, 3)["campaign_id"].astype("int64")
    before = [total(window.of(campaigns, whole=whole)) for whole in (False, True)]
    window.whole()
    assert [total(window.of(campaigns, whole=whole)) for whole in (False, True)] == before == [3, 3]
    assert window.count(2) == 1


def test_two_threads_that_merge_a_piece_at_once_get_equal_rows() -> None:
    for _ in range(20):
        piece = WindowPiece(*(rows(*range(50)) for _ in range(20)))
        with ThreadPoolExecutor(4) as threads:
            results = list(threads.map(lambda p: total(p.merged()), [piece] * 4))
        assert results == [1000] * 4


def test_a_window_without_rows_is_empty_and_whole() -> None:
    assert len(Window(0).whole()) == 0
