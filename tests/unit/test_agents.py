"""Behaviour of Faust that is switched off, and how workers watch it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from unittest.mock import Mock

import pytest
from faust.types import TP

from infra.errors import Unavailable
from infra.kafka import admin
from infra.kafka.stalls import StallWatch
from infra.settings import resolve
from ingest.worker import IngestWorker
from stream.agents import Agents


def test_faust_keeps_no_gaps_of_transaction_markers() -> None:
    """Offsets have a gap after every transaction. No consumer commits them, so what is kept of a gap is kept for ever."""

    async def read() -> int:
        consumer, tp = Agents(resolve().settings, Mock()).app.consumer, TP("ad-blocks", 0)
        for offset in range(1, 4_000, 2):
            await consumer._add_gap(tp, offset, offset)
        return sum(len(gaps) for gaps in consumer._gap.values())

    assert asyncio.run(asyncio.wait_for(read(), 10)) == 0


def look_at_topics() -> Callable[[], None]:
    """One look of a stream worker after the other."""
    agents = Agents(resolve().settings, Mock())
    return lambda: asyncio.run(agents._watch_topics())


def look_for_stalled_streams() -> Callable[[], None]:
    agents = Agents(resolve().settings, Mock())
    agents.app = Mock()
    agents.app.consumer.assignment.return_value = set()
    intake = Mock(waiting_rows=0, next_message=0)
    owned = Mock(intake=intake)
    owned.dead.is_set.return_value = False
    agents._owned[TP(next(iter(agents._by_topic)), 0)] = owned
    return lambda: asyncio.run(agents._watch_progress())


def look_for_stalled_ingest() -> Callable[[], None]:
    worker = IngestWorker(resolve().settings, "one")
    worker._stalls = StallWatch(Mock())
    return worker._refuse_stall


@pytest.mark.parametrize("watch", [look_at_topics, look_for_stalled_streams, look_for_stalled_ingest])
def test_a_watch_goes_on_with_a_new_client_where_the_former_one_fails(
    watch: Callable[[], Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one does once the certificate that it was made with has expired."""
    expired, renewed = Mock(), Mock()
    expired.describe.side_effect = expired.ends.side_effect = Unavailable("Kafka: disconnected", backend="kafka")
    renewed.describe.return_value, renewed.ends.return_value = {}, [0]
    make = Mock(side_effect=[expired, renewed])
    monkeypatch.setattr(admin, "Admin", make)
    look = watch()
    for _ in range(3):
        look()
    assert make.call_count == 2
    assert len(renewed.method_calls) == 2
