"""Cross-origin requests (CORS): pages of the listed origins may read answers, and pages of the origin that a token is for. By
starlette's middleware."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from query.api.problems import Problem

ANY = "*"
SENT = (
    "Authorization", "Cache-Control", "Content-Type", "If-None-Match", "Last-Event-ID", "Range", "traceparent", "tracestate", "X-Request-ID",
    "X-Requested-With",
)  # fmt: skip
"""Headers that a page may send, besides those that every page may."""
EXPOSED = (
    "Content-Disposition", "Content-Encoding", "Content-Length", "ETag", "RateLimit", "RateLimit-Policy", "Retry-After",
    "WWW-Authenticate", "X-Adclick-Answer-Id", "X-Adclick-Comparison", "X-Adclick-Digest", "X-Adclick-Finality", "X-Adclick-Next-Cursor",
    "X-Adclick-Totals", "X-Adclick-Users", "X-Adclick-Warnings", "X-Request-ID",
)  # fmt: skip
"""Headers of an answer that a page may read, besides those that every page may."""
_READING, _ALL = ("GET", "HEAD"), ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_PREFLIGHT_S = 600


class Origins(CORSMiddleware):
    """Answers preflights, which carry no key, and marks responses that a page of another origin may read.

    Which origins tokens are for stands in the tokens alone. So a preflight of a request that only reads is granted to every origin:
    there are no cookies here, a page can send only a key or token that it has, and the response decides what it may read.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        # A page may still send its requests with credentials, as some libraries always do.
        super().__init__(
            app, allow_origins=origins, allow_methods=_ALL, allow_headers=SENT, expose_headers=EXPOSED,
            allow_credentials=ANY not in origins, allow_private_network=True, max_age=_PREFLIGHT_S,
        )  # fmt: skip
        self._of_tokens = CORSMiddleware(
            app, allow_origin_regex=r"https?://.+", allow_methods=_READING, allow_headers=SENT, allow_private_network=True,
            max_age=_PREFLIGHT_S,
        )  # fmt: skip

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:
        """Serve a request, and mark its response. The gate has put the token's origin into the scope's state by then."""
        origin, state = request_headers.get("origin"), scope["state"]
        if origin is None and not self.allow_origins:
            await self.app(scope, receive, send)
            return

        async def mark(message: Message) -> None:
            of_token = origin is not None and origin == state.get("origin") and not self.is_allowed_origin(origin)
            if message["type"] != "http.response.start":
                await send(message)
            elif self.allow_origins and not of_token:
                await self.send(message, send, request_headers)
            else:
                headers = MutableHeaders(scope=message)
                if of_token and origin is not None:
                    headers["Access-Control-Expose-Headers"] = ", ".join(EXPOSED)
                    headers["Access-Control-Allow-Origin"] = origin
                headers.add_vary_header("Origin")
                await send(message)

        await self.app(scope, receive, mark)

    def preflight_response(self, request_headers: Headers) -> Response:
        """The response to a preflight: empty, or a problem document that refuses it."""
        reads = request_headers["access-control-request-method"] in _READING
        if reads and not self.is_allowed_origin(request_headers["origin"]):
            response = self._of_tokens.preflight_response(request_headers)
        else:
            response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return Response(status_code=204, headers=_without_body(response.headers))
        detail = (
            f"{bytes(response.body).decode()}; ADCLICK_CORS_ORIGINS lists the origins whose pages may send requests"
        )
        return Problem(403, "cross-origin", detail, headers=_without_body(response.headers)).response()


def _without_body(headers: Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ("content-length", "content-type")}
