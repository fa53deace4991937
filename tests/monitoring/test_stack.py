"""`adclick up --observe`: rules and boards on the Prometheus of a stack that counts events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.cli.app import App
from infra.embedded.stack_folder import Folder
from query.api.metric_table import METRICS
from tests.conftest import adclick
from tests.monitoring.rehearsal.load import LiveLoad, SteadyQuestions
from tests.product import wait_until
from tests.unit.test_monitoring import expressions, names_in, rules

EVENTS = 2_000
# What a stack without faults, certificates and nightly runs does not expose.
_MISSING = {
    "adclick_certificate_not_after_timestamp_seconds", "adclick_worker_waiting", "adclick_worker_stopped",
    "adclick_false_alarms_per_campaign_month", "adclick_last_reconciliation_timestamp_seconds",
    "adclick_newest_reconciled_day_timestamp_seconds",
}  # fmt: skip
# Its Redis has none.
_LIMIT = "adclick_redis_memory_limit_bytes"


@dataclass
class Observed:
    """A stack and its Prometheus."""

    folder: Path
    prometheus: str

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer of Prometheus' API."""
        response = httpx.get(f"{self.prometheus}/api/v1/{path}", params=parameters, timeout=30)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def samples(self, expression: str) -> list[dict[str, Any]]:
        """The result of an expression now."""
        result: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return result


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    """A stack with Prometheus, to which some events were sent."""
    folder = tmp_path_factory.mktemp("observed") / "stack"
    started = adclick("up", "--detach", "--observe", "--json", "--dir", str(folder))
    assert started.returncode == 0, started.stderr
    try:
        events = str(folder / "events.ndjson")
        for words in (
            [
                "generate",
                "--events",
                str(EVENTS),
                "--span",
                "2h",
                "--malformed",
                "0.02",
                "--duplicates",
                "0.05",
                "--out",
                events,
            ],
            ["replay", events, "--shift-to-now"],
            ["query", "--campaign", "1", "--start", "-2h", "--end", "now"],
        ):
            done = adclick(*words, "-q", "--dir", str(folder))
            assert done.returncode == 0, done.stderr
        endpoints = json.loads(started.stdout)
        # A share of nothing has no sample: some events and questions go on.
        load = LiveLoad(App(str(folder), False, False, True).settings, 20)
        questions = SteadyQuestions(endpoints["http"], endpoints["api_key"], 1, 1.0)
        try:
            yield Observed(folder, endpoints["prometheus"])
        finally:
            questions.close()
            load.close()
    finally:
        adclick("down", "--dir", str(folder))
    assert not Folder(folder).processes()


def test_prometheus_scrapes_the_router_and_sees_all_metrics(stack: Observed) -> None:
    wait_until(
        lambda: stack.samples(f"sum(adclick_ingest_messages_total{{outcome!='canary'}}) >= {EVENTS}"),
        60, "all messages are judged, and scraped",
    )  # fmt: skip
    (target,) = stack.get("targets")["activeTargets"]
    assert (target["health"], target["labels"]["job"], target["lastError"]) == ("up", "adclick", "")
    names = set(stack.get("label/__name__/values"))
    exposed = {name for name, row in METRICS.items() if {name, f"{name}_bucket"} & names}
    assert METRICS.keys() - exposed == _MISSING
    assert _value(stack, 'sum(adclick_ingest_messages_total{outcome="rejected"})') > 0


def _value(stack: Observed, expression: str) -> float:
    return float(stack.samples(expression)[0]["value"][1])


def _empty_panels(stack: Observed) -> list[str]:
    """The panels without a sample that is a number, but for those that such a stack has no metric for."""
    return [
        where
        for where, expression in expressions()
        if ": " in where
        and not {name for name, _ in names_in(expression).selected} & {*_MISSING, _LIMIT}
        and not any(sample["value"][1] != "NaN" for sample in stack.samples(expression.replace("$job", "adclick")))
    ]


def test_every_expression_of_rules_and_boards_is_evaluated_without_an_error(stack: Observed) -> None:
    # A rate needs two scrapes of its counter, and some counters begin with the first event.
    wait_until(lambda: not _empty_panels(stack), 60, lambda: f"no samples in {_empty_panels(stack)}")
    groups = stack.get("rules")["groups"]
    evaluated = [rule for group in groups for rule in group["rules"]]
    wait_until(
        lambda: {rule["health"] for group in stack.get("rules")["groups"] for rule in group["rules"]} == {"ok"},
        60, "all rules are evaluated",
    )  # fmt: skip
    assert len(evaluated) == len(rules())
    assert [
        rule["lastError"] for group in stack.get("rules")["groups"] for rule in group["rules"] if rule.get("lastError")
    ] == []
    # Only malformed messages are wrong with this stack, and only for moments.
    firing = {alert["labels"]["alertname"] for alert in stack.get("alerts")["alerts"] if alert["state"] == "firing"}
    assert firing <= {"AdclickDeadLetters"}


def test_status_shows_where_prometheus_is_and_up_brings_it_back(stack: Observed) -> None:
    status = json.loads(adclick("status", "--json", "--dir", str(stack.folder)).stdout)
    assert status["prometheus"] == stack.prometheus
    before = Folder(stack.folder).processes()["prometheus"]
    before.kill()

    def is_back() -> bool:
        process = Folder(stack.folder).processes().get("prometheus")
        return process is not None and process.pid != before.pid

    wait_until(is_back, 20, "the supervisor has started it again")
    wait_until(lambda: _is_ready(stack), 20, "it answers")


def _is_ready(stack: Observed) -> bool:
    try:
        return httpx.get(f"{stack.prometheus}/-/ready", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
