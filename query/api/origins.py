"""Cross-origin requests (CORS): pages of the listed origins may read answers. By starlette's middleware; off without a list."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from query.api.problems import Problem

ANY = "*"
SENT = (
    "Authorization", "Cache-Control", "If-None-Match", "Last-Event-ID", "Range", "traceparent", "tracestate", "X-Request-ID",
    "X-Requested-With",
)  # fmt: skip
"""Headers that a page may send, besides those that every page may."""
EXPOSED = (
    "Content-Disposition", "Content-Encoding", "Content-Length", "ETag", "RateLimit", "RateLimit-Policy", "Retry-After",
    "WWW-Authenticate", "X-Adclick-Finality", "X-Adclick-Next-Cursor", "X-Adclick-Warnings", "X-Request-ID",
)  # fmt: skip
"""Headers of an answer that a page may read, besides those that every page may."""
_PREFLIGHT_S = 600


class Origins(CORSMiddleware):
    """Answers preflights, without a key, and marks what a page of one of the origins may read."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        # There are no cookies here; a page may still send its requests with credentials, as some libraries always do.
        super().__init__(
            app, allow_origins=origins, allow_methods=("GET", "HEAD"), allow_headers=SENT, expose_headers=EXPOSED,
            allow_credentials=ANY not in origins, allow_private_network=True, max_age=_PREFLIGHT_S,
        )  # fmt: skip

    def preflight_response(self, request_headers: Headers) -> Response:
        """A refusal as a problem document."""
        response = super().preflight_response(request_headers)
        if response.status_code < 400:
            return Response(status_code=204, headers=_without_body(response.headers))
        detail = f"{bytes(response.body).decode()}: ADCLICK_CORS_ORIGINS lists the origins whose pages may ask"
        return Problem(403, "cross-origin", detail, headers=_without_body(response.headers)).response()


def _without_body(headers: Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ("content-length", "content-type")}
