"""Writes of several threads as one: each item is written, with others of its key alone, and fails by its own fault alone."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.errors import AdclickError, BadStatement, Refused, Unavailable
from stream.warm.group_commit import GroupCommit

MOST, _ALL = 4, 100


class Store:
    """A store that writes as often as it is let: what is submitted meanwhile has to wait."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, list[int]]] = []
        self.errors: dict[int, AdclickError] = {}
        """Of a write that has such an item."""
        self.permits = threading.Semaphore(0)
        self._writing = threading.Lock()

    def write(self, key: str, items: list[int]) -> None:
        assert self._writing.acquire(blocking=False), "two writes at a time"
        with_error = next((self.errors[item] for item in items if item in self.errors), None)
        self.writes.append((key, items))
        assert self.permits.acquire(timeout=10)
        self._writing.release()
        if with_error is not None:
            raise with_error


def submit(store: Store, items: list[tuple[str, int]]) -> list[BaseException | None]:
    """Submit each item in a thread of its own, all of them while the first is being written; what each raised."""
    commit = GroupCommit(store.write, MOST)
    with ThreadPoolExecutor(len(items)) as pool:
        futures = [pool.submit(commit.submit, *items[0])]
        while not store.writes:
            time.sleep(0.001)
        futures += [pool.submit(commit.submit, *item) for item in items[1:]]
        while len(commit._waiting) < len(items) - 1:
            time.sleep(0.001)
        store.permits.release(_ALL)
        return [future.exception(10) for future in futures]


def test_what_comes_while_one_is_written_goes_together_by_key() -> None:
    store = Store()
    items = [("a", 0), *((key, n) for n in range(1, 7) for key in "ab")]
    assert submit(store, items) == [None] * len(items)
    assert sorted((key, n) for key, group in store.writes for n in group) == sorted(items)
    assert store.writes[0] == ("a", [0])
    # Six of each key, four at a time at most.
    assert sorted(len(group) for _, group in store.writes) == [1, 2, 2, 4, 4]


def test_what_is_written_does_not_wait_for_what_comes_after_it() -> None:
    store = Store()
    commit = GroupCommit(store.write, MOST)
    with ThreadPoolExecutor(4) as pool:
        pool.submit(commit.submit, "a", 0)
        while not store.writes:
            time.sleep(0.001)
        later = [pool.submit(commit.submit, *item) for item in (("a", 1), ("a", 2), ("b", 3))]
        while len(commit._waiting) < len(later):
            time.sleep(0.001)
        # The write of the first, and that of the two of its key. That of the other key has to wait.
        store.permits.release(2)
        assert [future.exception(5) for future in later[:2]] == [None, None]
        assert not later[2].done()
        store.permits.release(_ALL)
        assert later[2].exception(10) is None
    assert sorted(map(sorted, (group for _, group in store.writes))) == [[0], [1, 2], [3]]


def test_others_are_waited_for_while_they_come() -> None:
    store, together = Store(), threading.Barrier(MOST)
    store.permits.release(_ALL)
    commit = GroupCommit(store.write, MOST, linger_s=0.5)

    def submit_one(item: int) -> None:
        together.wait(10)
        commit.submit("a", item)

    with ThreadPoolExecutor(MOST) as pool:
        list(pool.map(submit_one, range(MOST)))
    assert [sorted(group) for _, group in store.writes] == [list(range(MOST))]


def test_a_store_that_refuses_two_is_not_asked_for_the_others() -> None:
    store = Store()
    store.errors |= {n: Refused("too many parts", code="TOO_MANY_PARTS") for n in range(1, 5)}
    raised = submit(store, [("a", n) for n in range(5)])
    assert all(isinstance(error, Refused) for error in raised[1:])
    assert [len(group) for _, group in store.writes] == [1, 4, 1, 1]


@pytest.mark.parametrize("error", [Refused("too large"), BadStatement("no such column")])
def test_one_that_is_refused_does_not_keep_others_from_being_written(error: AdclickError) -> None:
    store = Store()
    store.errors[2] = error
    raised = submit(store, [("a", n) for n in range(5)])
    assert raised == [None, None, error, None, None]
    assert {n for _, group in store.writes if 2 not in group for n in group} == {0, 1, 3, 4}


def test_while_the_store_is_away_nothing_is_tried_once_more() -> None:
    store = Store()
    store.errors[2] = Unavailable("away")
    raised = submit(store, [("a", n) for n in range(5)])
    assert raised == [None, *[store.errors[2]] * 4]
    assert len(store.writes) == 2
