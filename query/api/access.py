"""Who asks: the one place where a request's key is checked, its rate is counted, and what it may see is settled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.requests import Request
from starlette.responses import Response

from query.api.problems import Problem
from query.export import Export
from query.keys import Access, Keyring
from query.limits import Limits, Taken


@dataclass(frozen=True)
class Reply:
    """What a handler made of a request. `rows_read` is what it costs. `export`: the rows of one that are more than a page, and
    not in `body`; `stream` makes the response that sends them, with the headers that it is called with."""

    body: bytes
    media_type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    rows_read: int = 0
    status: int = 200
    export: Export | None = None
    stream: Callable[[dict[str, str]], Response] | None = None


Handler = Callable[[Request, Access], Reply]


class Gate:
    """Every request under /v1 passes it. Thread-safe; blocks while Redis or ClickHouse is asked."""

    def __init__(self, keyring: Keyring, limits: Limits) -> None:
        self._keyring, self._limits = keyring, limits

    def serve(self, request: Request, handler: Handler, *, admin: bool = False) -> Response:
        """The handler's reply to a request that may be made. Raises Problem, Unavailable, and what the handler raises."""
        access, taken = self.enter(request, admin=admin)
        reply = handler(request, access)
        self.charge(access, reply.rows_read)
        headers = {**reply.headers, **taken.headers()}
        if reply.stream is not None:
            return reply.stream(headers)
        return Response(reply.body, reply.status, headers, None if reply.status == 304 else reply.media_type)

    def enter(self, request: Request, *, admin: bool = False) -> tuple[Access, Taken]:
        """What the request's key allows, once it has paid. Raises Problem: 401, 403 or 429."""
        access = self.known(request)
        if admin and not access.admin:
            raise Problem(403, "forbidden", "this key may read numbers, and this needs an admin key")
        taken = self._limits.take(access)
        if not taken.allowed:
            raise Problem(
                429, "too-many-requests", f"this key may ask again in {taken.wait_s} s", headers=taken.headers()
            )
        return access, taken

    def known(self, request: Request) -> Access:
        """The bearer's rights, as they are now. Raises Problem (401)."""
        sent = request.headers.getlist("authorization")
        scheme, _, token = sent[0].partition(" ") if len(sent) == 1 else ("", "", "")
        access = self._keyring.access(token.strip()) if scheme.lower() == "bearer" else None
        if access is None:
            raise Problem(
                401, "unauthorized", "send the header Authorization: Bearer KEY, with a key that is valid",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        request.state.key = access.key
        return access

    def wait_s(self, request: Request) -> float:
        """Take a token for the next part of an answer that was begun; returns the seconds to wait for one, 0 when it was taken.

        Raises Problem (401) once the key is not valid any more.
        """
        taken = self._limits.take(self.known(request))
        return 0.0 if taken.allowed else float(taken.wait_s)

    def charge(self, access: Access, rows_read: int) -> None:
        """Take what an answer has cost."""
        self._limits.charge(access, rows_read)
