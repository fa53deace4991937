"""Whether the archive holds all that it must before a day can be recomputed."""

from __future__ import annotations

import time
from collections.abc import Callable

from infra import topics
from infra.errors import AdclickError
from infra.kafka import Admin
from infra.settings import Settings
from ingest.archive import archived_to


def wait_for_archive(settings: Settings, wait_s: float, tell: Callable[[str], None]) -> list[int]:
    """Wait until the archive has passed the ends of ad-events as they are now; returns those ends, by partition.

    Raises AdclickError when that takes longer than `wait_s`.
    """
    admin, count = Admin(settings.kafka), settings.event_partitions
    ends = admin.ends(settings.topic(topics.EVENTS), count)
    starts = admin.starts(settings.topic(topics.EVENTS), count)
    deadline, told = time.monotonic() + wait_s, False
    while True:
        done = admin.committed(settings.topic(topics.ARCHIVE_GROUP), settings.topic(topics.ARCHIVE), count)
        missing = sum(
            max(0, end - archived_to(c.metadata))
            for end, start, c in zip(ends, starts, done, strict=True)
            if end > start
        )
        if not missing:
            return ends
        if time.monotonic() > deadline:
            raise AdclickError(
                f"the archive is {missing:,} events behind ad-events after {wait_s:.0f} s",
                hint="is an archive worker running? --wait gives it longer",
            )
        if not told:
            tell(f"waiting for the archive: {missing:,} events to go")
            told = True
        time.sleep(0.3)
