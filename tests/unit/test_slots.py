"""Exports and streams of a key are limited, and each slot is released however its response ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.requests import Request

from infra.clock import DAY_MS, iso, now_ms
from infra.settings import Settings
from query.api.exports import EXPORTS_A_KEY
from query.api.handlers import Api
from query.api.problems import Problem
from query.api.slots import Slots
from query.keys import Access
from query.question import Question
from query.router import NoTierAnswered

MINE = Access("mine", None, True, 1.0, 1.0)


def test_of_concurrent_requests_exactly_as_many_as_there_are_slots_get_one() -> None:
    slots, at_once = Slots(3, "too-many", "wait"), threading.Barrier(16)

    def take(_: int) -> Any:
        at_once.wait()
        try:
            return slots.take("key")
        except Problem as problem:
            return problem.status

    with ThreadPoolExecutor(16) as pool:
        outcomes = list(pool.map(take, range(16)))
    assert outcomes.count(429) == 13
    slots.take("another key")


def test_a_slot_is_released_exactly_once() -> None:
    slots = Slots(1, "too-many", "wait")
    slot = slots.take("key")
    for _ in range(2):
        slot.release()
    with slots.take("key"), pytest.raises(Problem):
        slots.take("key")
    slots.take("key")  # and is dropped at once, as a response is whose client has left
    slots.take("key")


@pytest.fixture
def api() -> Api:
    return Api(Settings.model_validate({"query_cache": "off"}), lambda *_: None)


@pytest.fixture
def questions(api: Api, monkeypatch: pytest.MonkeyPatch) -> list[Question]:
    """The questions that the router of `api` gets; none of its tiers answers."""
    questions: list[Question] = []

    def answer(question: Question) -> Any:
        questions.append(question)
        raise NoTierAnswered("no tier answered")

    monkeypatch.setattr(api.router, "answer", answer)
    return questions


def request(**parameters: str) -> Request:
    start = now_ms() // DAY_MS * DAY_MS - 2 * DAY_MS
    usual = {
        "campaign_id": "7",
        "start": iso(start),
        "end": iso(start + DAY_MS),
        "granularity": "hour",
        "format": "csv",
    }
    query = "&".join(f"{name}={value}" for name, value in (usual | parameters).items())
    return Request(
        {"type": "http", "method": "GET", "path": "/v1/metrics", "query_string": query.encode(), "headers": []}
    )


def test_an_export_beyond_the_limit_is_refused_before_it_reads_anything(api: Api, questions: list[Question]) -> None:
    wide = request(group_by="ad_id")
    for _ in range(EXPORTS_A_KEY + 1):  # each fails, and gives its slot back
        with pytest.raises(NoTierAnswered):
            api.metrics(wide, MINE)
    assert len(questions) == EXPORTS_A_KEY + 1
    slots = [api._exports.take(MINE) for _ in range(EXPORTS_A_KEY)]
    with pytest.raises(Problem, match="exports open"):
        api.metrics(wide, MINE)
    assert len(questions) == EXPORTS_A_KEY + 1
    # What fits a page whatever is found is no export.
    with pytest.raises(NoTierAnswered):
        api.metrics(request(), MINE)
    assert len(slots) == EXPORTS_A_KEY
