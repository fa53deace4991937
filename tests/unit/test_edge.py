"""The edge, which every request passes: its endpoints are as safe as those behind the framework."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.testclient import TestClient

from infra.errors import Unavailable, UserError
from infra.settings import Settings
from query.api.edge import Edge
from query.api.problems import MEDIA_TYPE, Problem
from query.api.tracing import Tracing
from query.question import BadQuestion
from query.serve import check_certificate

_answered: list[tuple[str, int]] = []


def _note_token(request: Request) -> None:
    """As the gate does, of a token's origin."""
    request.state.origin = request.headers.get("x-token-origin", "")


async def fails(request: Request) -> Response:
    _note_token(request)
    raise {
        "problem": Problem(429, "too-many-requests", "wait", headers={"Retry-After": "3"}),
        "question": BadQuestion("start", "no such time"),
        "away": Unavailable("Redis: gone"),
        "mistake": RuntimeError("secret"),
    }[request.query_params["how"]]


async def answers(request: Request) -> Response:
    _note_token(request)
    return Response(b"1", headers={"Cache-Control": "private"})


async def framework() -> dict[str, str]:
    return {"status": "ok"}


async def endless(request: Request) -> StreamingResponse:
    _note_token(request)

    async def events() -> AsyncIterator[bytes]:
        while True:
            yield b"data: 1\n\n"
            await asyncio.sleep(0.01)

    return StreamingResponse(events(), media_type="text/event-stream")


def client_of_edge(*origins: str) -> TestClient:
    """A client of an edge with two endpoints of its own, around a framework with two more."""
    _answered.clear()
    app = FastAPI(redirect_slashes=False)
    app.get("/framework")(framework)
    app.get("/endless", response_model=None)(endless)
    edge = Edge(
        app, {"/v1/fails": fails, "/v1/answers": answers}, answered=lambda r, s, _: _answered.append((r, s)),
        traced=Tracing(""), log=False, tls=True, origins=origins,
    )  # fmt: skip
    return TestClient(edge, raise_server_exceptions=False)


@pytest.fixture
def client() -> TestClient:
    return client_of_edge()


@pytest.mark.parametrize(("how", "status"), [("problem", 429), ("question", 400), ("away", 503), ("mistake", 500)])
def test_every_exception_becomes_a_problem_document_and_is_counted(client: TestClient, how: str, status: int) -> None:
    response = client.get(f"/v1/fails?how={how}")
    assert response.status_code == response.json()["status"] == status
    assert response.headers["content-type"] == MEDIA_TYPE
    assert "secret" not in response.text
    assert response.headers.get("retry-after") == {"problem": "3", "away": "5"}.get(how)
    assert response.headers["cache-control"] == "no-store"
    assert _answered == [("/v1/fails", status)]


def test_common_headers_are_added_and_replace_none(client: TestClient) -> None:
    response = client.get("/v1/answers", headers={"X-Request-ID": "mine"})
    assert response.headers["x-request-id"] == "mine"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["strict-transport-security"].startswith("max-age")
    assert response.headers["cache-control"] == "private"
    assert _answered == [("/v1/answers", 200)]


@pytest.mark.parametrize("path", ["/v1/answers", "/framework"])
def test_head_answers_as_get_without_the_body(client: TestClient, path: str) -> None:
    get, head = client.get(path), client.head(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert {n: v for n, v in head.headers.items() if n != "x-request-id"} == {
        n: v for n, v in get.headers.items() if n != "x-request-id"
    }
    assert int(head.headers["content-length"]) == len(get.content) > 0


def test_head_of_an_endless_stream_ends(client: TestClient) -> None:
    head = client.head("/endless")
    assert (head.status_code, head.headers["content-type"], head.content) == (
        200,
        "text/event-stream; charset=utf-8",
        b"",
    )


def test_head_of_a_refusal_has_its_status_and_headers(client: TestClient) -> None:
    head = client.head("/v1/fails?how=problem")
    assert (head.status_code, head.headers["retry-after"], head.content) == (429, "3", b"")


@pytest.mark.parametrize("path", ["/v1/answers", "/framework", "/endless"])
def test_options_lists_the_methods_of_a_path(client: TestClient, path: str) -> None:
    options = client.options(path)
    assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize("path", ["/v1/answers", "/framework"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "TRACE"])
def test_other_methods_are_refused_with_the_allowed_ones(client: TestClient, path: str, method: str) -> None:
    refused = client.request(method, path)
    assert refused.status_code == refused.json()["status"] == 405
    assert refused.headers["content-type"] == MEDIA_TYPE
    assert refused.headers["allow"] == "GET, HEAD, OPTIONS"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", ["/v1/answers/", "/framework/", "/v2", "/v1//answers", "/%2e%2e/etc/passwd"])
def test_an_unknown_path_is_a_problem_and_never_a_redirect(client: TestClient, method: str, path: str) -> None:
    missing = client.request(method, path, follow_redirects=False)
    assert missing.status_code == 404
    assert missing.headers["content-type"] == MEDIA_TYPE
    if method != "HEAD":
        assert missing.json()["type"] == "/problems/not-found"
        if path.endswith("/"):
            assert f"did you mean {path[:-1]}?" in missing.json()["detail"]


_PAGE = "https://dash.example.com"


def _preflight(client: TestClient, origin: str, **more: str) -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": more.pop("method", "GET")} | {
        f"Access-Control-Request-{name.title()}": value for name, value in more.items()
    }
    response: httpx.Response = client.options("/v1/answers", headers=headers)
    return response


