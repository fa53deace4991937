"""How many alerts were false, from alerts, mutes and days that are in ClickHouse."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pyarrow as pa

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, iso, now_ms
from infra.settings import Settings
from query.alerts.mutes import Mute, MuteSubject
from query.alerts.scope import WHOLE_INSTALLATION, AlertScope
from query.alerts.store import AlertStore
from query.alerts.summary import AlertSummary
from query.row_scope import RowScope

TODAY = now_ms() // DAY_MS * DAY_MS
OPENED = TODAY - 10 * DAY_MS
SPIKE, DROP = "spend-spike", "ctr-drop"


def insert(client: ClickHouse, campaign: int, *states: str, kind: str = SPIKE, advertiser: int = 3, opened_ms: int = OPENED) -> None:  # fmt: skip
    """An alert whose versions were written an hour apart, the first one a minute after it had opened."""
    written = [opened_ms + 60_000 + number * HOUR_MS for number in range(len(states))]
    values: dict[str, Any] = {
        "id": f"al_{kind}_{campaign}_{opened_ms}", "kind": kind, "severity": "warning", "advertiser_id": advertiser,
        "campaign_id": campaign, "opened_ms": opened_ms, "ended_ms": 0, "summary": "", "detail": "{}",
    }  # fmt: skip
    rows = {name: [value] * len(states) for name, value in values.items()}
    rows |= {"version": list(range(1, len(states) + 1)), "state": list(states)}
    moments = [dt.datetime.fromtimestamp(ms / 1000, dt.UTC) for ms in written]
    client.insert("alerts", pa.table({**rows, "at": pa.array(moments, pa.timestamp("ms", "UTC"))}))


def mute(
    store: AlertStore, campaign: int | None, from_ms: int, until_ms: int, *, kind: str = "", advertiser: int = 3
) -> Mute:
    """A mute that was set at a moment."""
    muted = Mute(MuteSubject(kind, advertiser, campaign), until_ms, "test", from_ms, from_ms)
    store.write_mute(muted)
    return muted


def test_false_alarms_are_withdrawn_and_muted_ones_by_campaign_month(settings: Settings) -> None:
    client = ClickHouse(settings.clickhouse, settings.database)
    store, later = AlertStore(client), OPENED + 5 * DAY_MS
    insert(client, 1, "open", "withdrawn")
    insert(client, 2, "open", "closed")
    # Muted while it was open; by a mute of another kind; after it had closed; before, and still then; before, and ended by then.
    for campaign in range(3, 9):
        insert(client, campaign, "open", "closed")
    mute(store, 3, OPENED + HOUR_MS // 2, later)
    mute(store, 4, OPENED + HOUR_MS // 2, later, kind=DROP)
    mute(store, 5, OPENED + 2 * HOUR_MS, later)
    mute(store, 6, OPENED - DAY_MS, later, kind=SPIKE)
    mute(store, 7, OPENED - DAY_MS, OPENED - HOUR_MS)
    store.delete_mute(mute(store, 8, OPENED - DAY_MS, later), "test", OPENED - HOUR_MS)
    # A mute that was replaced since still was one; what was withdrawn counts once; an open alert is open until now.
    insert(client, 9, "open", "closed")
    mute(store, 9, OPENED + HOUR_MS // 2, later)
    mute(store, 9, later, later + 1)
    insert(client, 10, "open", "withdrawn", kind=DROP)
    mute(store, 10, OPENED, later)
    insert(client, 11, "open", kind=DROP)
    mute(store, 11, TODAY - DAY_MS, TODAY)
    # Another advertiser, of which all is muted; the operator's; before the range, and today.
    insert(client, 20, "open", "closed", advertiser=4)
    mute(store, None, OPENED, later, advertiser=4)
    insert(client, 0, "open", "withdrawn", advertiser=0)
    for opened_ms in (TODAY - 29 * DAY_MS, TODAY):
        insert(client, 1, "open", "withdrawn", opened_ms=opened_ms)
    # Two campaigns on 28 days, one with a second advertiser on a day, and a day that is too old.
    days = [(campaign, 3, TODAY - n * DAY_MS) for campaign in (1, 2) for n in range(1, 29)]
    days += [(1, 4, TODAY - DAY_MS), (2, 3, TODAY - 29 * DAY_MS)]
    values = ", ".join(
        f"({day // 1000}, {campaign}, {of}, 1, {shard})" for campaign, of, day in days for shard in (0, 1)
    )
    client.command(
        f"INSERT INTO {client.database}.stream_days (time, campaign_id, advertiser_id, impressions, shard) VALUES {values}"
    )

    def counts(summary: AlertSummary) -> dict[str, tuple[int, int, int]]:
        return {c.kind: (c.alerts, c.withdrawn, c.muted) for c in summary.kinds if c.alerts}

    whole = store.summary(WHOLE_INSTALLATION, None, now_ms())
    assert counts(whole) == {SPIKE: (10, 1, 4), DROP: (2, 1, 1)}
    assert (iso(whole.start_ms), iso(whole.end_ms)) == (iso(TODAY - 28 * DAY_MS), iso(TODAY))
    assert whole.campaign_days == 57
    assert counts(store.summary(WHOLE_INSTALLATION, 4, now_ms())) == {SPIKE: (1, 0, 1)}
    of_three = AlertScope.of(RowScope(frozenset({3})), admin=False)
    assert counts(store.summary(of_three, None, now_ms())) == {SPIKE: (9, 1, 3), DROP: (2, 1, 1)}
    assert store.summary(of_three, None, now_ms()).campaign_days == 56
    two = AlertScope.of(RowScope(frozenset({3}), frozenset({2, 3})), admin=False)
    assert counts(store.summary(two, None, now_ms())) == {SPIKE: (2, 0, 1)}
