"""`adclick query` reports in one line when something else than a router answers. Real sockets, no backends."""

from __future__ import annotations

import contextlib
import gzip
import json
import socketserver
import threading
from collections.abc import Callable, Iterator

import pytest

from infra.errors import AdclickError
from infra.settings import Settings
from query.client import Client
from tests.ports import unused_port

KEY = "adk_1_secret"


def http(status: str, kind: str, body: bytes, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def problem(status: str, detail: str) -> bytes:
    return http(status, "application/problem+json", json.dumps({"detail": detail}).encode())


@contextlib.contextmanager
def answering(reply: bytes | None) -> Iterator[str]:
    """The address of a server that answers every connection with `reply`; None: closes the connection at once."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if reply is not None:
                with contextlib.suppress(OSError):
                    self.request.recv(1 << 16)
                    self.request.sendall(reply)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads = True, True

    with Server(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()


def error_line(url: str, key: str = KEY, ask: Callable[[Client], object] | None = None) -> str:
    """The line that the user sees."""
    with pytest.raises(AdclickError) as raised:
        client = Client(Settings.model_validate({"http": url, "api_key": key}))
        (ask or (lambda c: c.get("/v1/metrics", [])))(client)
    line = str(raised.value)
    assert raised.value.exit_code == 1
    assert "\n" not in line
    assert KEY not in line
    return line


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (http("200 OK", "text/html", b"<html>Jenkins</html>"), "is not a router: it answers with 200 and text/html"),
        (http("404 Not Found", "text/html", b"<html>nginx</html>"), "is not a router: it answers with 404 and text/html"),
        (http("502 Bad Gateway", "text/html", b"<html>nginx</html>"), "is not a router: it answers with 502 and text/html"),
        (http("200 OK", "application/json", b"<html>"), "is not a router: it answers with 200 and application/json"),
        (http("200 OK", "application/json", b"[1, 2]"), "is not a router: it answers with 200 and application/json"),
        (http("401 Unauthorized", "application/json", b'{"error": "x"}'), "is not a router: it answers with 401"),
        (http("200 OK", "text/plain", b""), "is not a router: it answers with 200 and text/plain"),
        (http("302 Found", "text/html", b"", "Location: https://sso.example.com/"), "it redirects to 'https://sso.example.com/'"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "is not a router: it does not speak HTTP"),
        (b"-ERR unknown command\r\n", "is not a router: it closes the connection without an answer"),
        (None, "is not a router: it closes the connection without an answer"),
        (problem("401 Unauthorized", "send the header"), "does not know this API key"),
        (problem("422 Unprocessable", "no such time zone: 'Mars'"), "no such time zone: 'Mars'"),
        (problem("503 Service Unavailable", "no store is available"), "no store is available"),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_a_server_that_is_no_router_is_named(reply: bytes | None, expected: str) -> None:
    with answering(reply) as address:
        assert expected in error_line(f"http://{address}")
        assert expected in error_line(f"http://{address}", ask=export)


def export(client: Client) -> None:
    with client.rows([], "text/csv") as response:
        response.read()


def test_an_answer_that_cannot_be_decompressed_is_named() -> None:
    with answering(http("200 OK", "application/json", b"no gzip", "Content-Encoding: gzip")) as address:
        assert f"no answer from http://{address}" in error_line(f"http://{address}")


def test_an_address_without_a_listener_is_named() -> None:
    address = f"http://127.0.0.1:{unused_port()}"
    assert f"no router answers at {address}" in error_line(address)


def test_a_server_without_tls_at_an_address_with_https_is_named() -> None:
    with answering(http("400 Bad Request", "text/plain", b"")) as address:
        assert "does not speak TLS" in error_line(f"https://{address}")


def test_a_missing_key_is_named_before_a_request_is_sent() -> None:
    assert "no API key is set" in error_line("http://127.0.0.1:1", "")


def test_blanks_around_a_key_are_ignored_and_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    body = gzip.compress(b'{"level": "normal"}')
    with answering(http("200 OK", "application/json", body, "Content-Encoding: gzip")) as address:
        settings = Settings.model_validate({"http": f"http://{address}", "api_key": f" {KEY}\n"})
        assert Client(settings).get("/v1/pipeline", []) == {"level": "normal"}


def test_a_truncated_answer_is_an_error() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/csv; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    with answering(head + b"5\r\na,b\n1\r\n") as address:
        assert "the answer ended early" in error_line(f"http://{address}", ask=export)
