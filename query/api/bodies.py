"""Bodies of requests: bounded, and decoded into the type that an operation takes."""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from query.api.edge import MAX_BODY_BYTES
from query.api.problems import Problem
from query.bad_question import BadQuestion

T = TypeVar("T")
_JSON = "application/json"


async def read_body(request: Request) -> bytes:
    """The body of a request. Raises Problem (413, 415) for one that is too large or not announced as JSON, and (400) where the client
    disconnects."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY_BYTES:
                raise Problem(413, "too-large", f"the request has a body of more than {MAX_BODY_BYTES} bytes")
    except ClientDisconnect:
        raise Problem(400, "malformed", "the body ended early") from None
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if body and media_type != _JSON:
        raise Problem(415, "unsupported-media-type", f"the body must be JSON, with the header Content-Type: {_JSON}")
    return bytes(body)


def decode_body(request: Request, type_: type[T]) -> T:
    """The body as a value of a type; none at all counts as an empty object. Raises BadQuestion that names the wrong field."""
    try:
        return msgspec.json.decode(request.state.body or b"{}", type=type_)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$")
        field = place.strip("`.").partition(".")[0].partition("[")[0]
        raise BadQuestion(field or "body", f"{f'{field}: ' if field else ''}{reason[:1].lower()}{reason[1:]}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadQuestion("body", f"the body is not JSON: {error}") from None
