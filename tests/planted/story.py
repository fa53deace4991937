"""`make story`: a planted day on a stack of its own, and when each incident was found, by which alert; the same table on every run.

The day is yesterday. Its events are sent in stretches, at full speed; after each, budgets are judged and trends are read as of its end. Moments are event time: a minute's alert is found when the minute ends. Exit 1 where something that was planted is not
found in time, an alert is not the one that follows from the events alone, or a webhook did not get each version once.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import polars as pl
from starlette.testclient import TestClient

from infra import logs
from infra.clickhouse.alerts import Alert
from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, HOUR_MS, MINUTE_MS, iso, now_ms
from infra.embedded.stack_folder import Folder
from infra.kafka.event_producer import EventProducer
from infra.kafka.topics import EVENTS
from infra.redis.client import Redis
from ingest.synthetic.generator import SyntheticEvents, Truth
from query.api.app import create_app
from query.budgets import NEARLY_SPENT
from query.directory.editor import DirectoryEditor
from query.directory.entries import Advertiser, Campaign
from query.directory.reader import DirectoryReader
from query.directory.store import DirectoryStore
from query.notify import budget_rule
from query.notify.rounds import Rounds
from stream.insights.rules import KINDS
from tests.conftest import adclick
from tests.planted import day as days
from tests.planted.alerts import alerts_of, read_versions
from tests.planted.day import INCIDENTS, Day
from tests.planted.events import encode_lines
from tests.posts import Posts
from tests.product import COUNTS, Product, assert_stays, wait_until

# The minutes of the day at which budgets are judged and trends are read: often where that tells something.
_STEP = 15
_LOOKS = (0, *range(13 * 60 + 30, 15 * 60 + 31, _STEP), *range(17 * 60, 20 * 60 + 31, 2 * _STEP), days.HOURS * 60)
# Minutes within which an incident must be found, and a budget.
_FOUND_WITHIN, _JUDGED_WITHIN = 5, _STEP
# More than the lists have that the notify worker keeps, which are those of the clock: so they are computed as of the day's time.
_TRENDS = 100
_WEBHOOKS = {"ADCLICK_WEBHOOK_ALLOWED_NETWORKS": "127.0.0.0/8", "ADCLICK_WEBHOOK_PORTS": ""}
# The worker that delivers judges budgets by the clock, when it starts and not again; the story does so by the day's time.
_JUDGED_HERE = {"ADCLICK_NOTIFY_EVERY_S": "3600"}
# Between stretches time stands still, however long that takes.
_NEVER_SILENT = {"ADCLICK_SILENT_AFTER_MS": "600000"}


@dataclass
class Story:
    """A stack, the day, and what was seen of it. `now_ms`: the moment of the day up to which all is sent."""

    product: Product
    day: Day
    posts: Posts
    now_ms: int
    places: dict[int, list[tuple[int, int, float]]] = field(default_factory=lambda: defaultdict(list))
    """By campaign: (minute of the day, place among the trending, score)."""

    def tell(self) -> list[str]:
        """Send the day; returns what is wrong."""
        settings = self.product.settings.model_copy(update={"silence_alert_s": 0})
        admin = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
        response = httpx.post(
            f"{settings.http}/v1/webhooks", headers=admin,
            json={"url": f"http://127.0.0.1:{self.posts.server_port}/", "advertiser_id": days.ADVERTISER},
        )  # fmt: skip
        response.raise_for_status()
        self._name_campaigns()
        producer, times = EventProducer(settings.kafka_connection), self.day.events["event_time"]
        rounds = Rounds(settings, "story", lambda: self.now_ms, logs.get("notify"))
        with TestClient(create_app(settings, lambda: self.now_ms), headers=admin) as http:
            sent = 0
            for minute in _LOOKS:
                end_ms = self.day.start_ms + minute * MINUTE_MS
                stop = int(np.searchsorted(times.to_numpy(), end_ms))
                events = self.day.events[sent:stop]
                sent, self.now_ms = stop, end_ms
                keys = [key.encode() for key in events["event_id"]]
                producer.send(EVENTS, keys, encode_lines(events).to_list())
                assert producer.flush(60) == 0
                self._wait_until_counted(http)
                rounds.run(lambda: None)
                self._note_trends(http)
            # The day's budget ends with the day.
            self.now_ms = self.day.start_ms + DAY_MS
            rounds.run(lambda: None)
        return self._judge()

    def _name_campaigns(self) -> None:
        settings = self.product.settings
        store = DirectoryStore(ClickHouse(settings.clickhouse, settings.database))
        editor = DirectoryEditor(store, DirectoryReader(store), Redis(settings.redis), settings.key_prefix)
        budget = Campaign(
            days.BUDGETED, "Budgeted", days.ADVERTISER, budget="daily", budget_micros=self.day.budget_micros
        )
        editor.put([Advertiser(days.ADVERTISER, "Story"), budget], "story")

    def _wait_until_counted(self, http: TestClient) -> None:
        """Wait until answers have all that was sent; the usual days before, and of the day itself."""
        in_day = self.now_ms > self.day.start_ms
        start_ms = self.day.start_ms - (0 if in_day else days.USUAL_DAYS * DAY_MS)
        parameters = {
            "advertiser_id": "*", "start": iso(start_ms), "end": iso(self.now_ms), "granularity": "total",
        }  # fmt: skip
        expected = self.day.events["event_time"].is_between(start_ms, self.now_ms, closed="left").sum()

        def shown() -> int:
            rows = http.get("/v1/metrics", params=parameters).json().get("data", [])
            return sum(int(row[name]) for row in rows for name in COUNTS)

        wait_until(lambda: shown() == expected, 60, lambda: f"{shown()} of {expected} events until {iso(self.now_ms)}")

    def _note_trends(self, http: TestClient) -> None:
        rows = http.get("/v1/trending", params={"advertiser_id": days.ADVERTISER, "k": _TRENDS}).json()["data"]
        minute = (self.now_ms - self.day.start_ms) // MINUTE_MS
        for place, row in enumerate(rows, 1):
            self.places[row["campaign_id"]].append((minute, place, row["score"]))

    def _judge(self) -> list[str]:
        """Wait for the alerts and messages, print the table, and compare."""
        settings = self.product.settings
        client = ClickHouse(settings.clickhouse, settings.database)
        end_ms = self.day.start_ms + days.HOURS * HOUR_MS - 10 * MINUTE_MS
        expected = _steps(a for a in alerts_of(self.day.minutes(), end_ms))

        def written() -> list[tuple[object, ...]]:
            return _steps(a for a in read_versions(client) if a.kind in KINDS)

        wait_until(lambda: len(written()) >= len(expected), 30, lambda: f"{len(written())} of {len(expected)} versions")
        versions = read_versions(client)
        due = sorted(f"{a.id} {a.version}" for a in versions if a.advertiser_id == days.ADVERTISER)

        def messages() -> list[str]:
            documents = [json.loads(body)["data"] for body in self.posts.bodies]
            return sorted(f"{d['id']} {d['version']}" for d in documents)

        wait_until(lambda: len(messages()) >= len(due), 30, lambda: f"{len(messages())} of {len(due)} messages")
        assert_stays(lambda: messages() == due, 2.0, lambda: f"messages: {messages()}, and not {due}")
        faults = [] if written() == expected else [f"alerts differ from those of the events: {written()}, {expected}"]
        return faults + self._print(versions)

    def _print(self, versions: list[Alert]) -> list[str]:
        """Print what became of each incident, and all other alerts; returns what was not found."""
        types = defaultdict[str, list[tuple[int, str]]](list)
        for body in map(json.loads, self.posts.bodies):
            types[body["data"]["id"]].append((body["data"]["version"], body["type"].removeprefix("alert.")))
        newest = {a.id: a for a in versions if a.opened_ms >= self.day.start_ms}
        faults, told, rows = list[str](), set[str](), list[tuple[str, ...]]()
        planted = [(i.what, i.campaign, i.start, i.end, i.kind, _FOUND_WITHIN) for i in INCIDENTS]
        spent = [self.day.spent_at(share) for share in (NEARLY_SPENT, 1.0)]
        planted.append(
            ("90 % and all of a budget spent", days.BUDGETED, spent[0], spent[1], budget_rule.KIND, _JUDGED_WITHIN)
        )
        for what, campaign, start, end, kind, within in planted:
            own = [a for a in newest.values() if a.campaign_id == campaign and self._minute(a.opened_ms) >= start]
            own = [a for a in own if self._minute(a.opened_ms) <= max(start + within, end)]
            told |= {a.id for a in own}
            if not any(a.kind == kind and self._found(a) - start <= within for a in own):
                faults.append(f"{what}: no {kind} within {within} minutes")
            for alert in sorted(own, key=lambda a: (a.kind != kind, a.opened_ms)):
                rows.append((what, f"{_clock(start)}–{_clock(end)}", *self._cells(alert, start, types[alert.id])))
        for alert in (a for a in newest.values() if a.id not in told):
            rows.append(("nothing", "", *self._cells(alert, None, types[alert.id])))
        head = ("planted", "from, to", "campaign", "alert", "found", "after", "severity", "numbers", "until", "sent")
        for row in (head, ("---",) * len(head), *rows):
            print(f"| {' | '.join(row)} |")
        before = sum(a.version == 1 and a.opened_ms < self.day.start_ms for a in versions)
        print(f"\n{self.day.events.height:,} events; {before} alerts in the two usual days before, all of them false.")
        return faults + self._print_trends()

    def _print_trends(self) -> list[str]:
        riser, bot = self.places[days.RISER], self.places[days.BOT]
        first = [minute for minute, place, _ in riser if place == 1 and minute > days.RISE[0]]
        score = max((score for _, _, score in riser), default=0.0)
        before = next((place for minute, place, _ in riser if minute == days.RISE[0]), 0)
        print(
            f"The riser, place {before} at {_clock(days.RISE[0])}: first among the trending of its advertiser at"
            f" {_clock(first[0]) if first else 'no time'}, score {score:.1f} at most."
        )
        hour = [(place, score) for minute, place, score in bot if days.BOT_HOUR[0] < minute <= days.BOT_HOUR[1] + 60]
        best, highest = min((p for p, _ in hour), default=0), max((s for _, s in hour), default=0.0)
        print(
            f"The bot, {_clock(days.BOT_HOUR[0])}–{_clock(days.BOT_HOUR[1])}: place {best} at best, score {highest:.1f} at most."
        )
        faults = [] if first and first[0] <= days.RISE[1] else ["the riser is not trending"]
        return faults + (["the bot is trending"] if best == 1 else [])

    def _minute(self, at_ms: int) -> int:
        return (at_ms - self.day.start_ms) // MINUTE_MS

    def _found(self, alert: Alert) -> int:
        """The minute of the day at which an alert is known. An unusual minute is when it ends; budgets are judged at a moment."""
        return self._minute(alert.opened_ms) + (alert.kind in KINDS)

    def _cells(self, alert: Alert, start: int | None, types: list[tuple[int, str]]) -> tuple[str, ...]:
        found, detail = self._found(alert), alert.detail
        if alert.kind == budget_rule.KIND:
            numbers = f"{detail['spent_micros'] / 1e6:.2f} of {detail['budget_micros'] / 1e6:.2f}"
        else:
            unit = 1e6 if detail["measure"] == "spend_micros" else 1
            value, usual = (round(detail[name] / unit, 3) for name in ("value", "expected"))
            numbers = f"{value:g}, usual {usual:g}, {detail['deviations']:+.1f} deviations"
        closed = _clock(self._minute(alert.ended_ms)) if alert.ended_ms else "open"
        sent = ", ".join(type_ for _, type_ in sorted(types)) or "no webhook"
        after = "" if start is None else f"{found - start} min"
        return f"{alert.campaign_id}", f"`{alert.kind}`", _clock(found), after, alert.severity, numbers, closed, sent


def _steps(alerts: Any) -> list[tuple[object, ...]]:
    return sorted(
        (a.id, a.version, a.kind, a.severity, a.state, a.campaign_id, a.opened_ms, a.ended_ms) for a in alerts
    )


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


def main() -> int:
    """Tell the story on a stack in a folder of its own, which is removed at the end."""
    logs.configure(verbose=False, quiet=True)
    start_ms = now_ms() // DAY_MS * DAY_MS - DAY_MS
    work, posts = Path(tempfile.mkdtemp(prefix="adclick-story-")), Posts()
    day = days.make_day(start_ms)
    nothing = SyntheticEvents(pl.Series(), np.zeros(0, np.int64), pl.Series(), Truth(pl.DataFrame(), pl.DataFrame()))
    product = Product(Folder(work / "stack"), nothing, start_ms, [], _WEBHOOKS | _JUDGED_HERE | _NEVER_SILENT)
    try:
        product.up()
        faults = Story(product, day, posts, start_ms).tell()
    finally:
        adclick("down", "--dir", str(work / "stack"))
        shutil.rmtree(work, ignore_errors=True)
        posts.shutdown()
        posts.server_close()
    print("\n".join(faults), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
