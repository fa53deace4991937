"""Where reading continues when ad-events was recreated, truncated or deleted from."""

from __future__ import annotations

import msgspec
import pytest

from infra.errors import InputLost
from infra.kafka.records import Committed
from ingest.continuation import Continuation, Log, choose_position, continue_at, refuse_losses
from ingest.position import Position

AT = Position(100, 7, 8, ((1, 90),), "old", leader_epoch=3)
OURS = Committed(0, 100, AT.metadata())
NOTHING = Committed(0, -1)


@pytest.mark.parametrize(
    ("main", "copy", "right", "case"),
    [
        (OURS, OURS, AT, "as a transaction leaves them"),
        (OURS, NOTHING, AT, "committed by an older version, or the copy expired"),
        (NOTHING, OURS, AT, "deleted with the topic, or from outside"),
        (Committed(0, 0), OURS, AT, "moved from outside"),
        (Committed(0, 0), Committed(0, 0), None, "both moved from outside"),
        (NOTHING, NOTHING, None, "never read"),
    ],
)
def test_the_position_of_the_last_transaction_is_chosen(
    main: Committed, copy: Committed, right: Position | None, case: str
) -> None:
    assert choose_position(main, copy) == right, case


def test_reading_continues_at_the_position_while_the_log_has_it() -> None:
    for start, end in ((0, 100), (100, 100), (50, 900)):
        assert continue_at(0, AT, Log("old", start, end)) == Continuation(AT, 100)
    unknown = Position(100, 7, 8)
    assert continue_at(0, unknown, Log("new", 0, 100)).position.topic_id == "new"


def test_a_log_that_parts_from_what_was_read_behind_the_position_is_read_on_without_the_epoch() -> None:
    at = msgspec.structs.replace(AT, leader_epoch=3)
    assert continue_at(0, at, Log("old", 0, 120)).position.leader_epoch == 3
    diverged = continue_at(0, at, Log("old", 0, 120), diverged=True)
    assert (diverged.loss, diverged.log_offset, diverged.position.leader_epoch) == (None, 100, -1)


@pytest.mark.parametrize(
    ("log", "name", "log_offset", "case"),
    [
        (Log("new", 0, 10), "new", 0, "made again, and shorter"),
        (Log("new", 0, 6_000), "new", 0, "made again, and longer"),
        (Log("old", 130, 200), "3/100-130", 130, "deleted before it was read"),
        (Log("old", 0, 60), "3/60-100", 60, "cut off"),
    ],
)
def test_a_loss_must_be_accepted_by_name(log: Log, name: str, log_offset: int, case: str) -> None:
    continuation = continue_at(3, AT, log)
    assert continuation.loss is not None
    assert (continuation.loss.name, continuation.log_offset) == (name, log_offset), case
    assert continuation.position.offset == 100, "events are counted on, and no offset is used twice"
    for accepted in ("", "4/100-130", "old"):
        with pytest.raises(InputLost, match=f"ADCLICK_ACCEPT_LOSS={name}"):
            refuse_losses("ad-events", {3: continuation}, accepted)
    assert refuse_losses("ad-events", {3: continuation}, f"x, {name}") == [continuation.loss]
    later = continue_at(3, continuation.position, log)
    assert later.loss is None or later.loss == continuation.loss
    assert later.log_offset == log_offset


def test_all_losses_are_named_at_once() -> None:
    continuation = {p: continue_at(p, AT, Log("old", 130 + p, 200)) for p in (0, 1)}
    with pytest.raises(InputLost, match="ACCEPT_LOSS=0/100-130,1/100-131") as raised:
        refuse_losses("ad-events", continuation, "0/100-130")
    assert "partition 1" in raised.value.message
    assert "partition 0" not in raised.value.message
