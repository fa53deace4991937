"""Tells those who serve ads which campaigns were paused: one message for each to `ad-campaign-status`."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from infra.clock import iso
from infra.errors import Unavailable
from infra.kafka import topics
from infra.kafka.event_producer import EventProducer
from infra.settings import Settings
from query.notify.changes import Condition

_WAIT_S = 10.0


def announce_pauses(settings: Settings, conditions: Sequence[Condition], now_ms: int) -> None:
    """Announce the campaigns of these conditions as paused because of their budgets. Returns once Kafka has the messages; raises Unavailable
    where that takes long, and may then have sent them all the same."""
    producer, topic = EventProducer(settings.kafka_connection), settings.topic(topics.CAMPAIGN_STATUS)
    keys = [str(c.campaign_id).encode() for c in conditions]
    messages = [
        msgspec.json.encode(
            {
                "campaign_id": c.campaign_id, "advertiser_id": c.advertiser_id, "status": "paused", "reason": "budget",
                "at": iso(now_ms),
            }
        )
        for c in conditions
    ]  # fmt: skip
    producer.send(topic, keys, messages)
    if producer.flush(_WAIT_S) or producer.failed:
        why = producer.failed[0] if producer.failed else f"no acknowledgement within {_WAIT_S:.0f} s"
        raise Unavailable(f"{topic}: {why}", backend="kafka")
