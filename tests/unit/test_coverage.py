"""Which gaps of a day's proof have messages, compared with gaps that are looked into one by one; and what a letter's header may claim."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from batch.coverage import Stretch, clip_to, find_occupied
from infra.columnar.columns import Values
from infra.kafka.record_batches import CorruptBatch, Records


def _records(offsets: list[int], next_offset: int) -> Records:
    numbers, texts = np.array(offsets, np.int64), Values.of([b"{}"] * len(offsets))
    return Records(numbers, numbers, texts, texts, next_offset)


@given(st.lists(st.sampled_from("gap seen mark".split()), max_size=60), st.integers(0, 5), st.data())
def test_gaps_with_messages_are_found_in_one_pass(offsets: list[str], base: int, data: st.DataObject) -> None:
    # "mark": an offset that nothing was seen of, and that has no message.
    size = len(offsets)
    corrupt = sorted(data.draw(st.sets(st.integers(0, max(0, size - 1)), max_size=3)))
    reads, gaps = list[tuple[int, int]](), list[Stretch]()
    for n, kind in enumerate(offsets):
        if kind == "seen":
            continue
        if n and offsets[n - 1] != "seen":
            gaps[-1] = Stretch(0, gaps[-1].from_offset, n + 1 + base)
        else:
            gaps.append(Stretch(0, n + base, n + 1 + base))

    def read(first: int, end: int) -> Iterator[Records]:
        reads.append((first, end))
        for n in range(first, end):
            if n in corrupt:
                raise CorruptBatch(n, "cannot be decompressed")
            yield _records([] if offsets[n] == "mark" else [n], n + 1)

    expected = [
        gap
        for gap in gaps
        if any(offsets[n] == "gap" or n in corrupt for n in range(gap.from_offset - base, gap.to_offset - base))
    ]
    if gaps:
        assert find_occupied(gaps, base, read) == expected
        assert len(reads) <= 1 + len(corrupt)


def test_what_a_letter_claims_is_clipped_to_what_is_looked_at() -> None:
    looked_at = [Stretch(0, 10, 20), Stretch(1, 0, 5)]
    claims = [
        Stretch(0, 15, 15 + 999_999_999), Stretch(0, 0, 10), Stretch(0, 5, 12), Stretch(1, 2, 3), Stretch(7, 0, 999_999_999),
    ]  # fmt: skip
    assert clip_to(claims, looked_at) == [Stretch(0, 15, 20), Stretch(0, 10, 12), Stretch(1, 2, 3)]
