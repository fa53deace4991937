"""The gate: every request under /v1 is authenticated, limited and charged here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from infra.clock import iso
from query.api.problems import Problem
from query.export_stretches import Export
from query.key_use import KeyUse
from query.keyring import ExpiredToken, Keyring
from query.keys import Access
from query.limits import Allowance, RateLimits
from query.row_scope import ALL_ROWS


@dataclass(frozen=True)
class HttpReply:
    """A handler's reply to a request. `rows_read`: what it is charged for. `export`: an export of more rows than a page, which are
    not in `body`; `stream` makes the response that sends them, with the headers that it is called with."""

    body: bytes
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    rows_read: int = 0
    status: int = 200
    export: Export | None = None
    stream: Callable[[dict[str, str]], Response] | None = None


Handler = Callable[[Request, Access], HttpReply]


class Gate:
    """Checks keys and their rate limits. Thread-safe; blocks while Redis or ClickHouse is read."""

    def __init__(self, keyring: Keyring, limits: RateLimits, uses: KeyUse) -> None:
        self._keyring, self._limits, self._uses = keyring, limits, uses
        self.charged: Callable[[str, int], None] = lambda _key, _rows: None
        """Called with each key and the rows that were read for it."""

    def serve(self, request: Request, handler: Handler, *, admin: bool = False, whole: bool = False) -> Response:
        """The handler's reply as a response. Raises Problem where the request may not be made, Unavailable, and what the handler
        raises."""
        access, allowance = self.enter(request, admin=admin, whole=whole)
        reply = handler(request, access)
        self.charge(access, reply.rows_read)
        headers = {**reply.headers, **allowance.headers()}
        if reply.stream is not None:
            return reply.stream(headers)
        return Response(reply.body, reply.status, headers, None if reply.status == 304 else reply.media_type)

    def enter(self, request: Request, *, admin: bool = False, whole: bool = False) -> tuple[Access, Allowance]:
        """Authenticate a request and take its token. `whole`: the operation is about all advertisers. Raises Problem: 401, 403 or
        429."""
        access = self.authenticate(request)
        if admin and not access.admin:
            raise Problem(
                403,
                "forbidden",
                "this needs a key with --admin (adclick keys create --admin makes one), or a token of it with the scope admin",
            )
        if whole and access.rows != ALL_ROWS:
            raise Problem(
                403,
                "forbidden",
                "this is about all advertisers, and this key or token may see only some; use an admin key without such a limit",
            )
        allowance = self._limits.take(access)
        if not allowance.allowed:
            raise Problem(
                429, "too-many-requests", f"the rate limit of this key is exceeded; retry in {allowance.wait_s} s",
                headers=allowance.headers(),
            )  # fmt: skip
        self._uses.count(access.key)
        return access, allowance

    def authenticate(self, request: Request) -> Access:
        """What the request's key or token allows at this moment. Raises Problem (401; 403 for a page of another origin than the
        token's)."""
        headers = request.headers.getlist("authorization")
        scheme, _, text = headers[0].partition(" ") if len(headers) == 1 else ("", "", "")
        try:
            access = self._keyring.access(text.strip()) if scheme.lower() == "bearer" else None
        except ExpiredToken as error:
            request.state.key, request.state.origin = error.key, error.origin
            expired = iso(error.expired_ms)
            raise Problem(
                401, "token-expired", f"the token expired at {expired}; buy another with POST /v1/tokens",
                headers={"WWW-Authenticate": 'Bearer error="invalid_token"'},
            ) from None  # fmt: skip
        if access is None:
            raise Problem(
                401, "unauthorized", "the request has no valid key; send the header Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        request.state.key, request.state.token, request.state.origin = access.key, access.token, access.origin
        origin = request.headers.get("origin")
        if access.origin and origin is not None and origin != access.origin:
            raise Problem(
                403,
                "foreign-origin",
                f"this token is for pages of {access.origin}, not of {origin[:100]}; buy one for these",
            )
        return access

    def wait_s(self, request: Request) -> float:
        """Take a token for the next stretch of an export; returns the seconds to wait for one, 0 when it was taken.

        Raises Problem (401) once the key is not valid any more.
        """
        allowance = self._limits.take(self.authenticate(request))
        return 0.0 if allowance.allowed else float(allowance.wait_s)

    def charge(self, access: Access, rows_read: int) -> None:
        """Take what an answer costs beyond its first token."""
        self._limits.charge(access, rows_read)
        self.charged(access.key, rows_read)
