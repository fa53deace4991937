"""`adclick dead-letters` on a real topic that anyone may have written to: shown whole, edited, and sent again once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from typing import Any

import pytest
from starlette.testclient import TestClient

from infra.cli.main import cli
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.kafka import topics
from infra.kafka.consumers import read_to_end
from infra.kafka.records import Record
from infra.kafka.transactions import TransactionalProducer
from infra.settings import Settings
from ingest.dead_letters import letters as dead_letters
from query.api.app import create_app
from query.keys import Keys
from tests.conftest import ADCLICK
from tests.flow import environment
from tests.hostile_letters import HOSTILE, send_hostile_letters

REPLAY = ("replay", "--reason", "bad-value", "--edit", "country=ZZ")


@pytest.fixture(autouse=True)
def addresses(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds the test's own topics."""
    for name in [name for name in os.environ if name.startswith("ADCLICK_")]:
        monkeypatch.delenv(name)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)


def run(*words: str) -> None:
    cli.main(["dead-letters", *words], standalone_mode=False)


def reject(settings: Settings, **faults: dict[str, Any]) -> None:
    """Write a letter for each field at fault, about an event that is valid but for these fields."""
    event = {
        "event_type": "click", "event_time": now_ms(), "campaign_id": 900_001, "ad_id": 1, "advertiser_id": 9_001,
        "publisher_id": 1, "country": "DE",
    }  # fmt: skip
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}rejected")
    producer.open()
    headers = {field: (("reason", b"bad-value"), ("detail", field.encode())) for field in faults}
    topic = settings.topic(topics.DEAD_LETTERS)
    producer.write(
        Record(topic, json.dumps(event | {"event_id": field} | fields).encode(), None, 0, headers[field])
        for field, fields in faults.items()
    )


def sent(settings: Settings) -> list[tuple[bytes, str, int | None]]:
    """(key, country, cost) of each message of ad-events."""
    topic = settings.topic(topics.EVENTS)
    messages = [m for p in range(settings.event_partitions) for m in read_to_end(settings.kafka_connection, topic, p)]
    events = [(m.key(), json.loads(m.value())) for m in messages]
    return sorted((key, event["country"], event.get("cost_micros")) for key, event in events)


