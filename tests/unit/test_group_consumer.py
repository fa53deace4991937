"""A member of a consumer group whose client cannot reach the brokers."""

from __future__ import annotations

import pytest

from infra.errors import ClientBroken
from infra.kafka import consumers
from infra.kafka.connection import Connection
from infra.kafka.consumers import GroupConsumer
from tests.product import wait_until


def test_a_client_that_stays_out_of_its_group_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumers, "_CUT_OFF_S", 1.0)
    nobody = Connection("127.0.0.1:1")
    member = GroupConsumer(nobody, "adclick-ingest", "ad-events", lambda _: {}, lambda _: None)
    try:
        assert member.consume(1, 0.1) == []
        with pytest.raises(ClientBroken, match="adclick-ingest"):
            wait_until(lambda: member.consume(1, 0.1), 20, "the client is given up")
    finally:
        member.close()
