"""The HTTP server: uvicorn, one process a worker, which share the port (SO_REUSEPORT)."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infra.errors import UserError
from infra.settings import Settings
from query.api.edge import MAX_QUERY_BYTES
from query.api.listener import listen
from query.api.problems import MEDIA_TYPE, TITLES, Problem

# How long a client may take to send a request's head; how long a connection may lie idle; how long requests may go on once
# the server stops; how long a client may go on sending after it was refused.
_HEAD_S, _IDLE_S, _GRACE_S, _LINGER_S = 10.0, 30, 3, 2.0
_BACKLOG = 2048
# Of an address, beside its query; of a request's head as a whole.
_HEAD_BYTES, _MAX_HEAD_BYTES = 4096, 128 << 10


class _Impatient(HttpToolsProtocol):
    """Uvicorn waits for ever for a request that never ends, and takes a head of any size."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._deadline is None:
            self._head_bytes = 0  # the head is complete: what follows is a body, or another head that begins in `data`
        elif self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(Problem(431, "headers-too-large", f"a request's head may have {_MAX_HEAD_BYTES} bytes"))

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_QUERY_BYTES + _HEAD_BYTES:
            self._refuse(Problem(414, "too-long", f"an address may have {MAX_QUERY_BYTES} bytes"))

    def on_headers_complete(self) -> None:
        if not self._refused:
            self._settle()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP gets a problem document, too."""
        self._refuse(Problem(400, "malformed", msg))

    def _refuse(self, problem: Problem) -> None:
        """Answer, and read on without looking until the client has read the answer: data that is left unread when a connection
        is closed resets it, and the answer is lost."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        answer = problem.response()
        head = f"HTTP/1.1 {problem.status} {TITLES[problem.status]}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        more = f"content-length: {len(answer.body)}\r\nconnection: close\r\n\r\n"
        self.transport.write((head + more).encode() + bytes(answer.body))
        self._settle()
        self._deadline = self.loop.call_later(_LINGER_S, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._settle()
        self._deadline = self.loop.call_later(_HEAD_S, self._give_up)

    def _settle(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()


def run(app: Any, settings: Settings) -> None:
    """Serve until a signal. Raises UserError when the address cannot be had, or the certificate cannot be read."""
    if settings.http.startswith("https") != bool(settings.tls_certificate):
        raise UserError(
            f"setting http is {settings.http}, and tls_certificate is {settings.tls_certificate or 'not set'}",
            hint="TLS needs an https address and a certificate",
        )
    listener = listen(settings)
    config = uvicorn.Config(
        app, loop="uvloop", http=_Impatient, ws="none", log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=_IDLE_S, timeout_graceful_shutdown=_GRACE_S, backlog=_BACKLOG,
        ssl_certfile=settings.tls_certificate or None, ssl_keyfile=settings.tls_key or None,
    )  # fmt: skip
    try:
        config.load()
    except (OSError, ssl.SSLError) as error:
        raise UserError(
            f"cannot read the certificate: {error}", hint="set ADCLICK_TLS_CERTIFICATE and ADCLICK_TLS_KEY"
        ) from error
    try:
        uvicorn.Server(config).run(sockets=[listener.bound])
    finally:
        listener.close()
