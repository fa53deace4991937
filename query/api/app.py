"""The HTTP face of the router, put together: routes, each behind the gate; problems; the edge around them."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any

import cramjam
import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi_offline import FastAPIOffline

from infra import pipeline_state
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.redis import Redis
from infra.settings import Settings
from query import changes, formats, ledger
from query.api import document
from query.api.access import Gate, Handler, Reply
from query.api.edge import Edge, Endpoint
from query.api.live import Live
from query.api.metrics import Metrics
from query.api.problems import EXPECTED, Problem, problem_of
from query.api.tracing import Tracing
from query.changes import Changes
from query.keys import Access, Keyring, Keys
from query.ledger import Ledger
from query.limits import Limits
from query.recent import Recent
from query.request import BadQuestion, Question, parse
from query.router import BRIEF_TIMEOUT_S, Answer, Observe, Router

_COMPRESSED_BYTES = 1024
# Threads that answer. Few: they take turns with one interpreter, and each turn costs. Minutes have threads of their own, so that
# nobody who asks for them waits for somebody who waits for ClickHouse.
_MINUTES_AT_ONCE, _AT_ONCE = 2, 4
_ABOUT_MINUTES = b"granularity=minute"
# For how long one of them keeps the interpreter from the others.
_TURN_S = 0.0005
# What a tenant may know of the pipeline.
_PUBLIC_STATE = ("watermark", "stream_lag_s", "level")
_PUBLIC_RUN = ("date", "run_id", "published_at")
_REVALIDATED, _A_MINUTE = "private, no-cache", "private, max-age=60"


class Api:
    """The handlers: what each route makes of a request that may be made."""

    def __init__(self, settings: Settings, observe: Observe) -> None:
        self._settings = settings
        self.router = Router(settings, observe)
        redis = Redis(settings.redis, timeout_s=1.0)
        clickhouse = ClickHouse(settings.clickhouse, settings.database, timeout_s=settings.query_timeout_s)
        self._changes, self._ledger = Changes(clickhouse), Ledger(clickhouse)
        limits = Limits(redis, self.router.guards["redis"], settings.key_prefix)
        brief = ClickHouse(settings.clickhouse, settings.database, timeout_s=BRIEF_TIMEOUT_S)
        self.gate = Gate(Keyring(Keys(brief), settings.api_key.get_secret_value()), limits)
        self.live = Live()
        self._recent: Recent[Reply] | None = Recent() if settings.query_cache == "on" else None

    def question(self, request: Request, access: Access, *, without: tuple[str, ...] = ()) -> Question:
        """What a request asks. Raises BadQuestion."""
        given = [(name, value) for name, value in request.query_params.multi_items() if name not in without]
        return parse(given, now_ms(), self.router.held, access.advertisers, self.router.signer)

    def metrics(self, request: Request, access: Access) -> Reply:
        """Numbers, in the format that is asked for."""
        given = request.query_params.getlist("format")
        wanted = given[0] if given else formats.accepted(request.headers.get("accept", ""))
        if len(given) > 1 or wanted not in formats.FORMATS:
            raise BadQuestion("format", f"format is {', '.join(formats.FORMATS)}, once")
        question = self.question(request, access, without=("format",))
        answered = self._recent.get if self._recent is not None else lambda _key, make: make()
        found = answered((question, wanted), lambda: self._made(question, wanted))
        tags = (tag.strip() for tag in request.headers.get("if-none-match", "").split(","))
        if found.headers["ETag"] in tags:
            return replace(found, body=b"", status=304)
        return _packed(request, found)

    def _made(self, question: Question, wanted: str) -> Reply:
        found = self.router.answer(question)
        media_type, rows = formats.rows_alone(found, wanted)
        headers = {
            # Two answers with the same rows are the same, however long they took.
            "ETag": f'W/"{_digest(found, rows)}"',
            "Cache-Control": _A_MINUTE if found.settled else _REVALIDATED,
            "Vary": "Accept, Accept-Encoding, Authorization",
        }
        if wanted == "json":
            body = formats.document(found, rows, self._settings.currency)
            return Reply(body, media_type, headers, found.rows_read)
        headers |= {
            "X-Adclick-Finality": found.finality,
            "X-Adclick-Warnings": msgspec.json.encode(found.warnings).decode("ascii", "replace"),
            **({"X-Adclick-Next-Cursor": found.next_cursor} if found.next_cursor else {}),
        }
        return Reply(rows, media_type, headers, found.rows_read)

    def changes(self, request: Request, access: Access) -> Reply:
        """Buckets that were corrected or reconciled."""
        asked = changes.parse(request.query_params.multi_items(), now_ms(), access.advertisers, self.router.signer)
        ask = self._changes.answer
        found = self.router.guards["clickhouse"].call(lambda: ask(asked, self.router.signer))
        return _packed(request, Reply(msgspec.json.encode(found), rows_read=found["rows"]))

    def pipeline(self, _request: Request, access: Access) -> Reply:
        """Lag, watermark and level; to a tenant, what says how fresh its numbers are."""
        found = pipeline_state.collect(self._settings)
        shown = found if access.admin else {name: found[name] for name in _PUBLIC_STATE}
        return Reply(msgspec.json.encode(shown))

    def reconciliations(self, _request: Request, access: Access) -> Reply:
        """The nightly runs; to a tenant, without what they counted of others."""
        found = pipeline_state.runs(self._settings)
        shown = found if access.admin else [{name: run[name] for name in _PUBLIC_RUN} for run in found]
        return Reply(msgspec.json.encode({"data": shown}))

    def ledger(self, request: Request, access: Access) -> Reply:
        """Why a reconciled day differs from what the stream had counted."""
        date = request.path_params["date"]
        asked = ledger.parse(date, request.query_params.multi_items(), access.advertisers, self.router.signer)
        ask = self._ledger.answer
        found = self.router.guards["clickhouse"].call(lambda: ask(asked, self.router.signer))
        if found is None:
            raise Problem(404, "not-reconciled", f"{asked.date} has not been reconciled yet")
        return _packed(request, Reply(msgspec.json.encode(found), rows_read=found["rows"]))


def create(settings: Settings) -> Edge:
    """The application of one query process."""
    metrics, traced = Metrics(settings), Tracing(settings.trace_collector)

    def observe(tier: str, outcome: str, seconds: float) -> None:
        metrics.tier_read(tier, outcome, seconds)
        traced.tier_read(tier, outcome, seconds)

    api = Api(settings, observe)

    @asynccontextmanager
    async def serving(_: FastAPI) -> AsyncIterator[None]:
        # Each waits for a store now and then; more of them would mostly wait for each other.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_AT_ONCE, "answers"))
        sys.setswitchinterval(_TURN_S)
        await asyncio.to_thread(api.router.warm_up)
        yield
        await asyncio.to_thread(traced.close)

    # FastAPI's own page of documentation has the browser fetch its script from elsewhere.
    app = FastAPIOffline(
        docs_url="/docs", redoc_url=None, static_url="/docs/static", lifespan=serving,
        title="adclick", version="1", description="Exact ad-click numbers: minutes, hours and days, and how final each is.",
    )  # fmt: skip
    _problems(app)
    direct = _numbers(app, api)
    _operating(app, api, settings, metrics)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        """With the key, which FastAPI cannot see."""
        found = describe()
        found.setdefault("components", {})["securitySchemes"] = document.SECURITY
        for path, operations in found["paths"].items():
            for operation in operations.values():
                operation["security"] = [{"key": []}] if path.startswith("/v1") else []
        return found

    app.openapi = openapi  # type: ignore[method-assign]
    return Edge(
        app, direct, answered=metrics.answered, traced=traced, log=settings.access_log == "on",
        tls=settings.http.startswith("https"),
    )  # fmt: skip


def _problems(app: FastAPI) -> None:
    async def told(_: Request, error: Exception) -> Response:
        return problem_of(error).response()

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, told)


def _numbers(app: FastAPI, api: Api) -> dict[str, Endpoint]:
    """The routes under /v1: each is a handler behind the gate. Returns those of one path."""
    direct: dict[str, Endpoint] = {}
    minutes = ThreadPoolExecutor(_MINUTES_AT_ONCE, "minutes")

    def route(path: str, handler: Handler, summary: str, parameters: list[dict[str, Any]], answers: str) -> None:
        async def endpoint(request: Request) -> Response:
            serve = partial(contextvars.copy_context().run, api.gate.serve, request, handler)
            threads = minutes if _ABOUT_MINUTES in request.scope["query_string"] else None
            return await asyncio.get_running_loop().run_in_executor(threads, serve)

        if "{" not in path:
            direct[path] = endpoint
        app.add_api_route(
            path, endpoint, summary=summary, response_model=None, response_class=Response, name=answers + path,
            responses=document.RESPONSES[answers], openapi_extra={"parameters": parameters},
        )  # fmt: skip

    route("/v1/metrics", api.metrics, "Numbers of campaigns, by time and dimension", document.METRICS, "metrics")
    route(
        "/v1/metrics/changes",
        api.changes,
        "Closed buckets that were corrected or reconciled since",
        document.CHANGES,
        "changes",
    )
    route("/v1/pipeline", api.pipeline, "Lag, watermark and overload level", [], "plain")
    route("/v1/reconciliations", api.reconciliations, "The nightly runs, newest first", [], "plain")

    route(
        "/v1/reconciliations/{date}/ledger", api.ledger, "Why a reconciled day differs from what the stream had counted",
        document.LEDGER, "ledger",
    )  # fmt: skip

    async def stream(request: Request) -> Response:
        access, taken = await asyncio.to_thread(api.gate.enter, request)

        def ask() -> Answer:
            found = api.router.answer(api.question(request, api.gate.known(request)))
            api.gate.charge(access, found.rows_read)
            return found

        # A wrong question is a problem document, not a stream.
        await asyncio.to_thread(ask)
        return api.live.respond(request, access, ask, taken.headers())

    app.add_api_route(
        "/v1/stream", stream, summary="Live rows of a query, as server-sent events", response_model=None,
        response_class=Response, responses=document.RESPONSES["live"], openapi_extra={"parameters": document.LIVE},
    )  # fmt: skip
    return direct


def _operating(app: FastAPI, api: Api, settings: Settings, metrics: Metrics) -> None:
    """Health, metrics, and the dashboard."""

    @app.get("/healthz", summary="Whether this process serves", responses=document.RESPONSES["open"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get(
        "/readyz",
        summary="Whether the whole pipeline is up",
        response_model=None,
        responses=document.RESPONSES["ready"],
    )
    def readyz() -> Response:
        missing = pipeline_state.not_ready(settings)
        body = {"status": "not ready" if missing else "ready", "missing": missing}
        return JSONResponse(body, 503 if missing else 200)

    @app.get(
        "/metrics", summary="Prometheus metrics of this process and of the pipeline; away from loopback, with an admin key",
        response_model=None, response_class=Response, responses=document.RESPONSES["text"],
    )  # fmt: skip
    def prometheus(request: Request) -> Response:
        if request.client is None or request.client.host not in ("127.0.0.1", "::1"):
            api.gate.enter(request, admin=True)
        return Response(metrics.render(), media_type=metrics.content_type)

    @app.get("/", include_in_schema=False)
    def page() -> HTMLResponse:
        return HTMLResponse((resources.files(__package__) / "page.html").read_text())


def _digest(found: Answer, rows: bytes) -> str:
    told = hashlib.sha256(rows)
    told.update(repr((found.next_cursor, found.finality, found.warnings)).encode())
    return told.hexdigest()[:24]


def _packed(request: Request, reply: Reply) -> Reply:
    """Compressed, where that is worth it and the client can read it."""
    wanted = {part.partition(";")[0].strip() for part in request.headers.get("accept-encoding", "").split(",")}
    if len(reply.body) >= _COMPRESSED_BYTES and wanted & {"zstd", "gzip"}:
        name = "zstd" if "zstd" in wanted else "gzip"
        packed = (
            cramjam.zstd.compress(reply.body, level=1) if name == "zstd" else cramjam.gzip.compress(reply.body, level=1)
        )
        return replace(reply, body=bytes(packed), headers={**reply.headers, "Content-Encoding": name})
    return reply
