"""An owner of the insight stage, without a log behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from infra.clickhouse.client import ClickHouse
from infra.clock import MINUTE_MS
from ingest.blocks import BlockHeader, SourceRange
from stream.insights.alerting import AlertPolicy
from stream.insights.sink import InsightSink
from stream.published import Publication
from tests.stages import Stage
from tests.unit.test_partials_and_cells import frame, partial

START = 1_795_132_800_000
ADVERTISER = 3


class InsightOwner:
    """An owner of the stage, which takes a minute with each flush."""

    def __init__(self, client: ClickHouse, report: Callable[[str], None] = lambda _: None) -> None:
        self.client, self._report = client, report
        self.stage = Stage(MINUTE_MS, 1)
        self.succeed()

    def flush(self, minute: int, numbers: Any, *late: dict[str, Any]) -> Publication:
        """The events of a minute, which then closes; `late`: rows of earlier ones."""
        at, start = self.stage.next_message, START + minute * MINUTE_MS
        rows = [
            partial(
                window_ms=start, campaign_id=campaign, advertiser_id=ADVERTISER, impressions=i, clicks=c, spend_micros=s
            )
            for campaign, (i, c, s) in enumerate(numbers.T.astype(int).tolist())
            if i or c or s
        ]
        header = BlockHeader(1, (SourceRange(0, at, at + 1, start + MINUTE_MS, False),), 0)
        self.stage.apply_block(at, frame([*rows, *late]), header, "here")
        self.stage.begin_flush()
        return self.stage.commit()

    def succeed(self) -> None:
        """The next owner takes over: it has the log, and no more."""
        self.sink = InsightSink(self.client, AlertPolicy(), self._report)
        self.sink.attach(self.stage.state.snapshot())
