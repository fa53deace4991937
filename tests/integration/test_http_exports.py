"""Exports of more rows than a page, by a router's process and by `adclick query`; and how that process answers unusual requests."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import polars as pl
import pytest

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.clock import HOUR_MS, iso, now_ms
from infra.settings import Settings, resolve
from query.api.exports import EXPORTS_A_KEY
from query.export_stretches import DEFAULT_LIMITS
from query.keys import Keys
from tests import borders
from tests.conftest import adclick
from tests.flow import environment, worker_environment
from tests.integration.test_http_server import Server
from tests.product import wait_until

HOURS, ADS = 5, 30_000
START = now_ms() // HOUR_MS * HOUR_MS - 10 * HOUR_MS
CLICKS = [ad + hour for hour in range(HOURS) for ad in range(ADS)]
"""By hour, then by ad: the order of the answer."""
_WHOLE = {
    "campaign_id": "7",
    "start": iso(START),
    "end": iso(START + HOURS * HOUR_MS),
    "granularity": "hour",
    "group_by": "ad_id",
}


@pytest.fixture(scope="module")
def server(backends: Path) -> Iterator[Server]:
    """A router over closed hours of one campaign with many ads."""
    assert DEFAULT_LIMITS.page_rows < ADS
    assert len(CLICKS) > DEFAULT_LIMITS.stretch_rows
    settings = resolve(str(backends)).settings.model_copy(update={"namespace": f"t{uuid.uuid4().hex[:8]}_"})
    clickhouse = ClickHouse(settings.clickhouse, settings.database)
    apply_migrations(clickhouse)
    clickhouse.command(
        f"INSERT INTO {settings.database}.stream_hours SELECT {START // 1000} + intDiv(number, {ADS}) * 3600, 7, 1, number % {ADS}, 5,"
        f" 'DE', 'mobile', 0, 1000, number % {ADS} + intDiv(number, {ADS}), 1, 2500000, 0, 0, 0, 0, 1, 0, 0 FROM numbers({HOURS * ADS})"
    )
    border = START + HOURS * HOUR_MS
    borders.publish(clickhouse, "hours", range(settings.block_partitions), border)
    running_server = Server(settings)
    yield running_server
    running_server.process.kill()
    running_server.process.wait()


def new_key(settings: Settings, rate: float, burst: float) -> tuple[str, str]:
    """(id, token)"""
    keys = Keys(ClickHouse(settings.clickhouse, settings.database))
    key, token = keys.create("test", None, admin=False, rate=rate, burst=burst, lasts_ms=None)
    return key.id, token


class Download:
    """A GET over a socket that reads the body only on request."""

    def __init__(self, server: Server, token: str, **more: str) -> None:
        query = httpx.QueryParams(_WHOLE | {"format": "csv"} | more)
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self._socket.settimeout(60)
        self._socket.connect(("127.0.0.1", server.port))
        head = f"GET /v1/metrics?{query} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n"
        self._socket.sendall(head.encode())
        self._file = self._socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])

    def rest(self) -> bytes:
        return self._file.read()

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def test_exports_are_complete_in_every_format_and_cost_what_they_read(server: Server, tmp_path: Path) -> None:
    _, token = new_key(server.settings, rate=0.001, burst=2_000)
    readers: list[tuple[str, str, Callable[[Any], pl.DataFrame]]] = [
        ("csv", "gzip", pl.read_csv), ("ndjson", "identity", pl.read_ndjson), ("arrow", "gzip", pl.read_ipc_stream),
    ]  # fmt: skip
    url = f"{server.settings.http}/v1/metrics"
    for name, coding, read in readers:
        response = httpx.get(
            url,
            params=_WHOLE | {"format": name, "names": "true"},
            headers=server.headers(token) | {"Accept-Encoding": coding},
            timeout=120,
        )
        assert response.headers.get("content-encoding", "identity") == coding
        assert response.headers["x-adclick-finality"] in ("provisional", "closed")
        assert f".{name}" in response.headers["content-disposition"]
        rows = read(io.BytesIO(response.content))
        assert rows["clicks"].to_list() == CLICKS
        # There is no directory: ids without an entry show as their digits.
        assert rows["ad_name"].cast(str).to_list() == rows["ad_id"].cast(str).to_list()
    # Each cost a token, and one for each thousand rows that were read.
    left = httpx.head(url, params=_WHOLE | {"format": "csv"}, headers=server.headers(token), timeout=120)
    assert left.headers["content-type"].startswith("text/csv")
    assert int(left.headers["ratelimit"].split(";")[1].removeprefix("r=")) < 2_000 - len(readers) * HOURS * ADS / 1_000
    # With a limit it is a page, which says where it goes on.
    page = httpx.get(url, params=_WHOLE | {"format": "csv", "limit": "10"}, headers=server.headers())
    rest = httpx.get(
        url, params=_WHOLE | {"format": "csv", "cursor": page.headers["x-adclick-next-cursor"]}, headers=server.headers(), timeout=120
    )  # fmt: skip
    both = [pl.read_csv(part.content)["clicks"].to_list() for part in (page, rest)]
    assert both == [CLICKS[:10], CLICKS[10:]]


def test_the_command_prints_and_writes_all_rows(server: Server, tmp_path: Path) -> None:
    words = [
        "query",
        "--campaign",
        "7",
        "--start",
        _WHOLE["start"],
        "--end",
        _WHOLE["end"],
        "--granularity",
        "hour",
        "--group-by",
        "ad_id",
    ]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        result = adclick(*words, *more, cwd=tmp_path, **environment(server.settings))
        assert result.returncode == 0, result.stderr
        return result

    for name, read in (("a.csv", pl.read_csv), ("a.ndjson", pl.read_ndjson), ("a.parquet", pl.read_parquet)):
        assert f"{name}: {len(CLICKS):,} rows" in run("--names", "--out", name).stderr
        rows = read(tmp_path / name)
        assert rows["clicks"].to_list() == CLICKS
        assert rows["ad_name"].cast(str).to_list() == rows["ad_id"].cast(str).to_list()
    assert sorted(path.name for path in tmp_path.glob("a.*")) == ["a.csv", "a.ndjson", "a.parquet"]
    table = run("--limit", "25000")
    lines = table.stdout.splitlines()
    column = lines[0].split().index("clicks")
    assert [int(line.split()[column]) for line in lines[1:]] == CLICKS[:25_000]
    assert "there are more rows" in table.stderr
    document = json.loads(run("--json", "--filter", f"ad_id:{','.join(map(str, range(3)))}").stdout)
    assert (document["rows"], document["next_cursor"]) == (3 * HOURS, None)


def test_an_export_ends_with_its_key_or_client_and_a_key_has_a_limit_of_exports(server: Server) -> None:
    id_, token = new_key(server.settings, rate=1e6, burst=1e6)
    downloads = [Download(server, token) for _ in range(EXPORTS_A_KEY)]
    assert [download.status for download in downloads] == [200] * EXPORTS_A_KEY
    assert Download(server, token).status == 429
    # A client that is gone gives its place back.
    downloads.pop().close()
    wait_until(lambda: downloads.append(Download(server, token)) or downloads[-1].status == 200, 60, "a place is free")  # type: ignore[func-returns-value]
    Keys(ClickHouse(server.settings.clickhouse, server.settings.database)).revoke(id_)
    wait_until(lambda: Download(server, token).status == 401, 60, "the key is worth nothing")
    for download in downloads[: EXPORTS_A_KEY - 1]:
        body = download.rest()
        assert b"ERROR: this export is not complete" in body
        assert not body.endswith(b"0\r\n\r\n"), "the body has no end"


def answers_to(server: Server, *requests: str) -> list[tuple[int, dict[str, str], bytes]]:
    """Answers to raw requests that are sent at once over one connection: status, headers, body."""
    key = server.headers()["Authorization"]
    with socket.create_connection(("127.0.0.1", server.port), timeout=60) as connection:
        for number, request in enumerate(requests, 1):
            request += "\nConnection: close" if number == len(requests) else ""
            connection.sendall(request.replace("\n", "\r\n").replace("KEY", key).encode("latin-1") + b"\r\n\r\n")
        answers, file = [], connection.makefile("rb")
        for request in requests:
            status = int(file.readline().split()[1])
            headers = {}
            while (line := file.readline().strip()) != b"":
                name, _, value = line.decode("latin-1").partition(": ")
                headers[name.lower()] = value
            body = (
                b"" if request.startswith("HEAD") or status in (204, 304) else file.read(int(headers["content-length"]))
            )
            answers.append((status, headers, body))
        assert file.read() == b"", "nothing follows the last answer"
    return answers


_ASK = f"/v1/metrics?{httpx.QueryParams(_WHOLE | {'limit': '1'})}"
_OK = "HTTP/1.1\nHost: x\nAuthorization: KEY"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (f"GET {_ASK} {_OK}", 200),
        (f"GET {_ASK} HTTP/1.0\nAuthorization: KEY", 200),
        (f"HEAD {_ASK} {_OK}", 200),
        (f"GET http://elsewhere.test{_ASK} {_OK}", 200),
        (f"GET /%76%31/metrics?{_ASK.partition('?')[2]} {_OK}", 200),
        (f"GET {_ASK} {_OK}\nRange: bytes=0-10", 200),
        (f"GET {_ASK} {_OK}\nIf-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT", 200),
        (f'GET {_ASK} {_OK}\nIf-None-Match: "x", *', 200),
        (f"GET {_ASK} {_OK}\nIf-None-Match: *", 304),
        (f"GET {_ASK} {_OK}\nAccept: application/json;charset=utf-8", 200),
        (f"GET {_ASK} {_OK}\nAccept: image/png", 406),
        (f"GET {_ASK} {_OK}\nAccept-Encoding: identity;q=0", 406),
        (f"GET {_ASK} HTTP/1.1\nHost: x\nauthorization: bearer {{token}}", 200),
        (f"GET {_ASK} {_OK}\nAuthorization: Bearer other", 401),
        (f"GET {_ASK} HTTP/1.1\nHost: x", 401),
        (f"OPTIONS {_ASK} HTTP/1.1\nHost: x", 204),
        ("OPTIONS * HTTP/1.1\nHost: x", 204),
        ("HEAD /healthz HTTP/1.1\nHost: x", 200),
        ("HEAD / HTTP/1.1\nHost: x", 200),
        (f"HEAD /v1/stream?{_ASK.partition('?')[2]} {_OK}", 200),
        (f"POST {_ASK} {_OK}\nContent-Length: 0", 405),
        (f"GET /v1/metrics/?{_ASK.partition('?')[2]} {_OK}\nX-Forwarded-Proto: https", 404),
        ("GET /docs/ HTTP/1.1\nHost: x", 404),
        ("GET //v1/metrics HTTP/1.1\nHost: x", 404),
        ("GET /v1/../healthz HTTP/1.1\nHost: x", 404),
        ("GET /healthz\x00 HTTP/1.1\nHost: x", 400),
        ("CONNECT 127.0.0.1:22 HTTP/1.1\nHost: x", 400),
        ("BREW /healthz HTTP/1.1\nHost: x", 400),
        (f"GET /healthz HTTP/1.1\nHost: x\nX-Long: {'x' * (1 << 20)}", 431),
    ],
    ids=lambda value: str(value)[:50],
)
def test_requests_are_answered_as_http_requires(server: Server, request_: str, status: int) -> None:
    token = server.settings.api_key.get_secret_value()
    ((answered, headers, body),) = answers_to(server, request_.replace("{token}", token))
    assert answered == status
    assert "location" not in headers
    if status >= 400:
        assert headers["content-type"] == "application/problem+json"
        assert json.loads(body)["status"] == status
    if status == 304:
        assert headers["etag"]
        assert "Accept-Encoding" in headers["vary"]


def test_pipelined_requests_are_answered_in_their_order(server: Server) -> None:
    answers = answers_to(
        server, f"GET {_ASK} {_OK}", "GET /healthz HTTP/1.1\nHost: x", f"HEAD {_ASK} {_OK}", "GET /v2 HTTP/1.1\nHost: x"
    )
    assert [status for status, _, _ in answers] == [200, 200, 200, 404]
    assert answers[2][1]["etag"] == answers[0][1]["etag"]


def test_a_router_of_another_installation_does_not_join_the_port(server: Server) -> None:
    other = server.settings.model_copy(update={"kafka": "127.0.0.1:1"})
    result = subprocess.run(
        [sys.executable, "-m", "infra", "serve"], env=worker_environment(other, "query-0"), capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert result.returncode == 1
    assert (
        f"cannot listen at {other.http}: a router of another installation listens there"
        in result.stderr.splitlines()[-1]
    )
