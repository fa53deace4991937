"""The pipeline on a Redis Cluster, each process with a user that may do no more than the page for operators lists."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.redis.slots import key_slot
from infra.settings import Settings
from tests.clusters.redis_cluster import RedisCluster, running_cluster
from tests.flow import flow

PAGE = (Path(__file__).parents[2] / "docs" / "operating.md").read_text()
WORKERS = ("ingest", "archive", "stream")
PASSWORD = "p/w?#@"
ENCODED = "p%2Fw%3F%23%40"


def listed_rules(process: str) -> list[str]:
    """What the page lists for a process, and for all."""
    common = re.search(r"All have\n`([^`]+)`, and in a cluster `([^`]+)`", PAGE)
    own = re.search(rf"^\| {process} \| `([^`]+)` \|$", PAGE, re.MULTILINE)
    assert common is not None and own is not None
    return f"{common[1]} {common[2]} {own[1]}".split()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[RedisCluster]:
    with running_cluster(tmp_path / "cluster") as running:
        yield running


def add_users(cluster: RedisCluster, settings: Settings) -> dict[str, str]:
    """Add a user for each process to all nodes; returns their URLs."""
    urls = {}
    for process in (*(f"`{worker}`" for worker in WORKERS), "all others"):
        user = process.strip("`").replace(" ", "-")
        rules = [rule.replace("~adclick:", f"~{settings.key_prefix}") for rule in listed_rules(process)]
        for node in cluster.nodes:
            node.client.execute_command("ACL", "SETUSER", user, "on", f">{PASSWORD}", *rules)
        urls[user] = cluster.url.replace("://", f"://{user}:{ENCODED}@")
    return urls


def denials(cluster: RedisCluster) -> list[tuple[bytes, bytes]]:
    """(user, command) of all that nodes have denied."""
    entries = [entry for node in cluster.nodes if node.is_up for entry in node.client.acl_log()]
    return [(entry["username"], entry["object"]) for entry in entries]


def test_answers_are_exact_while_slots_move_and_after_a_fail_over(
    settings: Settings, tmp_path: Path, cluster: RedisCluster
) -> None:
    urls = add_users(cluster, settings)
    settings = settings.model_copy(update={"redis": urls["all-others"], "redis_wait_replicas": 1})
    with flow(settings, tmp_path, events=20_000) as running:
        running.settings = running.settings.model_copy(update={"ingest_batch": 1_000, "redis_page": 50})
        for worker in WORKERS:
            running.start(f"{worker}-0", ADCLICK_REDIS=urls[worker])
        running.send(7_000)
        running.wait_until_something_is_shown()
        sending = threading.Thread(target=running.send, args=(7_000,))
        sending.start()
        for tag in ("{p0}", "{s0}", "{s1}"):
            slot, source = key_slot(tag.encode()), cluster.owner(tag)
            target = cluster.other_primary(source)
            cluster.begin_move(slot, source, target)
            cluster.move_keys(slot, source, target)
            cluster.end_move(slot, source, target)
        sending.join()
        cluster.fail_over(cluster.owner("{s0}"))
        # One primary has no replica any more: ingest is not to wait for one that never comes.
        running.workers["ingest-0"].kill()
        running.start("ingest-0", ADCLICK_REDIS=urls["ingest"], ADCLICK_REDIS_WAIT_REPLICAS="0")
        running.send()
        running.wait_until_exact(120)
        assert denials(cluster) == []
