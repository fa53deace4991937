"""The compiled SipHash against the vectors that its authors published (key 00 … 0f, messages of 0, 1, 2 … bytes)."""

from __future__ import annotations

import numpy as np
import pytest

from infra.columnar.columns import PADDING, Values
from infra.columnar.siphash import siphash

KEY = bytes(range(16))
VECTORS = {
    0: "a3817f04ba25a8e66df67214c7550293", 1: "da87c1d86b99af44347659119b22fc45", 2: "8177228da4a45dc7fca38bdef60affe4",
    7: "a1f1ebbed8dbc153c0b84aa61ff08239", 8: "3b62a9ba6258f5610f83e264f31497b4", 15: "5493e99933b0a8117e08ec0f97cfc3d9",
    63: "5150d1772f50834a503e069a973fbd7c",
}  # fmt: skip


@pytest.mark.parametrize(("length", "expected"), VECTORS.items())
def test_hashes_equal_the_published_vectors(length: int, expected: str) -> None:
    text = Values.of([bytes(range(length))])
    assert siphash(text, KEY).astype("<u8").tobytes().hex() == expected


def test_the_hash_of_a_text_depends_on_no_other_text_and_no_offset() -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, 4_000 + PADDING, dtype=np.uint8)
    starts = rng.integers(0, 3_800, 300)
    texts = Values(data, starts, starts + rng.integers(0, 129, 300))
    together = siphash(texts, KEY)
    for i in range(300):
        assert (siphash(Values.of([texts[i]]), KEY) == together[i]).all()
