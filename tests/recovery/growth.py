"""Docs/runbooks.md, "Adding workers and partitions": from one worker of each kind to two, and from three partitions of ad-events to six, under load."""

from __future__ import annotations

import time
from pathlib import Path

from infra import migration
from infra.kafka import topics
from infra.kafka.admin import Admin
from query.status import read_status
from tests.product import wait_until
from tests.recovery.load import backends, counting, installation, under_load

_ONE = ("archive-0", "stream-0", "ingest-0")
_TWO = ("archive-1", "stream-1", "ingest-1")
_PARTITIONS = 6


def growth(work: Path) -> float:
    """Workers are added while events come. For more partitions producers stop, since keys map to other partitions from then on."""
    with backends(work) as folder:
        settings = installation(folder)
        # No copy may come on the other side of the change: producers that stop until nothing is retried send none.
        with counting(settings, work, duplicates=0.0) as running, under_load(running) as producers:
            for name in _ONE:
                running.start(name)
            running.wait_until_something_is_shown()
            began = time.monotonic()
            for name in _TWO:
                running.start(name)
            topic = settings.topic(topics.EVENTS)

            def owners() -> dict[str, int]:
                workers = read_status(running.settings)["ingest_workers"]
                return {worker["worker"]: len(worker["partitions"]) for worker in workers}

            wait_until(
                lambda: min(owners().values(), default=0) and len(owners()) == 2, 40, lambda: f"both: {owners()}"
            )
            print(f"  two of each have partitions after {time.monotonic() - began:.1f} s", flush=True)

            stopped = time.monotonic()
            producers.stop()
            running.settings = running.settings.model_copy(update={"event_partitions": _PARTITIONS})
            migration.migrate(running.settings)
            for name in (*_ONE, *_TWO):
                running.stop(name)
                running.start(name)
            producers.start()
            print(f"  producers stood still for {time.monotonic() - stopped:.1f} s", flush=True)
            wait_until(lambda: sum(owners().values()) == _PARTITIONS, 40, lambda: f"all have owners: {owners()}")
            ends = Admin(settings.kafka_connection).ends
            wait_until(lambda: min(ends(topic, _PARTITIONS)) > 0, 40, "new partitions have events")
        return time.monotonic() - began
