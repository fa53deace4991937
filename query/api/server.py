"""The HTTP server: uvicorn, one process a worker, which share the port (SO_REUSEPORT)."""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infra import logs
from infra.settings import Settings
from query.api.edge import MAX_QUERY_BYTES
from query.api.listener import listen
from query.api.problems import MEDIA_TYPE, TITLES, Problem

# Time for a client to send a request's head; for an idle connection; for open requests once the server stops; for a client to go on
# sending after it was refused.
_HEAD_S, _IDLE_S, _GRACE_S, _LINGER_S = 10.0, 30, 3, 2.0
_BACKLOG = 2048
# Beside the query of an address; of a request's whole head.
_HEAD_BYTES, _MAX_HEAD_BYTES = 4096, 128 << 10


class _BoundedProtocol(HttpToolsProtocol):
    """Limits the time and the size of a request's head, which uvicorn does not."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0
    _refused = False

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._start_deadline()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._deadline is None:
            self._head_bytes = 0  # the head is complete: what follows is a body, or another head that begins in `data`
        elif self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(
                Problem(
                    431,
                    "headers-too-large",
                    f"the request's head has more than {_MAX_HEAD_BYTES} bytes; send fewer headers",
                )
            )

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._start_deadline()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_QUERY_BYTES + _HEAD_BYTES:
            self._refuse(Problem(414, "too-long", f"the address has more than {MAX_QUERY_BYTES} bytes; shorten it"))

    def on_headers_complete(self) -> None:
        if not self._refused:
            self._cancel_deadline()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._refused:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer data that is not HTTP with a problem document, too."""
        self._refuse(Problem(400, "malformed", msg))

    def _refuse(self, problem: Problem) -> None:
        """Answer, and discard what the client goes on sending until it has read the answer: closing a connection with unread data
        resets it, and the answer is lost."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        response = problem.response()
        head = f"HTTP/1.1 {problem.status} {TITLES[problem.status]}\r\ncontent-type: {MEDIA_TYPE}\r\n"
        more = f"content-length: {len(response.body)}\r\nconnection: close\r\n\r\n"
        self.transport.write((head + more).encode() + bytes(response.body))
        self._cancel_deadline()
        self._deadline = self.loop.call_later(_LINGER_S, self._close)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)

    def _start_deadline(self) -> None:
        self._cancel_deadline()
        self._deadline = self.loop.call_later(_HEAD_S, self._close)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _close(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.close()


def serve_http(app: Any, settings: Settings) -> None:
    """Serve until a signal. Raises UserError when the address cannot be bound. The certificate was checked before."""
    listener = listen(settings)
    logs.get("http").info("listening", address=settings.http)
    config = uvicorn.Config(
        app, loop="uvloop", http=_BoundedProtocol, ws="none", log_level="warning", access_log=False, server_header=False,
        timeout_keep_alive=_IDLE_S, timeout_graceful_shutdown=_GRACE_S, backlog=_BACKLOG,
        ssl_certfile=settings.tls_certificate or None, ssl_keyfile=settings.tls_key or None,
    )  # fmt: skip
    try:
        uvicorn.Server(config).run(sockets=[listener.bound])
    finally:
        listener.close()
