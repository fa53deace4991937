"""What trends, by the lists that the notify worker keeps and by what a router computes: from minutes, hours and users in the stores."""

from __future__ import annotations

from typing import Any

import httpx
import numpy as np
import pytest

from infra import logs
from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS, MINUTE_MS, iso, now_ms
from infra.redis.client import Redis
from infra.settings import Settings
from ingest import partials
from query.keys import Keys
from query.notify.trends import TrendKeeper
from query.tiers import user_registers
from query.tiers.trending_users import HourlyUsers
from query.trend_lists import FRESH_MS, TrendLists
from query.trending import LISTED
from query.warnings import NO_TRENDING_USERS
from stream.reach.progress import Progress, publish_progress
from stream.reach.registers import coupons_of, unique_coupons
from tests import borders
from tests.installation import Installation, worker
from tests.integration.test_hot_tier import Shard
from tests.product import wait_until
from tests.unit.test_partials_and_cells import partial

MINE, OTHERS, CROWD = 31, 32, 33
STEADY, RISER, BOT, SHARED, UNKNOWN = 1, 2, 3, 4, 5
OF_MINE, OF_OTHERS = (STEADY, RISER, SHARED), (BOT, SHARED, UNKNOWN)
USUAL, PLACES = 60, 10
# Of one advertiser so many new campaigns that the lists of others must not depend on the highest of all.
CROWDED = range(100, 160)
# Clicks of a minute from each of the places, and users: of a bot one, of one campaign none.
CLICKS = {STEADY: 1, RISER: 4, BOT: 17, SHARED: 2, UNKNOWN: 3}
USERS = {STEADY: 700, RISER: 2_000, BOT: 1, SHARED: 900, UNKNOWN: 0}


def count_users_until(settings: Settings, read_ms: int) -> None:
    """Publish that users are counted up to then."""
    progress = dict.fromkeys(range(settings.event_partitions), Progress(read_ms))
    publish_progress(Redis(settings.redis), settings.key_prefix, progress)


def fill(settings: Settings, end_ms: int) -> None:
    """The last hour's minutes in Redis, a week of hours and the users of the last hours in ClickHouse."""
    count_users_until(settings, end_ms + HOUR_MS)
    of_shards: list[list[dict[str, Any]]] = [[] for _ in range(settings.block_partitions)]
    for advertiser, campaigns in ((MINE, OF_MINE), (OTHERS, OF_OTHERS)):
        for campaign in campaigns:
            of_shards[campaign % len(of_shards)] += [
                partial(
                    **dict.fromkeys(partials.SUMS, 0) | {"clicks": CLICKS[campaign]}, window_ms=minute, campaign_id=campaign,
                    advertiser_id=advertiser, publisher_id=place,
                )
                for minute in range(end_ms - HOUR_MS, end_ms, MINUTE_MS)
                for place in range(1, PLACES + 1)
            ]  # fmt: skip
    for campaign in CROWDED:
        of_shards[campaign % len(of_shards)] += [
            partial(
                **dict.fromkeys(partials.SUMS, 0) | {"clicks": campaign - 90}, window_ms=end_ms - MINUTE_MS, campaign_id=campaign,
                advertiser_id=CROWD, publisher_id=place,
            )
            for place in (1, 2)
        ]  # fmt: skip
    for number, rows in enumerate(of_shards):
        Shard(settings, number=number).show(rows, end_ms)
    client, random = ClickHouse(settings.clickhouse, settings.database), np.random.default_rng(4)
    hour_ms = end_ms // HOUR_MS * HOUR_MS
    for tier in ("hours", "days"):
        borders.publish(client, tier, range(settings.block_partitions), hour_ms - HOUR_MS)
    for advertiser, campaigns in ((MINE, OF_MINE), (OTHERS, OF_OTHERS)):
        for campaign in campaigns:
            keys = f"{campaign}, {advertiser}, 1, 1, 'DE', 'mobile', 0"
            columns = "time, campaign_id, advertiser_id, ad_id, publisher_id, country, device, shard, clicks, version"
            for table, step_s, count in (("stream_hours", 3600, 30 * 24), ("stream_days", 86_400, 30)):
                first = (hour_ms - 2 * HOUR_MS) // 1000 // step_s * step_s
                client.command(
                    f"INSERT INTO {client.database}.{table} ({columns}) SELECT {first} - number * {step_s}, {keys},"
                    f" {USUAL * step_s // 3600}, 1 FROM numbers({count})"
                )
            users = random.integers(0, 2**63 - 1, USERS[campaign])
            coupons = unique_coupons(coupons_of(users)).tolist()
            client.command(
                f"INSERT INTO {client.database}.stream_reach_hours VALUES"
                f" ({hour_ms // 1000}, {campaign}, {advertiser}, {coupons}),"
                f" ({hour_ms // 1000 - 3600}, {campaign}, {advertiser}, {coupons})"
            )


