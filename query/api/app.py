"""The HTTP face of the router, put together: routes, each behind the gate; problems; the edge around them."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import sys
from collections.abc import AsyncIterator, Sequence
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
from infra.clock import iso, now_ms
from infra.redis import Redis
from infra.settings import Settings
from query import changes, export, formats, ledger
from query.api import document
from query.api.access import Gate, Handler, Reply
from query.api.edge import Edge, Endpoint
from query.api.exports import Exports
from query.api.live import Live
from query.api.metrics import Metrics
from query.api.negotiation import CODINGS, IDENTITY, matches_any, preferred_coding, preferred_format, vary
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
_VARY = "Accept, Accept-Encoding, Authorization"
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
        self._exports = Exports(self.gate)
        self._recent: Recent[Reply] | None = Recent(_size) if settings.query_cache == "on" else None

    def question(self, request: Request, access: Access, *, without: tuple[str, ...] = ()) -> Question:
        """What a request asks. Raises BadQuestion."""
        given = [(name, value) for name, value in request.query_params.multi_items() if name not in without]
        return parse(given, now_ms(), self.router.held, access.advertisers, self.router.signer)

    def metrics(self, request: Request, access: Access) -> Reply:
        """Numbers, in the format that is asked for."""
        given = request.query_params.getlist("format")
        name = given[0] if given else self._preferred_format(request)
        if len(given) > 1 or name not in formats.MEDIA_TYPES:
            raise BadQuestion("format", f"format is {', '.join(formats.MEDIA_TYPES)}, once")
        coding = _coding(request, small=False)
        question = self.question(request, access, without=("format",))
        # Formats of rows alone have no place for a cursor: all rows are sent, unless a limit is given.
        whole = name in formats.STREAMED and "limit" not in request.query_params
        compute = partial(self._export if whole else self._page, question, name)
        reply = compute() if self._recent is None else self._recent.get((question, name, whole), compute)
        if reply.export is not None:
            return self._streamed(request, access, reply, name, coding)
        if matches_any(request.headers.getlist("if-none-match"), reply.headers["ETag"]):
            return replace(reply, body=b"", status=304)
        return _compressed(request, reply)

    def _preferred_format(self, request: Request) -> str:
        accept = ", ".join(request.headers.getlist("accept"))
        name = preferred_format(accept, tuple(formats.MEDIA_TYPES.items()))
        if name is None:
            offers = ", ".join(media_type.partition(";")[0] for media_type in formats.MEDIA_TYPES.values())
            raise Problem(406, "not-acceptable", f"Accept allows none of {offers}; send one of them, or format=")
        return name

    def _export(self, question: Question, name: str) -> Reply:
        begun = export.begin(question, self.router.answer)
        if begun.fits_a_page:
            return self._reply(begun.first, name)
        headers = {
            "Cache-Control": _REVALIDATED,
            "Vary": _VARY,
            "X-Adclick-Finality": begun.finality,
            "X-Adclick-Warnings": _warnings(begun.warnings),
            "Content-Disposition": _file_name(question, name),
        }
        return Reply(b"", formats.MEDIA_TYPES[name], headers, begun.rows_read, export=begun)

    def _streamed(self, request: Request, access: Access, reply: Reply, name: str, coding: str) -> Reply:
        assert reply.export is not None
        headers = reply.headers if coding == IDENTITY else {**reply.headers, "Content-Encoding": coding}
        respond = partial(
            self._exports.respond, request, access, reply.export, formats.STREAMED[name], coding, self.router.answer
        )
        return replace(reply, headers=headers, stream=respond)

    def _page(self, question: Question, name: str) -> Reply:
        return self._reply(self.router.answer(question), name)

    def _reply(self, found: Answer, name: str) -> Reply:
        rows = formats.rows_alone(found, name)
        headers = {
            # Two answers with the same rows are the same, however long they took.
            "ETag": f'W/"{_digest(found, rows)}"',
            "Cache-Control": _A_MINUTE if found.settled else _REVALIDATED,
            "Vary": _VARY,
        }
        media_type = formats.MEDIA_TYPES[name]
        if name == "json":
            body = formats.document(found, rows, self._settings.currency)
            return Reply(body, media_type, headers, found.rows_read)
        headers |= {
            "X-Adclick-Finality": found.finality,
            "X-Adclick-Warnings": _warnings(found.warnings),
            "Content-Disposition": _file_name(found.question, name),
            **({"X-Adclick-Next-Cursor": found.next_cursor} if found.next_cursor else {}),
        }
        return Reply(rows, media_type, headers, found.rows_read)

    def changes(self, request: Request, access: Access) -> Reply:
        """Buckets that were corrected or reconciled."""
        asked = changes.parse(request.query_params.multi_items(), now_ms(), access.advertisers, self.router.signer)
        ask = self._changes.answer
        found = self.router.guards["clickhouse"].call(lambda: ask(asked, self.router.signer))
        return _compressed(request, Reply(msgspec.json.encode(found), rows_read=found["rows"]))

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
        return _compressed(request, Reply(msgspec.json.encode(found), rows_read=found["rows"]))


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
        docs_url="/docs", redoc_url=None, static_url="/docs/static", lifespan=serving, redirect_slashes=False,
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
        tls=settings.http.startswith("https"), origins=settings.origins,
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


def _warnings(warnings: Sequence[str]) -> str:
    return msgspec.json.encode(warnings).decode("ascii", "replace")


def _file_name(question: Question, name: str) -> str:
    """Content-Disposition: a name that tells exports apart."""
    dates = "_".join(iso(ms)[:16].replace(":", "") for ms in (question.start_ms, question.end_ms))
    return f'attachment; filename="adclick_{question.grain}_{dates}.{name}"'


def _coding(request: Request, *, small: bool) -> str:
    """The content coding to answer in. Raises Problem (406)."""
    sent = request.headers.getlist("accept-encoding")
    coding = preferred_coding(", ".join(sent) if sent else None, small=small)
    if coding is None:
        offers = ", ".join((*CODINGS, IDENTITY))
        raise Problem(406, "not-acceptable", f"Accept-Encoding allows none of {offers}; send one of them")
    return coding


def _compressed(request: Request, reply: Reply) -> Reply:
    """The reply in the coding that the client prefers."""
    reply = replace(reply, headers=vary(reply.headers, "Accept-Encoding", "Authorization"))
    coding = _coding(request, small=len(reply.body) < _COMPRESSED_BYTES)
    if coding == IDENTITY:
        return reply
    packed = getattr(cramjam, coding).compress(reply.body, level=1)
    return replace(reply, body=bytes(packed), headers={**reply.headers, "Content-Encoding": coding})


def _size(reply: Reply) -> int | None:
    """What a reply takes in memory; None for one that is streamed to its own client."""
    return None if reply.export is not None else len(reply.body)
