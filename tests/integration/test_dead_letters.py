"""`adclick dead-letters` on a real topic that anyone may have written to: shown whole, mended, and sent again once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from typing import Any

import pytest

from infra import topics
from infra.cli import cli
from infra.clock import now_ms
from infra.kafka import TransactionalProducer, read_to_end
from infra.records import Record
from infra.settings import Settings
from ingest import dead_letters
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
    producer = TransactionalProducer(settings.kafka, f"{settings.namespace}rejected")
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
    messages = [m for p in range(settings.event_partitions) for m in read_to_end(settings.kafka, topic, p)]
    found = [(m.key(), json.loads(m.value())) for m in messages]
    return sorted((key, event["country"], event.get("cost_micros")) for key, event in found)


def test_whatever_the_topic_holds_is_listed_and_shown(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_an_edit_mends_what_was_at_fault_and_what_was_sent_is_not_sent_twice(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    reject(
        settings, country={"country": "UK"}, cost_micros={"cost_micros": -1, "country": "FR"}, event_id={"event_id": 7}
    )
    for _ in range(2):
        run(*REPLAY)
        assert sent(settings) == [(b"country", "ZZ", None)]
    assert "sent before" in capsys.readouterr().err
    run("replay", "--field", "cost_micros", "--edit", "cost_micros=5")
    run("replay", "--detail", "event_id", "--edit", "event_id=mended", "--json")
    assert json.loads(capsys.readouterr().out) == {"sent": 1, "sent_before": 0, "left": {}}
    assert sent(settings) == [(b"cost_micros", "FR", 5), (b"country", "ZZ", None), (b"mended", "DE", None)]
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
    assert len(list(dead_letters.read(settings))) == 1
