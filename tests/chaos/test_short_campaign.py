"""Twelve strikes of all kinds within two minutes; `make chaos` is the long campaign."""

from __future__ import annotations

import pytest

from tests.chaos.campaign import campaign


@pytest.mark.timeout(1800)
def test_twelve_strikes_lose_and_double_nothing() -> None:
    assert campaign(12, seed=7, rate=1200, minutes=1.1, nightly=False)
