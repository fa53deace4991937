"""Behaviour of Faust that is switched off."""

from __future__ import annotations

import asyncio
from unittest.mock import Mock

from faust.types import TP

from infra.settings import resolve
from stream.agents import Agents


def test_faust_keeps_no_gaps_of_transaction_markers() -> None:
    """Offsets have a gap after every transaction. No consumer commits them, so what is kept of a gap is kept for ever."""

    async def read() -> int:
        consumer, tp = Agents(resolve().settings, Mock()).app.consumer, TP("ad-blocks", 0)
        for offset in range(1, 4_000, 2):
            await consumer._add_gap(tp, offset, offset)
        return sum(len(gaps) for gaps in consumer._gap.values())

    assert asyncio.run(asyncio.wait_for(read(), 10)) == 0
