"""Problem documents (RFC 9457): how refusals and failures go over HTTP."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from infra.errors import Unavailable
from query.question import BadQuestion

TYPE = "/problems/"
MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    409: "Conflict",
    406: "Not acceptable",
    413: "Too large",
    414: "Too long",
    415: "Unsupported media type",
    422: "Cannot be answered",
    429: "Too many requests",
    431: "Headers too large",
    500: "Internal error",
    501: "Not implemented here",
    503: "Unavailable",
}


class Problem(Exception):
    """A refusal or failure: its type, a sentence that says what to do, and the parameter that is wrong, if one is."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        parameter: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.parameter, self.headers = status, kind, detail, parameter, headers

    def body(self) -> dict[str, object]:
        """The document."""
        document: dict[str, object] = {
            "type": f"{TYPE}{self.kind}",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
        }
        return document if self.parameter is None else document | {"parameter": self.parameter}

    def response(self) -> JSONResponse:
        """As it goes over HTTP."""
        return JSONResponse(self.body(), self.status, self.headers, media_type=MEDIA_TYPE)


EXPECTED = (Problem, BadQuestion, Unavailable, HTTPException)
"""Exceptions that `problem_of` translates; any other one is a defect of the server."""


def problem_of(error: Exception) -> Problem:
    """The problem document of an exception."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BadQuestion):
        return Problem(error.status, error.kind, error.detail, error.parameter)
    if isinstance(error, Unavailable):
        detail = f"none of the stores that this needs is available: {error}; retry in a few seconds"
        return Problem(503, "unavailable", detail, headers={"Retry-After": "5"})
    if isinstance(error, HTTPException):
        return Problem(error.status_code, "http", str(error.detail), headers=error.headers)
    return Problem(500, "internal", "the server has failed; its log has the error by X-Request-ID")


SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "the kind of problem"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what is wrong, and what to do"},
        "parameter": {"type": "string", "description": "the parameter that is wrong, if one is"},
    },
}
"""The JSON schema of a problem document."""
