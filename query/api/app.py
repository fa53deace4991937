"""The HTTP face of the router: FastAPI, problems by RFC 9457, one key, Prometheus metrics."""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator
from importlib import resources
from typing import Annotated, Any

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra import pipeline_state
from infra.clock import now_ms
from infra.errors import AdclickError, Unavailable
from infra.settings import Settings
from query.api.metrics import Metrics
from query.request import BadQuestion, parse
from query.router import Router

_LIVE_EVERY_S = 1.0
_TITLES = {
    400: "Bad request",
    401: "Unauthorized",
    404: "Not found",
    405: "Method not allowed",
    422: "Cannot be answered",
    500: "Internal error",
    503: "Unavailable",
}


class _Measured:
    """Counts and times answers. Plain ASGI: Starlette's own base class costs a task and a queue for each request."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.answered(route, status, time.perf_counter() - started)


class Problem(Exception):
    """An answer that is not one, as RFC 9457 has it."""

    def __init__(
        self,
        status: int,
        kind: str,
        detail: str,
        parameter: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status, self.kind, self.detail, self.parameter, self.headers = (
            status,
            kind,
            detail,
            parameter,
            headers,
        )

    def response(self) -> JSONResponse:
        """The problem document."""
        body: dict[str, Any] = {
            "type": f"/problems/{self.kind}",
            "title": _TITLES.get(self.status, "Error"),
            "status": self.status,
            "detail": self.detail,
        }
        if self.parameter is not None:
            body["parameter"] = self.parameter
        return JSONResponse(body, self.status, self.headers, media_type="application/problem+json")


def create(settings: Settings) -> FastAPI:
    """The application of one query process."""
    router = Router(settings)
    metrics = Metrics(settings)
    app = FastAPI(
        title="adclick", version="1", description="Exact ad-click numbers: minutes, hours and days, and how final each is.",
        docs_url="/docs", redoc_url=None,
    )  # fmt: skip

    async def keyed(request: Request) -> None:
        """Refuse requests without the key; compared in constant time."""
        wanted = settings.api_key.get_secret_value()
        given = request.headers.get("authorization", "")
        scheme, _, key = given.partition(" ")
        if not wanted or scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), wanted.encode()):
            raise Problem(
                401,
                "unauthorized",
                "send the header Authorization: Bearer KEY",
                headers={"WWW-Authenticate": "Bearer"},
            )

    @app.exception_handler(Problem)
    async def _problem(_: Request, error: Problem) -> Response:
        return error.response()

    @app.exception_handler(BadQuestion)
    async def _bad_question(_: Request, error: BadQuestion) -> Response:
        return Problem(error.status, error.kind, error.detail, error.parameter).response()

    @app.exception_handler(Unavailable)
    async def _unavailable(_: Request, error: Unavailable) -> Response:
        return Problem(
            503, "unavailable", f"no tier can answer at the moment: {error}", headers={"Retry-After": "5"}
        ).response()

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return Problem(400, "bad-parameter", str(first["msg"]), str(first["loc"][-1])).response()

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> Response:
        return Problem(error.status_code, "http", str(error.detail), headers=dict(error.headers or {})).response()

    app.add_middleware(_Measured, metrics=metrics)

    def ask(request: Request) -> dict[str, Any]:
        return router.answer(parse(request.query_params.multi_items(), now_ms(), router.held))

    @app.get("/v1/metrics", dependencies=[Depends(keyed)], summary="Numbers of campaigns, by time and dimension")
    async def metrics_(request: Request, _p: Annotated[None, Depends(_documented)]) -> Response:
        found = await run_in_threadpool(ask, request)
        return Response(msgspec.json.encode(found), media_type="application/json")

    @app.get("/v1/stream", dependencies=[Depends(keyed)], summary="Live rows of a query, as server-sent events")
    async def stream_(request: Request, _p: Annotated[None, Depends(_documented)]) -> Response:
        first = await run_in_threadpool(ask, request)

        async def changes() -> AsyncIterator[str]:
            found, shown = first, dict[str, str]()
            while not await request.is_disconnected():
                rows = {
                    json.dumps([r["time"], *(r.get(m["name"]) for m in found["meta"][1:-10])]): json.dumps(r)
                    for r in found["data"]
                }
                fresh = [row for key, row in rows.items() if shown.get(key) != row]
                shown = rows
                yield f"data: [{','.join(fresh)}]\n\n" if fresh else ": still here\n\n"
                await asyncio.sleep(_LIVE_EVERY_S)
                try:
                    found = await run_in_threadpool(ask, request)
                except AdclickError as error:
                    yield f"event: problem\ndata: {json.dumps(str(error))}\n\n"

        return StreamingResponse(changes(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/v1/pipeline", dependencies=[Depends(keyed)], summary="Lag, watermark and overload level")
    def pipeline() -> dict[str, Any]:
        return pipeline_state.collect(settings)

    @app.get("/v1/reconciliations", dependencies=[Depends(keyed)], summary="The nightly runs, newest first")
    def reconciliations() -> dict[str, Any]:
        return {"data": pipeline_state.runs(settings)}

    @app.get("/healthz", summary="Whether this process serves")
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Whether the whole pipeline is up", response_model=None)
    def readyz() -> Response:
        missing = pipeline_state.not_ready(settings)
        body = {"status": "not ready" if missing else "ready", "missing": missing}
        return JSONResponse(body, 503 if missing else 200)

    @app.get("/metrics", summary="Prometheus metrics of this process and of the pipeline", response_model=None)
    async def prometheus(request: Request) -> Response:
        if request.client is None or request.client.host not in ("127.0.0.1", "::1"):
            await keyed(request)
        return Response(await run_in_threadpool(metrics.render), media_type=metrics.content_type)

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse((resources.files(__package__) / "page.html").read_text())

    return app


async def _documented(
    campaign_id: Annotated[
        str | None, Query(description="Campaigns, several by comma; or give advertiser_id", examples=["7"])
    ] = None,
    advertiser_id: Annotated[str | None, Query(description="All campaigns of an advertiser")] = None,
    start: Annotated[
        str | None, Query(description="RFC 3339, now, or relative like -24h; inclusive", examples=["-24h"])
    ] = None,
    end: Annotated[str | None, Query(description="The same; exclusive", examples=["now"])] = None,
    granularity: Annotated[str | None, Query(description="minute, hour, day, total or auto", examples=["hour"])] = None,
    group_by: Annotated[
        str | None, Query(description="Any of campaign_id, ad_id, publisher_id, country, device")
    ] = None,
    filter: Annotated[list[str] | None, Query(description="dimension:value,value; may be repeated")] = None,
    timezone: Annotated[str | None, Query(description="IANA name, whole hours from UTC")] = None,
    fill: Annotated[str | None, Query(description="zero adds empty buckets")] = None,
    order: Annotated[str | None, Query(description="A column; with a leading minus, descending")] = None,
    limit: Annotated[str | None, Query(description="Rows at most, up to 10,000")] = None,
    cursor: Annotated[str | None, Query(description="next_cursor of the page before")] = None,
) -> None:
    """The parameters as the OpenAPI document shows them; `request.parse` reads and checks them."""
