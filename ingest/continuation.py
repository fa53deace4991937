"""Whether ad-events is still the log whose positions were committed, and where to go on when it is not.

A topic that was made again has another id, messages that were deleted lie before its start, a log that was cut off ends
before what was read. None of it is passed over: each is a `Loss`, which an operator accepts by its name (the setting
`accept_loss`). Kafka deletes a group's offsets in a topic together with it: so each position is committed twice, the second
time under the name of another topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from infra.errors import InputLost
from infra.kafka.records import Committed
from ingest.position import Position

_SETTING = "ADCLICK_ACCEPT_LOSS"


@dataclass(frozen=True)
class Log:
    """One partition as it is now: offsets as Kafka counts them."""

    topic_id: str
    start: int
    end: int


@dataclass(frozen=True)
class Loss:
    """What is gone for good. `name` is how an operator accepts it."""

    name: str
    explanation: str


@dataclass(frozen=True)
class Continuation:
    """Where a partition goes on: at `log_offset`, as `position`, once `loss` is accepted."""

    position: Position
    log_offset: int
    loss: Loss | None = None


def choose_position(main: Committed, copy: Committed) -> Position | None:
    """The position that the last transaction committed; None when neither of the two says.

    It wrote both. An offset that another tool committed has no metadata of ours; one that was deleted, with its topic or alone,
    leaves the copy behind.
    """
    for committed in (main, copy):
        position = Position.committed(committed.offset, committed.metadata) if committed.offset >= 0 else None
        if position is not None:
            return position
    return None


def continue_at(partition: int, position: Position, log: Log, *, diverged: bool = False) -> Continuation:
    """Where to go on reading a partition, and what is lost by it. `diverged`: the broker does not know the log that was read, and it is
    the same up to the log's `end`."""
    at, bare = position.log_offset, msgspec.structs.replace(position, topic_id=log.topic_id)
    if position.topic_id and position.topic_id != log.topic_id:
        loss = Loss(
            log.topic_id,
            f"it was deleted and made again (its id was {position.topic_id}, it is {log.topic_id}), "
            "and what was not read of the old one is lost",
        )
        return _counted_on(bare, log.start, loss)
    if at > log.end:
        loss = Loss(
            f"{partition}/{log.end}-{at}",
            f"partition {partition} ends at offset {log.end}, but was read up to {at}: its end was cut off",
        )
        return _counted_on(bare, log.end, loss)
    if at < log.start:
        loss = Loss(
            f"{partition}/{at}-{log.start}",
            f"offsets {at} to {log.start - 1} of partition {partition} were deleted before they were read",
        )
        return Continuation(msgspec.structs.replace(bare, leader_epoch=-1), log.start, loss)
    # By the epoch the broker would find the same again.
    return Continuation(msgspec.structs.replace(bare, leader_epoch=-1) if diverged else bare, at)


def _counted_on(position: Position, log_offset: int, loss: Loss) -> Continuation:
    """Another log from here on: offsets of events go on from those before, so that none is used twice."""
    moved = msgspec.structs.replace(position, base=position.offset - log_offset, leader_epoch=-1)
    return Continuation(moved, log_offset, loss)


def refuse_losses(topic: str, continuations: Mapping[int, Continuation], accepted: str) -> list[Loss]:
    """The losses there are, all of them accepted. Raises InputLost, naming all that are not."""
    losses = [c.loss for _, c in sorted(continuations.items()) if c.loss is not None]
    names = {name.strip() for name in accepted.split(",")}
    refused = [loss for loss in losses if loss.name not in names]
    if refused:
        explanations = "; ".join(dict.fromkeys(loss.explanation for loss in refused))
        setting = ",".join(dict.fromkeys(loss.name for loss in losses))
        raise InputLost(
            f"topic {topic}: {explanations}",
            hint=f"restore it, or go on without what is lost: {_SETTING}={setting}",
        )
    return losses
