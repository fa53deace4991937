"""The columnar SipHash against the vectors that its authors published (key 00 … 0f, messages of 0, 1, 2 … bytes)."""

from __future__ import annotations

import numpy as np
import pytest

from ingest.siphash import siphash

KEY = bytes(range(16))
VECTORS = {
    0: "310e0edd47db6f72", 1: "fd67dc93c539f874", 2: "5a4fa9d909806c0d", 7: "37d1018bf50002ab", 8: "6224939a79f5f593",
    15: "e545be4961ca29a1", 63: "724506eb4c328a95",
}  # fmt: skip


@pytest.mark.parametrize(("length", "wanted"), VECTORS.items())
def test_the_published_vectors(length: int, wanted: str) -> None:
    data = np.arange(64, dtype=np.uint8)
    assert siphash(data, np.array([0]), np.array([length]), KEY).astype("<u8").tobytes().hex() == wanted


def test_a_text_hashes_alike_among_any_others_and_wherever_it_lies() -> None:
    rng = np.random.default_rng(1)
    data = rng.integers(0, 256, 4_000, dtype=np.uint8)
    start = rng.integers(0, 3_800, 300)
    length = rng.integers(0, 129, 300)
    together = siphash(data, start, length, KEY)
    for i in range(300):
        alone = data[start[i] : start[i] + length[i]].copy()
        assert siphash(alone, np.array([0]), length[i : i + 1], KEY)[0] == together[i]
