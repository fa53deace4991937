"""`adclick replicated`: how far the copy of another region's ad-events reaches, by the times that its messages had there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from infra import migration
from infra.cli import declare
from infra.cli.app import App
from infra.clock import iso
from infra.errors import UserError
from infra.kafka import topics
from infra.kafka.admin import Admin
from infra.settings import Settings

_NOT_A_COPY = "LogAppendTime"


@dataclass(frozen=True)
class Copy:
    """The copy of each partition: when the other region's broker had the newest message of it (epoch ms); None where there is none."""

    newest_ms: Sequence[int | None]

    @property
    def resend_from_ms(self) -> int | None:
        """The other region's events from this moment on may be missing, of one partition at least. None where a partition has none:
        then all of them may be.

        Replication keeps the order of a partition, so all before its newest message is here.
        """
        known = [ms for ms in self.newest_ms if ms is not None]
        return min(known) if len(known) == len(self.newest_ms) else None


def read_copy(settings: Settings) -> Copy:
    """The copy as it is now. Raises Unavailable, and UserError where the topic's messages have times of this region's own broker."""
    topic, admin = settings.topic(topics.EVENTS), Admin(settings.kafka_connection)
    if admin.configs([topic])[topic].get("message.timestamp.type") == _NOT_A_COPY:
        raise UserError(
            f"topic {topic} is no copy: its messages have the times at which they came here",
            hint="in a passive region, ADCLICK_PASSIVE=on and adclick migrate keep those of the other region",
        )
    newest = admin.newest_timestamps_ms(topic, settings.event_partitions)
    return Copy([ms if ms >= 0 else None for ms in newest])


@declare.command("replicated", "adclick replicated --json")
def replicated(app: App) -> None:
    """Print how far the copy of another region's ad-events reaches, in the times at which that region's broker had the messages.

    For a passive region, before it is promoted: what the other region acknowledged from the last line's moment on, producers send again.
    Copies of what is here are dropped.
    """
    migration.check_topics(app.settings)
    copy = read_copy(app.settings)
    newest = [None if ms is None else iso(ms) for ms in copy.newest_ms]
    since = None if copy.resend_from_ms is None else iso(copy.resend_from_ms)
    if app.json:
        app.data({"partitions": newest, "resend_from": since})
        return
    app.table(["partition", "newest message"], [(n, shown or "none") for n, shown in enumerate(newest)])
    app.say(
        f"events that the other region acknowledged before {since} are here; have producers send again all since then"
        if since
        else "a partition is empty: nothing is known to be here; have producers send again all that they have"
    )
