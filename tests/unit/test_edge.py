"""What every request passes: an endpoint called from the edge is as safe as one behind the framework."""

from __future__ import annotations

import pytest
from fastapi import FastAPI, Request, Response
from starlette.testclient import TestClient

from infra.errors import Unavailable
from query.api.edge import Edge
from query.api.problems import MEDIA_TYPE, Problem
from query.api.tracing import Tracing
from query.request import BadQuestion

_counted: list[tuple[str, int]] = []


async def fails(request: Request) -> Response:
    raise {
        "problem": Problem(429, "too-many-requests", "wait", headers={"Retry-After": "3"}),
        "question": BadQuestion("start", "no such time"),
        "away": Unavailable("Redis: gone"),
        "mistake": RuntimeError("secret"),
    }[request.query_params["how"]]


async def answers(_: Request) -> Response:
    return Response(b"1", headers={"Cache-Control": "private"})


@pytest.fixture
def client() -> TestClient:
    _counted.clear()
    edge = Edge(
        FastAPI(), {"/v1/fails": fails, "/v1/answers": answers}, answered=lambda r, s, _: _counted.append((r, s)),
        traced=Tracing(""), log=False, tls=True,
    )  # fmt: skip
    return TestClient(edge, raise_server_exceptions=False)


@pytest.mark.parametrize(("how", "status"), [("problem", 429), ("question", 400), ("away", 503), ("mistake", 500)])
def test_whatever_is_raised_is_told_as_a_problem_and_counted(client: TestClient, how: str, status: int) -> None:
    found = client.get(f"/v1/fails?how={how}")
    assert found.status_code == found.json()["status"] == status
    assert found.headers["content-type"] == MEDIA_TYPE
    assert "secret" not in found.text
    assert found.headers.get("retry-after") == {"problem": "3", "away": "5"}.get(how)
    assert found.headers["cache-control"] == "no-store"
    assert _counted == [("/v1/fails", status)]


def test_answers_get_what_all_get_and_keep_what_they_say_themselves(client: TestClient) -> None:
    found = client.get("/v1/answers", headers={"X-Request-ID": "mine"})
    assert found.headers["x-request-id"] == "mine"
    assert found.headers["x-content-type-options"] == "nosniff"
    assert found.headers["strict-transport-security"].startswith("max-age")
    assert found.headers["cache-control"] == "private"
    # What is not called from the edge is the framework's.
    assert client.post("/v1/answers").status_code == 404
    assert _counted == [("/v1/answers", 200), ("none", 404)]


def test_an_address_that_is_too_long_reaches_no_endpoint(client: TestClient) -> None:
    assert client.get(f"/v1/answers?{'a' * 40_000}").status_code == 414
