"""Answers that are none: problem documents, as RFC 9457 has them."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from infra.errors import Unavailable
from query.request import BadQuestion

TYPE = "/problems/"
MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not found",
    405: "Method not allowed",
    406: "Not acceptable",
    413: "Too large",
    414: "Too long",
    422: "Cannot be answered",
    429: "Too many requests",
    431: "Headers too large",
    500: "Internal error",
    503: "Unavailable",
}


class Problem(Exception):
    """What is wrong, in a sentence, and the parameter that is, if one is."""

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
        told: dict[str, object] = {
            "type": f"{TYPE}{self.kind}",
            "title": TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
        }
        return told if self.parameter is None else told | {"parameter": self.parameter}

    def response(self) -> JSONResponse:
        """As it goes over HTTP."""
        return JSONResponse(self.body(), self.status, self.headers, media_type=MEDIA_TYPE)


EXPECTED = (Problem, BadQuestion, Unavailable, HTTPException)
"""What `problem_of` knows; whatever else is raised is a mistake of ours."""


def problem_of(error: Exception) -> Problem:
    """What a client is told of something that was raised for it."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, BadQuestion):
        return Problem(error.status, error.kind, error.detail, error.parameter)
    if isinstance(error, Unavailable):
        detail = f"nothing that can answer this is there at the moment: {error}"
        return Problem(503, "unavailable", detail, headers={"Retry-After": "5"})
    if isinstance(error, HTTPException):
        return Problem(error.status_code, "http", str(error.detail), headers=error.headers)
    return Problem(500, "internal", "something is wrong with the server; its log says what")


SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "what kind of problem"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "what is wrong, and what to do"},
        "parameter": {"type": "string", "description": "the parameter that is wrong, if one is"},
    },
}
"""The same, as the OpenAPI document tells it."""
