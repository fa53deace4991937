"""What a worker must learn from Kafka before it reads: whether the topic is there, and where each of its partitions goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from infra import logs
from infra.clock import now_ms
from infra.errors import InputLost, Unavailable, UserError
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.kafka.consumers import GroupConsumer
from infra.kafka.topic_state import TopicState
from infra.settings import Settings
from ingest import continuation
from ingest.continuation import Continuation, Log
from ingest.dedup_rebuild import DedupRebuilder
from ingest.position import Position

# A broker that is just coming back may not know its topics yet.
_TOPIC_PATIENCE_S = 30.0


def wait_for_topic(settings: Settings, stopping: threading.Event) -> TopicState:
    """The topic of events as it is now. Raises UserError when there is none, InputLost when there was one."""
    topic, deadline = settings.topic(topics.EVENTS), time.monotonic() + _TOPIC_PATIENCE_S
    admin = Admin(settings.kafka_connection)
    while (state := admin.describe([topic]).get(topic)) is None:
        if time.monotonic() > deadline:
            group, copies = settings.topic(topics.INGEST_GROUP), settings.topic(topics.ARCHIVE)
            if any(c.offset >= 0 for c in admin.committed(group, copies, settings.event_partitions)):
                raise InputLost(
                    f"topic {topic} was deleted; events of it that were not read are lost",
                    hint="restore it; or make it again with adclick migrate, and accept what the workers then name",
                )
            raise UserError(f"there is no topic {topic}", hint="adclick migrate makes it")
        stopping.wait(0.5)
        if stopping.is_set():
            raise Unavailable("stopped while waiting for the topic")
    return state


def find_continuations(
    settings: Settings,
    rebuilder: DedupRebuilder,
    member: GroupConsumer,
    partitions: list[int],
    topic_id: str,
    diverged: Mapping[int, int],
) -> dict[int, Continuation]:
    """Where each partition goes on. `diverged`: where the broker said that a log parts from what was read.

    Raises Unavailable.
    """
    topic, count, log = settings.topic(topics.EVENTS), max(partitions) + 1, logs.get("ingest")
    admin = Admin(settings.kafka_connection)
    mains, copies = member.committed(partitions), member.committed(partitions, settings.topic(topics.ARCHIVE))
    starts, ends = admin.starts(topic, count), admin.high_watermarks(topic, count)
    continuations = dict[int, Continuation]()
    for main, copy in zip(mains, copies, strict=True):
        p = main.partition
        position = continuation.choose_position(main, copy) or rebuilder.archived_position(p)
        if position is None:
            # Kafka's own tools may have said where a new installation begins.
            first = main.offset if main.offset >= 0 else starts[p]
            continuations[p] = Continuation(Position(first, topic_id=topic_id), first)
            rebuilder.begin_if_new(p, first)
            continue
        if main.offset != position.log_offset and position.topic_id in ("", topic_id):
            log.error(
                "the group's offset was moved from outside; going on where the last transaction ended",
                partition=p, offset=main.offset, transaction=position.log_offset,
            )  # fmt: skip
        position = rebuilder.with_turns(p, position.at_most(now_ms()))
        end = min(ends[p], diverged.get(p, ends[p]))
        continuations[p] = continuation.continue_at(p, position, Log(topic_id, starts[p], end), diverged=p in diverged)
    return continuations