def test_no_page_of_another_origin_may_read_answers_by_default(client: TestClient) -> None:
    for path in ("/v1/answers", "/v1/fails?how=problem", "/endless", "/missing"):
        response = client.head(path, headers={"Origin": _PAGE})
        assert not [name for name in response.headers if name.startswith("access-control")]
        assert "Origin" in response.headers["vary"]
    for method in ("POST", "PUT", "DELETE"):
        assert _preflight(client, _PAGE, method=method).status_code == 403


def test_a_page_may_read_answers_to_a_token_for_its_origin_alone(client: TestClient) -> None:
    # What a token allows is not known to a preflight, which carries none.
    preflight = _preflight(client, _PAGE, headers="authorization")
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, _PAGE)
    for path in ("/v1/answers", "/v1/fails?how=problem", "/endless"):
        for listed in (client, client_of_edge("http://localhost:3000")):
            response = listed.head(path, headers={"Origin": _PAGE, "X-Token-Origin": _PAGE})
            assert response.headers["access-control-allow-origin"] == _PAGE
            assert "x-adclick-finality" in response.headers["access-control-expose-headers"].lower()
            assert "access-control-allow-credentials" not in response.headers
            for other in ("https://evil.test", "null", f"{_PAGE}.evil.test"):
                response = listed.head(path, headers={"Origin": other, "X-Token-Origin": _PAGE})
                assert "access-control-allow-origin" not in response.headers
                assert "Origin" in response.headers["vary"]


def test_a_page_of_a_listed_origin_may_read_answers_with_a_key() -> None:
    client = client_of_edge(_PAGE, "http://localhost:3000")
    assert _preflight(client, _PAGE, method="POST", headers="authorization,content-type").status_code == 204
    preflight = _preflight(client, _PAGE, headers="authorization, last-event-id,if-none-match")
    assert preflight.status_code == 204
    assert preflight.headers["access-control-allow-origin"] == _PAGE
    assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
    for path in ("/v1/answers", "/v1/fails?how=problem", "/endless", "/missing"):
        response = client.head(path, headers={"Origin": _PAGE})
        assert response.headers["access-control-allow-origin"] == _PAGE
        assert "Origin" in response.headers["vary"]
        exposed = response.headers["access-control-expose-headers"].lower()
        assert all(
            name in exposed for name in ("x-adclick-finality", "x-adclick-next-cursor", "ratelimit", "retry-after")
        )


@pytest.mark.parametrize(
    "origin", ["https://dash.example.com.evil.test", "http://dash.example.com", "https://dash.example.com:8443", "null"]
)
def test_a_page_of_an_origin_that_is_not_listed_may_not_read_answers(origin: str) -> None:
    client = client_of_edge(_PAGE)
    refused = _preflight(client, origin, method="POST", headers="authorization")
    assert refused.status_code == 403
    assert refused.headers["content-type"] == MEDIA_TYPE
    for response in (refused, client.get("/v1/answers", headers={"Origin": origin})):
        assert "access-control-allow-origin" not in response.headers
    # A cache must not give this answer to a page of a listed origin.
    assert "Origin" in client.get("/v1/answers").headers["vary"]


def test_a_url_that_is_too_long_reaches_no_endpoint(client: TestClient) -> None:
    assert client.get(f"/v1/answers?{'a' * 40_000}").status_code == 414


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", ()),
        ("https://Dash.Example.com/", ("https://dash.example.com",)),
        (
            "https://a.test:443, http://b.test:80 ,http://c.test:8080,",
            ("https://a.test", "http://b.test", "http://c.test:8080"),
        ),
        ("http://[::1]:3000", ("http://[::1]:3000",)),
        ("*", ("*",)),
    ],
)
def test_origins_are_compared_as_browsers_write_them(text: str, origins: tuple[str, ...]) -> None:
    assert Settings.model_validate({"cors_origins": text}).origins == origins


@pytest.mark.parametrize(
    "text", ["dash.example.com", "https://dash.example.com/page", "null", "ftp://a.test", "https://u:p@a.test"]
)
def test_an_invalid_origin_is_refused_at_start(text: str) -> None:
    with pytest.raises(ValidationError, match="cors_origins"):
        Settings.model_validate({"cors_origins": text})


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"http": "https://127.0.0.1:8443"}, "needs a certificate"),
        ({"http": "https://127.0.0.1:8443", "tls_certificate": "chain.pem"}, "needs a certificate"),
        ({"http": "http://127.0.0.1:8080", "tls_certificate": "chain.pem"}, "does not use it"),
    ],
)
def test_an_address_with_https_needs_a_certificate_and_one_without_has_none(
    settings: dict[str, str], expected: str
) -> None:
    with pytest.raises(UserError, match=expected):
        check_certificate(Settings.model_validate(settings))
