"""The comparison at the end of a chaos campaign sees alerts that are there twice, or in part."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from infra.clickhouse.alerts import Alert
from infra.clock import MINUTE_MS
from infra.settings import Settings
from ingest.partials import SUMS, WINDOW, Partials
from stream import chunks
from stream.chunks import ChunkHeader
from stream.closing import Closing
from tests.planted import alerts
from tests.planted.alerts import faults_of_series, read_closed_minutes


def version(id_: str, number: int, state: str, opened_ms: int = 100, ended_ms: int = 0) -> Alert:
    return Alert(id_, number, "spend-spike", "critical", state, 3, 7, opened_ms, ended_ms, "")


OPENED, CLOSED = version("a", 1, "open"), version("a", 2, "closed", ended_ms=200)


@pytest.mark.parametrize(
    ("versions", "faults"),
    [
        ([OPENED], 0),
        ([OPENED, CLOSED, version("b", 1, "open", 200)], 0),
        ([OPENED, version("a", 2, "withdrawn", ended_ms=200), version("b", 1, "open", 150)], 0),
        ([CLOSED], 1),
        ([OPENED, CLOSED, version("a", 3, "closed", ended_ms=200)], 1),
        ([OPENED, CLOSED, version("b", 1, "open", 199)], 1),
        ([OPENED, version("b", 1, "open", 200)], 1),
    ],
    ids=["open", "one after the other", "after a withdrawn one", "no first version", "closed twice", "overlap", "both open"],
)  # fmt: skip
def test_alerts_that_are_twice_or_in_part_are_faults(versions: list[Alert], faults: int) -> None:
    assert len(faults_of_series(versions)) == faults


@dataclass(frozen=True)
class Message:
    """A message of `ad-campaign-totals`."""

    chunk: bytes

    def value(self) -> bytes:
        return self.chunk


def test_minutes_without_a_click_are_read_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {WINDOW: MINUTE_MS, "advertiser_id": 7, "campaign_id": 3}
    row = dict.fromkeys(("ad_id", "publisher_id", "country", "device", *SUMS, chunks.CHANGED), 0) | keys
    rows = Partials.of({name: np.array([value]) for name, value in (row | {"impressions": 5}).items()})
    header = ChunkHeader(chunks.SCHEMA_VERSION, 1, 0, 9, Closing(closed_ms=2 * MINUTE_MS), None, 0)
    messages = [Message(value) for _, value in chunks.encode(rows, header)]
    monkeypatch.setattr(alerts, "read_to_end", lambda *_: messages)
    closed = read_closed_minutes(Settings.model_validate({"block_partitions": 1}))
    assert closed.minutes == {MINUTE_MS: {(3, 7): (5.0, 0.0, 0.0)}}
