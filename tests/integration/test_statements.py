"""Statements: open while a day is not reconciled, issued once, and issued again when a day is restated."""

from __future__ import annotations

import csv
import datetime as dt
import hashlib
import io
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
from starlette.testclient import TestClient

from infra.clickhouse.client import ClickHouse
from infra.clock import DAY_MS, day_start_ms, iso, now_ms
from infra.settings import Settings
from ingest.partials import BILLED
from query.api.app import create_app
from query.keys import Keys
from query.statements.contents import days_of
from tests import borders
from tests.product import wait_until

TODAY = dt.datetime.fromtimestamp(now_ms() / 1000, dt.UTC).date()
MONTH = (TODAY.replace(day=1) - dt.timedelta(days=1)).replace(day=1)
DAYS = days_of(MONTH)
# A day without an event, which nightly runs pass over; one that is reconciled last; one that is restated.
EMPTY, LAST, RESTATED = DAYS[9], DAYS[4], DAYS[6]
LARGE = 2**60 + 1
HOSTILE = '=1+1, "quoted" <b>'


class Bills:
    """Writes what stream and nightly runs write."""

    def __init__(self, client: ClickHouse) -> None:
        self.client, self.fence = client, 0

    def insert(self, table: str, dates: Sequence[dt.date], cells: Sequence[tuple[int, int, str]], run: str) -> None:
        """Rows of (advertiser, campaign, numbers) on each of the days."""
        values = [
            f"({day_start_ms(date) // 1000}, {campaign}, {advertiser}, 1, 5, 'DE', 'mobile', {run.format(date)}, {numbers})"
            for date in dates
            for advertiser, campaign, numbers in cells
        ]
        self.client.command(f"INSERT INTO {self.client.database}.{table} VALUES {', '.join(values)}")

    def publish(self, dates: Sequence[dt.date], run: str, spend: int) -> None:
        """A run of each day, `run` with its date: of advertiser 3 with campaigns 7 and 8, and of another one."""
        amounts = ((3, 7, spend), (3, 8, 1), (4, 7, 999_999))
        cells = [(advertiser, campaign, f"10, 2, 1, {amount}, 0, 0, 0") for advertiser, campaign, amount in amounts]
        self.insert("exact_days", dates, cells, f"'{run}'")
        self.fence += 1
        stored = self.client.deployment.stored
        table_id = "(SELECT uuid FROM system.tables WHERE database = {database:String} AND name = '%s')"
        runs = [run.format(date) for date in dates]
        self.client.command(
            f"INSERT INTO {self.client.database}.runs SELECT date, run, now64(3), '', 2, 0, 2, 0, 0, '{{}}', {self.fence}, 0,"
            f" {table_id % stored('exact_hours')}, {table_id % stored('exact_days')}"
            " FROM (SELECT {dates:Array(Date)} AS date, {runs:Array(String)} AS run) ARRAY JOIN date, run",
            {"database": self.client.database, "dates": list(dates), "runs": runs},
        )


