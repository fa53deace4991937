"""A router as a process: live streams, a stop in the middle of them, and slow and broken clients."""

from __future__ import annotations

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from infra.clickhouse.client import ClickHouse
from infra.clock import HOUR_MS, MINUTE_MS, now_ms
from infra.settings import Settings
from query.api.live import STREAMS_A_KEY
from query.keyring import REFRESH_S as KEYS_REFRESH_S
from query.keys import Keys
from tests import borders
from tests.clusters.tcp_proxy import Proxy
from tests.flow import worker_environment
from tests.integration.test_hot_tier import Shard
from tests.ports import unused_port
from tests.posts import Posts
from tests.product import PATIENCE, assert_stays, wait_until
from tests.unit.test_partials_and_cells import partial

_LIVE = [("campaign_id", "1"), ("start", "-10m"), ("end", "now"), ("granularity", "minute")]


class Server:
    """A router's process."""

    def __init__(self, settings: Settings, **more: str) -> None:
        self.port = unused_port()
        self.settings = settings.model_copy(update={"http": f"http://127.0.0.1:{self.port}", **more})
        environment = worker_environment(self.settings, "query-0")
        self.process = subprocess.Popen([sys.executable, "-m", "infra", "serve", "-q"], env=environment)
        wait_until(self._answers, 30, "the router answers")

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.settings.http}/healthz").status_code == 200
        except httpx.HTTPError:
            return False

    def headers(self, token: str = "") -> dict[str, str]:
        return {"Authorization": f"Bearer {token or self.settings.api_key.get_secret_value()}"}


class Events:
    """Reads a stream of events in a thread."""

    def __init__(
        self,
        server: Server,
        headers: dict[str, str],
        path: str = "/v1/stream",
        asked: Sequence[tuple[str, str]] = _LIVE,
    ) -> None:
        self.events: list[dict[str, str]] = []
        self.status = 0
        self.ended = threading.Event()
        self._client = httpx.Client(timeout=20 * PATIENCE)
        self._arguments = (f"{server.settings.http}{path}", headers, httpx.QueryParams(tuple(asked)))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        url, headers, parameters = self._arguments
        try:
            with self._client.stream("GET", url, params=parameters, headers=headers) as answer:
                self.status, event = answer.status_code, dict[str, str]()
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if line and name:
                        event[name] = value
                    elif not line and event:
                        self.events.append(event)
                        event = {}
        except (httpx.HTTPError, httpx.StreamError, RuntimeError):
            pass
        finally:
            self.ended.set()

    def rows(self, number: int) -> list[int]:
        wait_until(lambda: len(self.events) > number, 5, f"event {number}")
        return [row["impressions"] for row in json.loads(self.events[number]["data"])]

    def close(self) -> None:
        self._client.close()


@pytest.fixture
def shard(settings: Settings) -> Shard:
    return Shard(settings)


@pytest.fixture
def server(settings: Settings, shard: Shard) -> Iterator[Server]:
    running_server = Server(settings)
    yield running_server
    running_server.process.kill()
    running_server.process.wait()


def minutes_ago(count: int) -> list[int]:
    """The starts of the last minutes, the newest first: of one moment, so that none may begin between two uses."""
    newest = now_ms() // MINUTE_MS * MINUTE_MS
    return [newest - n * MINUTE_MS for n in range(count)]


def show(shard: Shard, minute: int, impressions: int) -> None:
    row: dict[str, Any] = partial(window_ms=minute, impressions=impressions, late=0)
    shard.show([row], minute - 5 * MINUTE_MS)