@pytest.fixture(scope="module")
def end_ms(shared_installation: Installation) -> int:
    """The end of the last minute that has events."""
    end_ms = now_ms() // MINUTE_MS * MINUTE_MS
    fill(shared_installation.settings, end_ms)
    return end_ms


def ask(http: httpx.Client, headers: dict[str, str], **parameters: str) -> dict[str, Any]:
    response = http.get("/v1/trending", params=parameters, headers=headers)
    assert response.status_code == 200, response.text
    document: dict[str, Any] = response.json()
    return document


def key(installation: Installation, advertiser: int, *campaigns: int) -> dict[str, str]:
    _, secret = Keys(installation.client).create(
        "key", frozenset({advertiser}), admin=False, rate=1e6, burst=1e6, lasts_ms=None,
        campaigns=frozenset(campaigns) or None,
    )  # fmt: skip
    return {"Authorization": f"Bearer {secret}"}


def test_lists_and_what_is_computed_say_the_same_and_the_bot_does_not_lead(
    installation: Installation, end_ms: int
) -> None:
    settings, http, admin = installation.settings, installation.http, installation.admin
    questions = {
        "all": (admin, {}),
        "mine": (key(installation, MINE), {}),
        "others": (key(installation, OTHERS), {}),
        "crowd": (key(installation, CROWD), {}),
        "two": (admin, {"k": "2"}),
    }
    computed = {name: ask(http, headers, **more) for name, (headers, more) in questions.items()}
    # Lists of the same minute as the answers; so long as it lasts, they are the same.
    TrendKeeper(settings, lambda: end_ms, logs.get("test")).refresh(lambda: None)
    listed = {name: ask(http, headers, **more) for name, (headers, more) in questions.items()}
    for name, answer in listed.items():
        assert answer["computed_at"] == iso(end_ms) and answer["end"] == iso(end_ms), name
        assert answer["warnings"] == computed[name]["warnings"] == ([NO_TRENDING_USERS] if name == "crowd" else [])
        if computed[name]["end"] == iso(end_ms):
            assert answer["data"] == [
                row | {"score": pytest.approx(row["score"], abs=2e-4)} for row in computed[name]["data"]
            ], name
    ids = {name: [row["campaign_id"] for row in answer["data"]] for name, answer in listed.items()}
    # A campaign whose users are not known counts as the bot, the lowest of the others; with fewer clicks it comes after it.
    assert ids["all"][:5] == [RISER, SHARED, STEADY, BOT, UNKNOWN] and len(ids["all"]) == LISTED
    assert ids["others"] == [SHARED, BOT, UNKNOWN]
    assert ids["crowd"] == [*CROWDED][: -LISTED - 1 : -1]
    assert ids["mine"] == [RISER, SHARED, STEADY]
    rows = {row["campaign_id"]: row for name in ("others", "mine") for row in listed[name]["data"]}
    assert [rows[campaign]["users_known"] for campaign in (UNKNOWN, BOT, RISER)] == [False, True, True]
    assert rows[UNKNOWN]["users"] == rows[BOT]["users"]
    assert rows[BOT]["growth"] == pytest.approx(170) and rows[BOT]["users"] == pytest.approx(1 / 10_200, abs=1e-4)
    assert rows[RISER]["users"] == pytest.approx(2_000 / 2_400, rel=0.05)
    assert rows[RISER]["growth"] == pytest.approx(40) and rows[RISER]["sources"] == pytest.approx(0.9)
    # A campaign of two advertisers: of each its own, and of both together.
    volumes = [next(r["volume"] for r in listed[n]["data"] if r["campaign_id"] == SHARED) for n in ("all", "mine")]
    assert volumes == [2 * 1_200, 1_200]
    # While users lag, campaigns of many look like bots.
    count_users_until(settings, end_ms - 3 * MINUTE_MS)
    TrendKeeper(settings, lambda: end_ms + 1, logs.get("test")).refresh(lambda: None)
    lagging = ask(http, admin)
    assert lagging["warnings"] == [NO_TRENDING_USERS]
    assert {row["users"] for row in lagging["data"]} == {None}
    count_users_until(settings, end_ms + HOUR_MS)


