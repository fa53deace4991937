"""`adclick replay` into a real topic: copies in one partition, pipes as they come, and nothing sent of what is no NDJSON."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from infra.clock import now_ms
from infra.kafka import topics
from infra.kafka.consumers import read_to_end
from infra.settings import Settings
from tests.conftest import ADCLICK
from tests.flow import environment
from tests.product import wait_until


def replay(settings: Settings, *words: str, **pipes: Any) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ADCLICK_")}
    return subprocess.Popen(
        [*ADCLICK, "replay", *words],
        env=clean | environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **pipes,
    )


def outcome(running: subprocess.Popen[str]) -> tuple[int, str]:
    stderr = running.communicate(timeout=120)[1]
    return running.returncode, stderr


def sent(settings: Settings) -> list[tuple[int, bytes, dict[str, Any]]]:
    """(partition, key, event) of each message of ad-events."""
    topic = settings.topic(topics.EVENTS)
    return [
        (partition, message.key(), json.loads(message.value()))
        for partition in range(settings.event_partitions)
        for message in read_to_end(settings.kafka_connection, topic, partition)
    ]


def event(event_id: str) -> str:
    return json.dumps({"event_id": event_id, "event_time": now_ms()})


def test_copies_of_an_event_are_sent_to_one_partition_however_their_ids_are_written(
    settings: Settings, tmp_path: Path
) -> None:
    ids = [name for n in range(20) for name in (f"click/2026/{n}", f"café-{n}", f'a"{n}', f"a$b{n}")]
    spellings = {
        "plain": lambda name: f'{{"event_id":{json.dumps(name, ensure_ascii=False)}}}',
        "escaped": lambda name: f'{{"event_id":\t{json.dumps(name)}}}',
        "slashes": lambda name: '{"event_id":' + json.dumps(name).replace("/", "\\/") + "}",
        "packed": lambda name: f'{{"n":"\\ud800","event_id":{json.dumps(name)}}}',
    }
    for kind, spelled in spellings.items():
        lines = "\n".join(map(spelled, ids)).encode()
        (tmp_path / kind).write_bytes(gzip.compress(lines) if kind == "packed" else lines)
    assert outcome(replay(settings, *(str(tmp_path / kind) for kind in spellings)))[0] == 0
    messages = sent(settings)
    assert len(messages) == len(ids) * len(spellings)
    assert {key for _, key, _ in messages} == {name.encode() for name in ids}
    assert len({(partition, key) for partition, key, _ in messages}) == len(ids)
    assert len({partition for partition, _, _ in messages}) > 1


def test_a_pipe_is_sent_as_it_comes_and_input_that_is_not_ndjson_is_not_sent(
    settings: Settings, tmp_path: Path
) -> None:
    array, empty = tmp_path / "events.json", tmp_path / "empty"
    array.write_text(f"[{event('a')}]")
    empty.write_text("")
    for refused in (array, empty):
        code, stderr = outcome(replay(settings, str(refused)))
        assert code == 1
        assert len(stderr.splitlines()) == 1
    live = replay(settings, "-", stdin=subprocess.PIPE)
    assert live.stdin is not None
    for number in range(3):
        live.stdin.write(event(f"live-{number}") + "\n")
        live.stdin.flush()
        wait_until(lambda n=number: len(sent(settings)) == n + 1, 120, "the event is sent")
    # Its other end stays open: the program waits in a read.
    live.send_signal(signal.SIGTERM)
    assert live.wait(120) == 0
    assert live.stderr is not None
    assert "stopped after 3 events, all acknowledged" in live.stderr.read()


def test_a_second_replay_under_new_ids_counts_every_event_again(settings: Settings, tmp_path: Path) -> None:
    ids = [f"{form}-{n}" for n in range(20) for form in ("a$b", "${AUCTION_ID}", "\\1")]
    (tmp_path / "e").write_text("\n".join(map(event, ids)))
    for _ in range(2):
        assert outcome(replay(settings, str(tmp_path / "e"), "--shift-to-now"))[0] == 0
    messages = sent(settings)
    assert len({event_["event_id"] for _, _, event_ in messages}) == len(messages) == 2 * len(ids)
    assert all(key.decode() == event_["event_id"] for _, key, event_ in messages)