def test_a_stream_sends_changes_and_a_client_that_reconnects_misses_none(server: Server, shard: Shard) -> None:
    _, one_ago, two_ago, three_ago = minutes_ago(4)
    show(shard, three_ago, 10)
    show(shard, two_ago, 20)
    first = Events(server, server.headers())
    assert first.rows(0) == [10, 20]
    show(shard, two_ago, 5)
    shown_at = time.monotonic()
    assert first.rows(1) == [25]
    assert time.monotonic() - shown_at < 2 * PATIENCE
    last_id = first.events[1]["id"]
    first.close()
    show(shard, one_ago, 7)
    reconnected = Events(server, server.headers() | {"Last-Event-ID": last_id})
    assert 7 in reconnected.rows(0)
    current = Events(server, server.headers() | {"Last-Event-ID": reconnected.events[0]["id"]})
    assert_stays(lambda: current.events == [], 2.5, "a client that has all rows is sent none")
    for stream in (reconnected, current):
        stream.close()


def test_a_stopping_server_tells_its_streams_to_reconnect(server: Server, shard: Shard) -> None:
    show(shard, minutes_ago(3)[2], 20)
    stream = Events(server, server.headers())
    stream.rows(0)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(6 * PATIENCE) == 0
    assert stream.ended.wait(2 * PATIENCE)
    assert stream.events[-1]["event"] == "reconnect"


def test_a_stream_ends_with_its_key_and_a_key_has_a_limit_of_streams(
    server: Server, shard: Shard, settings: Settings
) -> None:
    show(shard, minutes_ago(3)[2], 20)
    keys = Keys(ClickHouse(settings.clickhouse, settings.database))
    key, token = keys.create("test", None, admin=False, rate=1e6, burst=1e6, lasts_ms=None)
    streams = [Events(server, server.headers(token)) for _ in range(STREAMS_A_KEY)]
    for stream in streams:
        stream.rows(0)
    url = f"{server.settings.http}/v1/stream"
    refused = httpx.get(url, params=httpx.QueryParams(tuple(_LIVE)), headers=server.headers(token))
    assert refused.status_code == 429
    assert refused.json()["type"] == "/problems/too-many-streams"
    keys.revoke(key.id)
    for stream in streams:
        assert stream.ended.wait(5 * PATIENCE)
        assert stream.events[-1]["event"] == "problem"