def test_a_month_is_issued_once_it_is_reconciled_and_again_when_a_day_is_restated(settings: Settings) -> None:
    settings = settings.model_copy(update={"query_timeout_s": 60})
    client = ClickHouse.of(settings)
    bills = Bills(client)
    counted = [date for date in DAYS if date != EMPTY]
    numbers = "9, 2, 1, 5, 0, 0, 0, 0, 1, 0, 0"
    bills.insert("stream_days", counted, [(3, 7, numbers), (3, 8, numbers)], "0")
    bills.publish([date for date in counted if date != LAST], "run-{}", LARGE)
    for tier in ("hours", "days"):
        borders.publish(client, tier, range(settings.block_partitions), now_ms() // DAY_MS * DAY_MS)
    admin = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    month = f"{MONTH:%Y-%m}"
    with TestClient(create_app(settings)) as first, TestClient(create_app(settings)) as second:
        first.put("/v1/advertisers/3", json={"name": "Zwei & Drei", "timezone": "Europe/Berlin"}, headers=admin)
        campaign = {"name": HOSTILE, "advertiser_id": 3, "timezone": "UTC", "status": "active"}
        assert first.put("/v1/campaigns/7", json=campaign, headers=admin).status_code == 200

        def get(http: httpx.Client = first, **parameters: str) -> Any:
            response = http.get(
                "/v1/statements", params={"advertiser_id": "3", "month": month} | parameters, headers=admin
            )
            assert response.status_code == 200, response.text
            return response if parameters.get("format") == "csv" else json.loads(response.text)

        is_as_metrics = _comparison(first, admin)
        wait_until(lambda: is_as_metrics(get()), 20, "the router knows of the runs")
        open_ = get()
        assert (open_["status"], open_["issue"], open_["waiting_for"]) == ("open", None, [LAST.isoformat()])
        assert (open_["name"], [c["name"] for c in open_["campaigns"]]) == ("Zwei & Drei", [HOSTILE, "8"])
        assert {d["date"]: d["finality"] for d in open_["days"]}[LAST.isoformat()] == "closed"

        bills.publish([LAST], "run-last", LARGE)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda n: get((first, second)[n % 2]), range(8)))
        # Routers know of a run a moment later, and with it what the month's total is.
        answers = [answer | {"answer_id": None} for answer in answers]
        assert all(answer == answers[0] for answer in answers)
        final = answers[0]
        assert (final["status"], final["issue"], final["previous_issue"], final["differences"]) == (
            "final",
            1,
            None,
            [],
        )
        assert client.rows(f"SELECT count(), uniq(digest) FROM {settings.database}.statements") == [(1, 1)]
        billed_days = len(DAYS) - 1
        assert final["total"] == dict(
            zip(BILLED, (20 * billed_days, 4 * billed_days, 2 * billed_days, (LARGE + 1) * billed_days), strict=True)
        )
        wait_until(lambda: is_as_metrics(final), 20, "the router knows of the last run")
        assert get()["answer_id"] is not None
        empty = {d["date"]: d for d in final["days"]}[EMPTY.isoformat()]
        assert (empty["clicks"], empty["run_id"]) == (0, None)
        frozen = get(format="csv")
        assert hashlib.sha256(frozen.content).hexdigest() == final["digest"] == frozen.headers["x-adclick-digest"]
        assert _read_csv(frozen.text) == {
            **{("day", d["date"]): d["spend_micros"] for d in final["days"]},
            **{("campaign", c["name"]): c["spend_micros"] for c in final["campaigns"]},
            ("total", "Zwei & Drei"): final["total"]["spend_micros"],
        }

        # A run that changes nothing for the advertiser, and one that does.
        bills.publish([DAYS[0]], "again", LARGE)
        assert get()["issue"] == 1
        bills.publish([RESTATED], "restated", LARGE + 5)
        restated = get(second)
        assert (restated["issue"], restated["previous_issue"]["digest"]) == (2, final["digest"])
        changes = [(c.get("date"), c.get("campaign_id"), c["to"]["spend_micros"] - c["from"]["spend_micros"]) for c in restated["differences"]]  # fmt: skip
        assert changes == [(RESTATED.isoformat(), None, 5), (None, 7, 5)]
        assert get(issue="1") | {"answer_id": None} == final
        assert get(format="csv", issue="1").content == frozen.content
        # What was issued stands while a day is to be reconciled again.
        client.command(f"ALTER TABLE {settings.database}.runs DELETE WHERE date = '{LAST}' SETTINGS mutations_sync = 2")
        standing = get()
        assert (standing["digest"], standing["waiting_for"]) == (restated["digest"], [LAST.isoformat()])
        assert standing["warnings"]
        assert json.loads(get(format="csv").headers["x-adclick-warnings"]) == standing["warnings"]
        _check_refusals(first, client)


def _comparison(http: httpx.Client, headers: dict[str, str]) -> Callable[[Any], bool]:
    def is_as_metrics(statement: Any) -> bool:
        """Whether total and days are what anybody who asks for the same range gets, digit by digit."""
        range_ = {"start": iso(day_start_ms(MONTH)), "end": iso(day_start_ms(DAYS[-1]) + DAY_MS)}
        rows, ids = {}, {}
        for grain in ("total", "day"):
            parameters = {"advertiser_id": "3", "granularity": grain, **range_}
            answer = json.loads(http.get("/v1/metrics", params=parameters, headers=headers).text)
            rows[grain], ids[grain] = answer["data"], answer["answer_id"]
        if statement["answer_id"] not in (ids["total"], None):
            return False
        days = {row["time"][:10]: [row[m] for m in BILLED] for row in rows["day"]}
        return (
            days == {day["date"]: [day[m] for m in BILLED] for day in statement["days"] if any(day[m] for m in BILLED)}
            and {m: rows["total"][0][m] for m in BILLED} == statement["total"]
        )

    return is_as_metrics


def _read_csv(text: str) -> dict[tuple[str, str], int]:
    rows = csv.DictReader(io.StringIO(text))
    return {(row["line"], row["date"] or row["name"]): int(row["spend_micros"]) for row in rows}


def _check_refusals(http: httpx.Client, client: ClickHouse) -> None:
    _, token = Keys(client).create("t", frozenset({4}), admin=False, rate=1e6, burst=1e6, lasts_ms=None)
    following = (TODAY.replace(day=1) + dt.timedelta(days=40)).strftime("%Y-%m")
    for parameters, status in (
        ({"advertiser_id": "3", "month": f"{MONTH:%Y-%m}"}, 403),
        ({"advertiser_id": "4", "month": following}, 400),
        ({"advertiser_id": "4", "month": "2001-02"}, 422),
        ({"advertiser_id": "4", "month": f"{MONTH:%Y-%m}", "issue": "1"}, 404),
        ({"advertiser_id": "4"}, 400),
    ):
        response = http.get("/v1/statements", params=parameters, headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == status, response.text
