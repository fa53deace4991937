"""What brokers answer about topics, when some of them are away."""

from __future__ import annotations

from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from infra.errors import Unavailable
from infra.kafka.admin import Admin
from infra.kafka.connection import Connection

_NO_OFFSET = -1001


class Brokers:
    """An admin client whose brokers answer with these offsets, one list for each request; the last one over and over."""

    def __init__(self, *answers: list[int]) -> None:
        self._answers = list(answers)

    def list_offsets(self, request: dict[Any, Any], **_options: Any) -> dict[Any, Future[Any]]:
        offsets = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        futures = dict[Any, Future[Any]]()
        for place in request:
            futures[place] = Future()
            futures[place].set_result(SimpleNamespace(offset=offsets[place.partition]))
        return futures

    def poll(self, _timeout_s: float) -> None:
        """Nothing has happened."""


def admin_of(brokers: Brokers, timeout_s: float) -> Admin:
    admin = Admin(Connection("127.0.0.1:1"), timeout_s=timeout_s)
    admin._client = brokers
    return admin


def test_the_end_of_a_partition_without_a_leader_is_waited_for() -> None:
    brokers = Brokers([7, _NO_OFFSET], [7, _NO_OFFSET], [7, 5])
    assert admin_of(brokers, 10.0).high_watermarks("topic", 2) == [7, 5]


def test_the_end_of_a_partition_that_gets_no_leader_is_not_known() -> None:
    with pytest.raises(Unavailable, match="topic/1"):
        admin_of(Brokers([7, _NO_OFFSET]), 0.3).ends("topic", 2)
