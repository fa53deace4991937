"""A proxy that speaks TLS to clients and plain TCP to a backend that cannot."""

from __future__ import annotations

import contextlib
import selectors
import socket
import socketserver
import ssl
import threading
from urllib.parse import urlsplit


class TlsProxy(socketserver.ThreadingTCPServer):
    """In front of a backend, on a port of its own, until `stop`. `received`: what clients have sent, once decrypted."""

    allow_reuse_address, daemon_threads = True, True

    def __init__(self, backend_url: str, context: ssl.SSLContext) -> None:
        backend = urlsplit(backend_url)
        address = (backend.hostname or "", backend.port or 0)
        proxy = self
        self.received = bytearray()

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                # A handshake that fails is the client's to report.
                with contextlib.suppress(OSError):
                    encrypted = context.wrap_socket(self.request, server_side=True, do_handshake_on_connect=False)
                    with encrypted:
                        proxy._serve(encrypted, address)

        super().__init__(("127.0.0.1", 0), Handler)
        self.port = self.server_address[1]
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def _serve(self, encrypted: ssl.SSLSocket, address: tuple[str, int]) -> None:
        try:
            encrypted.do_handshake()
        except ssl.SSLError:
            # Closed with data that was not read, a connection is reset, and the alert may be lost.
            encrypted.settimeout(2)
            socket.socket.shutdown(encrypted, socket.SHUT_WR)
            while socket.socket.recv(encrypted, 1 << 16):
                pass
            raise
        with socket.create_connection(address) as plain:
            self._pass_on(encrypted, plain)

    def _pass_on(self, encrypted: ssl.SSLSocket, plain: socket.socket) -> None:
        """Both ways in one thread: two may not use the same TLS connection at once."""
        with selectors.DefaultSelector() as both:
            for source in (encrypted, plain):
                both.register(source, selectors.EVENT_READ)
            while True:
                ready = [encrypted] if encrypted.pending() else [key.fileobj for key, _ in both.select()]
                for source in (source for source in (encrypted, plain) if source in ready):
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    if source is encrypted:
                        self.received += data
                        plain.sendall(data)
                    else:
                        encrypted.sendall(data)

    def stop(self) -> None:
        """Take no connections any more."""
        self.shutdown()
        self.server_close()