def test_any_letter_is_listed_and_shown(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    send_hostile_letters(settings)
    run("list")
    table = capsys.readouterr().out
    assert len(table.splitlines()) == len(HOSTILE) + 1
    assert "[/index.html] GET 404 [error] x" in table
    assert "\\x1b[2J\\x1b]0;title\\x07" in table
    assert all(line.isprintable() for line in table.splitlines())
    run("list", "--json")
    listed = json.loads(capsys.readouterr().out)
    assert len({letter["name"] for letter in listed}) == len(HOSTILE)
    for letter, hostile in zip(listed, HOSTILE.values(), strict=True):
        if hostile.value is None or len(hostile.value) < 1_000:
            run("show", letter["name"])
            shown = json.loads(capsys.readouterr().out)
            assert shown["name"] == letter["name"]
            text = shown["value"] if "value_base64" not in shown else None
            assert text is None or text.encode() == hostile.value
    run("replay", "--detail", "no such detail")
    assert sent(settings) == []


def test_an_edited_letter_is_sent_once(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    reject(
        settings, country={"country": "UK"}, cost_micros={"cost_micros": -1, "country": "FR"}, event_id={"event_id": 7}
    )
    for _ in range(2):
        run(*REPLAY)
        assert sent(settings) == [(b"country", "ZZ", None)]
    assert "sent before" in capsys.readouterr().err
    run("replay", "--field", "cost_micros", "--edit", "cost_micros=5")
    run("replay", "--detail", "event_id", "--edit", "event_id=edited", "--json")
    assert json.loads(capsys.readouterr().out) == {"sent": 1, "sent_before": 0, "left": {}}
    assert sent(settings) == [(b"cost_micros", "FR", 5), (b"country", "ZZ", None), (b"edited", "DE", None)]
    run("list", "--json")
    assert all(letter["sent"] for letter in json.loads(capsys.readouterr().out))
    run(*REPLAY, "--again")
    assert len(sent(settings)) == 4


@pytest.mark.parametrize(("fault", "at_first"), [("dead-letters.produced", 0), ("dead-letters.committed", 1)])
def test_a_replay_that_is_killed_half_way_sends_each_event_once_in_the_end(
    settings: Settings, fault: str, at_first: int
) -> None:
    reject(settings, country={"country": "UK"})
    words = [*ADCLICK, "dead-letters", *REPLAY]
    killed = subprocess.run(words, env=os.environ | {"ADCLICK_FAULT": f"kill@{fault}"}, timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert len(sent(settings)) == at_first
    # The killed command's transaction is settled by the next command at the latest.
    run(*REPLAY)
    run(*REPLAY)
    assert sent(settings) == [(b"country", "ZZ", None)]
    assert len(list(dead_letters.read_letters(settings))) == 1


def test_letters_are_listed_by_page_counted_and_sent_again_over_http(settings: Settings) -> None:
    send_hostile_letters(settings)
    faults: dict[str, dict[str, Any]] = {
        "country": {"country": "UK"},
        "cost_micros": {"cost_micros": -1},
        "event_id": {"event_id": 7},
    }
    reject(settings, **faults)
    producer = TransactionalProducer(settings.kafka_connection, f"{settings.namespace}late")
    producer.open()
    late = b'{"event_id": "late"}' + b" " * 5_000
    producer.write([Record(settings.topic(topics.DEAD_LETTERS), late, None, 1, (("reason", b"too-late"),))])
    headers = {"Authorization": f"Bearer {settings.api_key.get_secret_value()}"}
    with TestClient(create_app(settings)) as http:

        def get(**parameters: str) -> dict[str, Any]:
            response = http.get("/v1/dead-letters", params=parameters, headers=headers)
            assert response.status_code == 200, response.text
            document: dict[str, Any] = response.json()
            return document

        def replay(status: int = 200, **body: Any) -> dict[str, Any]:
            response = http.post("/v1/dead-letters/replay", json=body, headers=headers)
            assert response.status_code == status, response.text
            document: dict[str, Any] = response.json()
            return document

        # Each letter once, whatever the pages' size.
        everything = get(limit="500")
        names, cursor = list[str](), ""
        while cursor is not None:
            page = get(limit="3", **({"cursor": cursor} if cursor else {}))
            names += [letter["name"] for letter in page["data"]]
            cursor = page["next_cursor"]
        assert sorted(names) == sorted(letter["name"] for letter in everything["data"])
        assert len(names) == len(set(names)) == len(HOSTILE) + len(faults) + 1
        assert (everything["next_cursor"], everything["counts_complete"]) == (None, True)
        by_reason = Counter(letter["reason"] or "" for letter in everything["data"] if letter["time"] is not None)
        counted = Counter({count["reason"]: count["count"] for count in everything["counts"]})
        assert counted["bad-value"] == by_reason["bad-value"] >= len(faults)
        letters = {letter["detail"]: letter for letter in get(reason="bad-value")["data"] if letter["detail"] in faults}
        assert set(letters) == set(faults)
        (too_late,) = get(reason="too-late")["data"]
        assert (len(too_late["value"]), too_late["bytes"], too_late["truncated"]) == (4096, len(late), True)

        # Edited, each once; what would be rejected again is refused with why, and the others are sent.
        wanted = [letters["country"]["name"], letters["cost_micros"]["name"], too_late["name"]]
        outcome = replay(names=wanted, edit={"country": "ZZ"})
        assert outcome["sent"] == 1
        assert {r["name"]: r["reason"].split()[0] for r in outcome["refused"]} == {
            wanted[1]: "bad-value", wanted[2]: "too-late:",
        }  # fmt: skip
        assert sent(settings) == [(b"country", "ZZ", None)]
        assert "sent before" in replay(names=wanted[:1], edit={"country": "ZZ"})["refused"][0]["reason"]
        mended = json.loads(letters["event_id"]["value"]) | {"event_id": "edited"}
        assert replay(name=letters["event_id"]["name"], value=json.dumps(mended)) == {"sent": 1, "refused": []}
        assert replay(name=too_late["name"], value=json.dumps(mended))["refused"][0]["reason"].startswith("too-late")
        assert replay(name=letters["cost_micros"]["name"], value="{")["refused"][0]["reason"].startswith("malformed")
        assert sent(settings) == [(b"country", "ZZ", None), (b"edited", "DE", None)]
        marked = {letter["name"] for letter in get(reason="bad-value")["data"] if letter["sent_again"]}
        assert {wanted[0], letters["event_id"]["name"]} <= marked
        assert letters["cost_micros"]["name"] not in marked

        for status, body in (
            (404, {"names": ["0/999999"]}), (404, {"names": ["9999/0"]}), (400, {"names": ["x"]}), (400, {}),
            (400, {"names": wanted, "edit": {"color": "red"}}), (400, {"name": wanted[0]}), (400, {"names": wanted, "other": 1}),
            (400, {"names": [f"0/{n}" for n in range(101)]}),
        ):  # fmt: skip
            assert "detail" in replay(status, **body)
        tenant = Keys(ClickHouse(settings.clickhouse, settings.database)).create(
            "t", frozenset({3}), admin=False, rate=1e6, burst=1e6, lasts_ms=None
        )
        assert http.get("/v1/dead-letters", headers={"Authorization": f"Bearer {tenant[1]}"}).status_code == 403
