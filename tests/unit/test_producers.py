"""Clients of Kafka that are no longer used end by themselves: workers drop them at each rebalance, and rarely collect garbage."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.kafka.admin import Admin
from infra.kafka.connection import Connection
from infra.kafka.event_producer import EventProducer
from infra.kafka.transactions import TransactionalProducer
from tests.product import wait_until

NOWHERE = Connection("127.0.0.1:1")
CLIENTS: dict[str, Callable[[], object]] = {
    "transactional producer": lambda: TransactionalProducer(NOWHERE, "id"),
    "event producer": lambda: EventProducer(NOWHERE),
    "admin": lambda: Admin(NOWHERE),
}


def client_count() -> int:
    """How many clients of librdkafka this process has: each has one main thread."""
    names = []
    for thread in Path("/proc/self/task").iterdir():
        try:
            names.append((thread / "comm").read_text().strip())
        except OSError:
            continue
    return names.count("rdk:main")


@pytest.fixture
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", CLIENTS)
@pytest.mark.usefixtures("without_collector")
def test_a_client_without_references_ends(kind: str) -> None:
    before = client_count()
    references = [CLIENTS[kind]() for _ in range(5)]
    wait_until(lambda: client_count() == before + 5, 20, "each has a client")
    references.clear()
    wait_until(lambda: client_count() == before, 20, "the clients end")
