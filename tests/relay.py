"""A proxy between a client and a backend, which can take the backend away."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from urllib.parse import urlsplit


class Relay(socketserver.ThreadingTCPServer):
    """Passes bytes on to a backend while `open` is set; else it accepts them, and keeps them. Once `away` is set it hangs up.

    `backend` is where connections that are made from now on lead, as a name does whose address changes at a failover.
    """

    allow_reuse_address, daemon_threads = True, True

    def __init__(self, url: str) -> None:
        self.backend = backend = urlsplit(url)
        relay = self
        self.open, self.away = is_open, away = threading.Event(), threading.Event()
        self.open.set()

        def pass_on(source: socket.socket, to: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while (data := source.recv(1 << 16)) and not away.is_set():
                    is_open.wait()
                    to.sendall(data)
            # A side that hangs up does so for the other one: a client must not wait on a connection that its server has closed.
            with contextlib.suppress(OSError):
                to.shutdown(socket.SHUT_WR)

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                if away.is_set():
                    return
                with socket.create_connection((relay.backend.hostname or "", relay.backend.port or 0)) as there:
                    threading.Thread(target=pass_on, args=(there, self.request), daemon=True).start()
                    pass_on(self.request, there)

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = url.replace(f"{backend.hostname}:{backend.port}", f"127.0.0.1:{self.server_address[1]}")
        threading.Thread(target=self.serve_forever, daemon=True).start()
