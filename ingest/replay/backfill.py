"""Events of a replay that come too late for the stream: of which days they are, and whether those can still be billed."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from infra.clickhouse.retention import PUBLISHED_DAYS, first_published_day
from infra.clock import DAY_MS, MINUTE_MS, date_of, day_start_ms
from infra.errors import AdclickError, UserError
from infra.kafka.admin import Admin
from infra.settings import Settings
from ingest.committed_positions import read_positions
from ingest.lateness import ACCEPTED_UP_TO_MS

# Of fewer lines, nothing is concluded about all of them.
_FEW = 20


class Backfill:
    """Counts the late events of a replay by day (UTC).

    Before `accepted_from_ms` an event is too late for the stream on every partition, and only a reconciliation of its day counts
    it. The published numbers of days before `kept_from_ms` would be deleted at once. Both are epoch ms.
    """

    def __init__(self, accepted_from_ms: int | None, kept_from_ms: int) -> None:
        self._accepted_from_ms, self._kept_from_ms = accepted_from_ms, kept_from_ms
        self._days = dict[int, int]()
        self.expired = 0
        """How many events are of days that can no longer be published."""

    @classmethod
    def of(cls, settings: Settings, admin: Admin, now_ms: int) -> Backfill:
        """For the installation as it is now. Raises nothing: where positions cannot be read, no event is called late."""
        kept_from_ms = day_start_ms(first_published_day(now_ms))
        try:
            watermark_ms = _lowest_watermark(settings, admin)
        except AdclickError:  # whoever may write events need not be allowed to read the positions of workers
            watermark_ms = None
        return cls(None if watermark_ms is None else watermark_ms - ACCEPTED_UP_TO_MS, kept_from_ms)

    def add(self, times_ms: Sequence[int | None]) -> None:
        """Note the events that are about to be sent. Raises UserError where most of them could never be billed."""
        times = np.array([time for time in times_ms if time is not None], np.int64)
        expired = int((times < self._kept_from_ms).sum())
        if len(times) >= _FEW and expired > len(times) // 2:
            raise UserError(
                f"{expired:,} of {len(times):,} events are older than {PUBLISHED_DAYS} days, for which published days are kept: "
                "they could be archived, but not billed",
                hint="send events that are newer, or --shift-to-now",
            )
        self.expired += expired
        if self._accepted_from_ms is not None:
            # The minute that holds the border is accepted as a whole.
            late = times[(times < self._accepted_from_ms - MINUTE_MS) & (times >= self._kept_from_ms)]
            self._count(late // DAY_MS)

    def _count(self, days: npt.NDArray[np.int64]) -> None:
        for day, count in zip(*np.unique(days, return_counts=True), strict=True):
            self._days[int(day)] = self._days.get(int(day), 0) + int(count)

    @property
    def events(self) -> int:
        """How many events the stream does not count."""
        return sum(self._days.values())

    @property
    def days(self) -> list[dt.date]:
        """The days that need a reconciliation, oldest first."""
        return [date_of(day * DAY_MS) for day in sorted(self._days)]

    def lines(self) -> list[str]:
        """What the sender should know, a line each; none where the stream counts everything."""
        lines = list[str]()
        if days := self.days:
            which = f"--date {days[0]}" if len(days) == 1 else f"--from {days[0]} --to {days[-1]} --skip-empty"
            lines.append(
                f"{self.events:,} events are too late for the stream's minutes, hours and days: "
                f"they count once their days are reconciled (adclick reconcile {which})"
            )
        if self.expired:
            lines.append(f"{self.expired:,} events are older than {PUBLISHED_DAYS} days: archived, but never billed")
        return lines


def _lowest_watermark(settings: Settings, admin: Admin) -> int | None:
    """The lowest verdict watermark of the partitions that have one; None where nothing was counted yet. Raises Unavailable."""
    watermarks = [None if position is None else position.watermark for position in read_positions(settings, admin)]
    known = [watermark for watermark in watermarks if watermark is not None]
    # A partition without events accepts all times.
    return min(known) if known and len(known) == len(watermarks) else None
