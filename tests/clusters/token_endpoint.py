"""A token endpoint of an OIDC provider, which gives tokens that nobody has signed to one client."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote_plus

from tests.clusters.certificates import Identity
from tests.clusters.kafka_cluster import unsecured_token


class TokenEndpoint(ThreadingHTTPServer):
    """Until `stop`. `forms`: what it was asked with, by clients who showed the right secret. `reply`: in place of a token.
    `location`: where to redirect clients. `paths`: what was asked for, in each request."""

    daemon_threads = True

    def __init__(
        self, client_id: str, client_secret: str, user: str, lifetime_s: float = 3_600, identity: Identity | None = None
    ) -> None:
        """`identity`: its certificate, where it speaks TLS."""
        self.forms = list[dict[str, str]]()
        self.reply: tuple[int, bytes] | None = None
        self.location = ""
        self.paths = list[str]()
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                endpoint.paths.append(self.path)
                self._answer(404, b"")

            def do_POST(self) -> None:
                endpoint.paths.append(self.path)
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                kind, _, value = self.headers["Authorization"].partition(" ")
                shown = tuple(map(unquote_plus, base64.b64decode(value).decode().split(":")))
                if endpoint.reply is not None:
                    self._answer(*endpoint.reply)
                elif kind != "Basic" or shown != (client_id, client_secret):
                    self._answer(401, b'{"error": "invalid_client"}')
                else:
                    endpoint.forms.append({name: values[0] for name, values in form.items()})
                    token = {"access_token": unsecured_token(user, lifetime_s), "token_type": "Bearer"}
                    self._answer(200, json.dumps(token | {"expires_in": lifetime_s}).encode())

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                if endpoint.location:
                    self.send_header("Location", endpoint.location)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/token"
        if identity is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(identity.certificate, identity.key)
            self.socket = context.wrap_socket(self.socket, server_side=True)
            self.url = self.url.replace("http:", "https:")
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Take no requests any more."""
        self.shutdown()
        self.server_close()