@pytest.mark.usefixtures("end_ms")
def test_other_questions_and_narrower_keys_are_computed(installation: Installation) -> None:
    settings, http, admin = installation.settings, installation.http, installation.admin
    marker = iso(now_ms() // MINUTE_MS * MINUTE_MS - 30_000)
    keeper = TrendKeeper(settings, lambda: now_ms() // MINUTE_MS * MINUTE_MS - 30_000, logs.get("test"))
    keeper.refresh(lambda: None)
    for headers, parameters in (
        (admin, {"dimension": "publisher"}), (admin, {"by": "impressions"}), (admin, {"k": "51"}),
        (key(installation, MINE, RISER), {}),
    ):  # fmt: skip
        assert ask(http, headers, **parameters)["computed_at"] > marker, parameters
    narrow = ask(http, key(installation, MINE, RISER))
    assert {row["campaign_id"] for row in narrow["data"]} <= {RISER}


def test_users_of_a_few_and_of_very_many_campaigns_are_the_same(
    installation: Installation, end_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = HourlyUsers(installation.client, 5, list)

    def read(**of: Any) -> dict[tuple[int, ...], int]:
        counts = users.read(end_ms - HOUR_MS, end_ms, **of)
        return dict(zip(zip(*(column.tolist() for column in counts.groups), strict=True), counts.users.tolist(), strict=True))  # fmt: skip

    questions: list[dict[str, Any]] = [
        {},
        {"campaigns": (RISER, SHARED), "by_advertiser": True},
        {"advertiser": OTHERS},
    ]
    dense = [read(**question) for question in questions]
    monkeypatch.setattr(user_registers, "_MOST_DENSE", 0)
    assert [read(**question) for question in questions] == dense
    # Of a campaign of two advertisers the users of both, who are others.
    of_all, by_advertiser, of_others = dense
    assert of_all == {
        (campaign,): pytest.approx(users * (1 + (campaign == SHARED)), rel=0.05) for campaign, users in USERS.items() if users
    }  # fmt: skip
    assert by_advertiser.keys() == {(RISER, MINE), (SHARED, MINE), (SHARED, OTHERS)}
    assert of_others == {(BOT,): 1, (SHARED,): by_advertiser[SHARED, OTHERS]}


@pytest.mark.usefixtures("end_ms")
def test_lists_expire_and_old_ones_answer_nothing(installation: Installation) -> None:
    settings = installation.settings
    redis, clock = Redis(settings.redis), [now_ms()]
    keeper, lists = TrendKeeper(settings, lambda: clock[0], logs.get("test")), TrendLists(redis, settings.key_prefix)
    first_ms = clock[0]
    for _ in range(4):
        keeper.refresh(lambda: None)
        clock[0] += 1
    last_ms = clock[0] - 1
    assert lists.read(None, 50, last_ms + FRESH_MS - 1) is not None
    assert lists.read(None, 50, last_ms + FRESH_MS) is None
    names = redis.scan_keys(f"{settings.key_prefix}trends*")
    assert all(0 < redis.call("TTL", name) <= 300 for name in names)
    # Beside the current lists those before: a reader may be between the two keys.
    moments = {int(name.split(b"{")[1].split(b"}")[0]) for name in names if b"{" in name}
    assert moments & {first_ms + n for n in range(4)} == {last_ms - 1, last_ms}
    with worker(installation) as running:
        wait_until(lambda: running.trends, 20, "the notify worker writes them, too")
    listed = lists.read(None, 50, last_ms)
    assert listed is not None and listed[0].computed_ms > last_ms
