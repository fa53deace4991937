"""What `adclick query` says when something else than a router answers: one true line. Real sockets, no backends."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator

import pytest

from infra.errors import AdclickError
from infra.settings import Settings
from query.client import Client

KEY = "adk_1_secret"


def http(status: str, kind: str, body: bytes, *more: str) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}", "Connection: close", *more]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


def problem(status: str, detail: str) -> bytes:
    return http(status, "application/problem+json", json.dumps({"detail": detail}).encode())


@contextlib.contextmanager
def answering(reply: bytes | None) -> Iterator[str]:
    """The address of a server that answers every connection with `reply`; None: hangs up at once."""

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


def complaint(url: str, key: str = KEY, ask: Callable[[Client], object] | None = None) -> str:
    """The line that a person gets to see."""
    with pytest.raises(AdclickError) as raised:
        client = Client(Settings.model_validate({"http": url, "api_key": key}))
        (ask or (lambda c: c.get("/v1/metrics", [])))(client)
    line = str(raised.value)
    assert raised.value.exit_code == 1
    assert "\n" not in line
    assert KEY not in line
    return line


@pytest.mark.parametrize(
    ("reply", "said"),
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
        (problem("503 Service Unavailable", "nothing that can answer this"), "nothing that can answer this"),
    ],
    ids=lambda value: repr(value)[:60],
)  # fmt: skip
def test_what_answers_instead_of_a_router_is_named(reply: bytes | None, said: str) -> None:
    with answering(reply) as address:
        assert said in complaint(f"http://{address}")
        assert said in complaint(f"http://{address}", ask=export)


def export(client: Client) -> None:
    with client.rows([], "text/csv") as response:
        response.read()


def test_an_answer_that_cannot_be_unpacked_is_named() -> None:
    with answering(http("200 OK", "application/json", b"no gzip", "Content-Encoding: gzip")) as address:
        assert f"no answer from http://{address}" in complaint(f"http://{address}")


def test_an_address_where_nobody_listens_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert f"no router answers at http://127.0.0.1:{port}" in complaint(f"http://127.0.0.1:{port}")


def test_a_server_without_tls_at_an_address_with_https_is_named() -> None:
    with answering(http("400 Bad Request", "text/plain", b"")) as address:
        assert "does not speak TLS" in complaint(f"https://{address}")


def test_a_missing_key_is_named_before_anybody_is_asked() -> None:
    assert "no API key is set" in complaint("http://127.0.0.1:1", "")


def test_blanks_around_a_key_do_not_matter_and_no_proxy_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    body = gzip.compress(b'{"level": "normal"}')
    with answering(http("200 OK", "application/json", body, "Content-Encoding: gzip")) as address:
        settings = Settings.model_validate({"http": f"http://{address}", "api_key": f" {KEY}\n"})
        assert Client(settings).get("/v1/pipeline", []) == {"level": "normal"}


def test_rows_that_break_off_are_not_taken_for_all_rows() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/csv; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    with answering(head + b"5\r\na,b\n1\r\n") as address:
        assert "the answer broke off before its end" in complaint(f"http://{address}", ask=export)