def spans_of(posts: Posts) -> list[Any]:
    """The spans that a collector has received."""
    requests = [ExportTraceServiceRequest.FromString(body) for body in posts.bodies]
    return [
        span
        for request in requests
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


def test_a_trace_continues_from_the_request_to_each_read_of_a_tier(settings: Settings, shard: Shard) -> None:
    collector = Posts()
    close_hours(settings)
    server = Server(settings, trace_collector=f"http://127.0.0.1:{collector.server_port}/v1/traces")
    try:
        show(shard, minutes_ago(3)[2], 20)
        trace, caller = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
        headers = server.headers() | {"traceparent": f"00-{trace}-{caller}-01"}
        url = f"{server.settings.http}/v1/metrics"
        assert httpx.get(url, params=httpx.QueryParams(tuple(_LIVE)), headers=headers).status_code == 200
        # Two pieces, which are read at the same time.
        other = trace[::-1]
        hours = f"{url}?campaign_id=1&start=-20h&end=now&granularity=hour"
        headers |= {"traceparent": f"00-{other}-{caller}-01"}
        assert httpx.get(hours, headers=headers).status_code == 200
        server.process.terminate()
        server.process.wait(10 * PATIENCE)
        for trace_id, stores in (
            (trace, {"read hot": "redis"}),
            (other, {"read hot": "redis", "read warm": "clickhouse"}),
        ):
            spans = {span.name: span for span in spans_of(collector) if span.trace_id.hex() == trace_id}
            request = spans.pop("GET /v1/metrics")
            assert request.parent_span_id.hex() == caller
            assert {span.parent_span_id for span in spans.values()} == {request.span_id}
            attributes = {name: {a.key: a.value.string_value for a in span.attributes} for name, span in spans.items()}
            assert {name: of_span["db.system.name"] for name, of_span in attributes.items()} == stores
    finally:
        server.process.kill()
        server.process.wait()
        collector.shutdown()


def close_hours(settings: Settings) -> None:
    """Publish that ClickHouse has all hours but the last two."""
    clickhouse = ClickHouse(settings.clickhouse, settings.database)
    border = now_ms() // HOUR_MS * HOUR_MS - 2 * HOUR_MS
    borders.publish(clickhouse, "hours", range(settings.block_partitions), border)


@pytest.mark.parametrize("backend", ["redis", "clickhouse"])
def test_a_store_that_hangs_delays_no_other_question(settings: Settings, shard: Shard, backend: str) -> None:
    show(shard, minutes_ago(3)[2], 20)
    _, token = Keys(ClickHouse(settings.clickhouse, settings.database)).create(
        "test", None, admin=False, rate=1e6, burst=1e6, lasts_ms=None
    )
    network = Proxy(getattr(settings, backend))
    server = Server(settings, **{backend: network.url})

    def ask(start: str, grain: str) -> tuple[float, int, Any]:
        query = f"campaign_id=1&start={start}&end=now&granularity={grain}"
        began = time.monotonic()
        response = httpx.get(
            f"{server.settings.http}/v1/metrics?{query}", headers=server.headers(token), timeout=30 * PATIENCE
        )
        return time.monotonic() - began, response.status_code, response.json()

    questions = [("-10m", "minute"), ("-2d", "hour")]
    close_hours(settings)
    try:
        usual = [ask(*question)[2]["warnings"] for question in questions]
        network.drop()
        time.sleep(KEYS_REFRESH_S)
        first = [ask(*question) for question in questions]
        later = [ask(*question) for _ in range(4) for question in questions]
        for number, (_, status, body) in enumerate(first + later):
            _, grain = questions[number % len(questions)]
            # Minutes are in Redis alone: without it, nothing is left that could answer. Hours are in both.
            assert status == (503 if (backend, grain) == ("redis", "minute") else 200), body
            assert status == 503 or body["warnings"] or grain == "minute"
        # Once it is known that the store does not answer, answers no longer wait for it.
        for question in range(len(questions)):
            assert min(seconds for seconds, _, _ in later[2 + question :: len(questions)]) < 1
        network.restore()
        wait_until(lambda: [ask(*q)[2].get("warnings") for q in questions] == usual, 60, "all is there again")
    finally:
        server.process.kill()
        server.process.wait()
        network.close()


def test_slow_and_broken_clients_delay_no_other_client(server: Server) -> None:
    def connected(head: bytes) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", server.port))
        connection.sendall(head)
        return connection

    idle = [connected(b"") for _ in range(500)]
    slow = [connected(b"GET /v1/metrics HTTP/1.1\r\nHost: x\r\nX-") for _ in range(500)]
    parameters = [("campaign_id", "1"), ("start", "-10m"), ("end", "now")]
    with ThreadPoolExecutor(8) as pool:

        def status_of_answer(_: int) -> int:
            return httpx.get(
                f"{server.settings.http}/v1/metrics",
                params=httpx.QueryParams(tuple(parameters)),
                headers=server.headers(),
                timeout=5 * PATIENCE,
            ).status_code

        assert set(pool.map(status_of_answer, range(50))) == {200}
    long = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10 * PATIENCE)
    long.request("GET", f"/v1/metrics?campaign_id={'1' * (1 << 20)}", headers=server.headers())
    refusal = long.getresponse()
    assert refusal.status == 414
    assert refusal.headers["content-type"] == "application/problem+json"
    refused = httpx.request(
        "GET", f"{server.settings.http}/v1/metrics", headers=server.headers(), content=b"x" * 100_000
    )
    assert refused.status_code == 413
    deadline = time.monotonic() + 15 * PATIENCE
    for client in (*idle, *slow):
        client.settimeout(max(0.1, deadline - time.monotonic()))
        assert client.recv(1) == b"", "given up after a while"
        client.close()
