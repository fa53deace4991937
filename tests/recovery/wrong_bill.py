"""A wrong bill: a day was published without events that were rejected; they are mended, the day is restated, and advertisers are told."""

from __future__ import annotations

import json
import time
from typing import Any

from infra.clock import iso
from query.client import Client
from tests.conftest import adclick
from tests.product import Product, wait_until
from tests.recovery.late_clicks import LateClicks, added
from tests.recovery.scene import Scene, check, reconcile


def wrong_bill(scene: Scene) -> float:
    """A day that was published too low: restated exactly, with what changed in the feed of changes and in the statement."""
    with scene.restored("wrong-bill") as product:
        product.up()
        clicks = LateClicks.of(scene)
        check(product, scene.reconciled_questions(product))
        wait_until(product.caught_up, 60, "the stack is up to date")
        billed, others = clicks.read_day(product), clicks.read_others(product)
        feed, statement = _changes(product, clicks, "now"), _statement(product, scene, clicks)
        clicks.reject(product)
        began = time.monotonic()
        clicks.mend(product)
        # Until the day is restated its bill stands, and the run of the next day would raise AdclickUnbilledEvents.
        assert clicks.read_day(product) == billed
        reconcile(product, scene)
        wait_until(lambda: clicks.read_day(product) != billed, 60, "the router knows of the new run")
        took_s = time.monotonic() - began
        assert added(billed, clicks.read_day(product)) == clicks.expected
        assert clicks.read_others(product) == others
        _check_what_clients_learn(product, scene, clicks, feed["as_of"], statement)
        # A second run of the day finds what the first one published.
        again = adclick("reconcile", "--date", scene.date, "--dir", str(product.folder.path))
        assert (again.returncode, "nothing to do" in again.stderr) == (0, True), again.stderr
        return took_s


def _check_what_clients_learn(
    product: Product, scene: Scene, clicks: LateClicks, as_of: str, statement: dict[str, Any]
) -> None:
    cells = [c for c in _changes(product, clicks, as_of)["data"] if c["campaign_id"] == clicks.campaign]
    assert [(c["time"], c["cause"], added(c["from"], c["to"])) for c in cells] == [
        (iso(scene.day_ms), "reconciled", clicks.expected)
    ], cells
    explained = adclick(
        "reconcile",
        "--explain",
        str(clicks.campaign),
        "--date",
        scene.date,
        "--json",
        "--dir",
        str(product.folder.path),
    )
    causes = json.loads(explained.stdout)["causes"]
    assert causes["dead-letter-replayed"]["clicks"] == clicks.expected["clicks"], causes
    restated = _statement(product, scene, clicks)
    before, after = ({d["date"]: d for d in s["days"]}[scene.date] for s in (statement, restated))
    assert after["spend_micros"] - before["spend_micros"] == clicks.expected["spend_micros"]
    if statement["status"] == "final":
        assert (restated["issue"], restated["previous_issue"]["digest"]) == (
            statement["issue"] + 1,
            statement["digest"],
        )
        named = {d.get("date") or d.get("campaign_id") for d in restated["differences"]}
        assert named == {scene.date, clicks.campaign}, restated["differences"]
    print(f"  statement {statement['status']}, issue {statement['issue']} -> {restated['issue']}", flush=True)


def _changes(product: Product, clicks: LateClicks, since: str) -> dict[str, Any]:
    parameters = [("advertiser_id", str(clicks.advertiser)), ("granularity", "day"), ("since", since)]
    return Client(product.settings).get("/v1/metrics/changes", parameters)


def _statement(product: Product, scene: Scene, clicks: LateClicks) -> dict[str, Any]:
    parameters = [("advertiser_id", str(clicks.advertiser)), ("month", scene.date[:7])]
    return Client(product.settings).get("/v1/statements", parameters)
