"""The assembly of a query process: routes, each behind the gate, problem documents, and the edge around them."""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import cramjam
import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline

from infra.clickhouse.client import ClickHouse
from infra.clock import iso, now_ms
from infra.redis.client import Redis
from infra.settings import Settings
from query import export_stretches, formats
from query.api import document, document_bills, document_credentials
from query.api.access import Gate, HttpReply
from query.api.bills import Bills
from query.api.budgets import Budgets
from query.api.credentials import Credentials
from query.api.dead_letters import DeadLetters
from query.api.directory import COLLECTIONS, DirectoryApi
from query.api.edge import Edge, Endpoint
from query.api.exports import Exports
from query.api.keys import KeyOperations
from query.api.live import Live, LiveRows
from query.api.metrics import Metrics
from query.api.negotiation import CODINGS, IDENTITY, matches_any, preferred_coding, preferred_format, vary
from query.api.pages import add_pages
from query.api.problems import EXPECTED, Problem, problem_of
from query.api.routes import Routes
from query.api.slots import Slot
from query.api.tracing import Tracing
from query.changed_cells import ChangesReader
from query.changes import parse_changes_question
from query.directory.editor import DirectoryEditor
from query.directory.store import DirectoryStore
from query.key_use import KeyUse
from query.keyring import Keyring
from query.keys import Access, Keys
from query.ledger import LedgerReader, parse_ledger_question
from query.limits import RateLimits
from query.page import Page
from query.pipeline import OwnStack, PipelineReader
from query.question import BadQuestion, Question, parse_question
from query.reply_cache import ReplyCache
from query.router import BRIEF_TIMEOUT_S, Answer, Observe, Router
from query.status import find_unready
from query.tokens import TokenSigner

_COMPRESSED_BYTES = 1024
# Threads that answer. Few: they share one interpreter, and each switch costs.
_THREADS = 4
# For how long a thread may keep the interpreter from the others.
_SWITCH_S = 0.0005
# The fields of the pipeline's state that a tenant may see.
_PUBLIC_STATE = ("watermark", "stream_lag_s", "level")
_VARY = "Accept, Accept-Encoding, Authorization"
_REVALIDATED, _A_MINUTE = "private, no-cache", "private, max-age=60"


class Api:
    """The handlers of the routes, called once the gate has let a request in."""

    def __init__(
        self,
        settings: Settings,
        observe: Observe,
        now: Callable[[], int] = now_ms,
        monotonic: Callable[[], float] = time.monotonic,
        folder: Path | None = None,
    ) -> None:
        """`now`: epoch ms, of questions and keys. `monotonic`: seconds, after which keys are read again. `folder`: of the embedded stack
        that the router may be a process of."""
        self._settings, self._now = settings, now
        self.router = Router(settings, observe)
        redis = Redis(settings.redis, timeout_s=1.0)
        clickhouse = ClickHouse(settings.clickhouse, settings.database, timeout_s=settings.query_timeout_s)
        self._changes, self._ledger = ChangesReader(clickhouse, settings.block_partitions), LedgerReader(clickhouse)
        stack = OwnStack(folder)
        self._pipeline = PipelineReader(settings, stack)
        self.dead_letters = DeadLetters(settings, self.router.signer, now)
        self.bills = Bills(clickhouse, self.router, settings, now, stack)
        self.budgets = Budgets(self.router, now)
        limits = RateLimits(redis, self.router.guards["redis"], settings.key_prefix)
        brief = ClickHouse(settings.clickhouse, settings.database, timeout_s=BRIEF_TIMEOUT_S)
        root = settings.api_key.get_secret_value()
        signer = TokenSigner(
            settings.token_secret.get_secret_value() or root, settings.former_token_secret.get_secret_value()
        )
        keyring = Keyring(Keys(brief), root, signer, now, monotonic)
        self.uses = KeyUse(clickhouse, now)
        self.gate = Gate(keyring, limits, self.uses)
        self.credentials = Credentials(keyring, settings.currency, now)
        self.keys = KeyOperations(Keys(clickhouse), keyring, self.uses, now)
        directory = self.router.directory
        editor = DirectoryEditor(DirectoryStore(clickhouse), directory, redis, settings.key_prefix)
        self.directory = DirectoryApi(directory, editor, self.router.signer)
        self.live = Live()
        self._exports = Exports(self.gate)
        self._replies: ReplyCache[HttpReply] | None = (
            ReplyCache(_cached_bytes) if settings.query_cache == "on" else None
        )

    def question(self, request: Request, access: Access, *, without: tuple[str, ...] = ()) -> Question:
        """The question of a request, within what its key may see. Raises BadQuestion."""
        parameters = [(name, value) for name, value in request.query_params.multi_items() if name not in without]
        now, router = self._now(), self.router
        return parse_question(parameters, now, router.retention, access.rows, router.signer, admin=access.admin)

    def metrics(self, request: Request, access: Access) -> HttpReply:
        """Answer a question in the format of `format=`, or of the Accept header."""
        names = request.query_params.getlist("format")
        name = names[0] if names else self._preferred_format(request)
        if len(names) > 1 or name not in formats.MEDIA_TYPES:
            raise BadQuestion("format", f"format must be one of {', '.join(formats.MEDIA_TYPES)}, given once")
        coding = _coding(request, small=False)
        question = self.question(request, access, without=("format",))
        # Formats of rows alone have no field for a cursor: without a limit, all rows are sent.
        whole = name in formats.STREAMED and "limit" not in request.query_params
        compute = partial(self._export if whole else self._page, question, name)
        # Taken before anything is read: the first stretch of an export costs as much as any other.
        slot = self._exports.take(access) if whole and not export_stretches.fits_a_page(question) else None
        with ExitStack() as unless_streamed:
            if slot is not None:
                unless_streamed.enter_context(slot)
            reply = compute() if self._replies is None else self._replies.get((question, name, whole), compute)
            if reply.export is not None:
                unless_streamed.pop_all()
                return self._streamed(request, access, reply, name, coding, slot or self._exports.take(access))
        if matches_any(request.headers.getlist("if-none-match"), reply.headers["ETag"]):
            return replace(reply, body=b"", status=304)
        return _compress(request, reply)

    def _preferred_format(self, request: Request) -> str:
        accept = ", ".join(request.headers.getlist("accept"))
        name = preferred_format(accept, tuple(formats.MEDIA_TYPES.items()))
        if name is None:
            offers = ", ".join(media_type.partition(";")[0] for media_type in formats.MEDIA_TYPES.values())
            raise Problem(
                406, "not-acceptable", f"Accept allows none of {offers}; retry with one of them, or with format="
            )
        return name

    def _export(self, question: Question, name: str) -> HttpReply:
        started = export_stretches.begin_export(question, self.router.answer)
        if started.fits_a_page:
            return self._reply(started.first, name)
        headers = {
            "Cache-Control": _REVALIDATED,
            "Vary": _VARY,
            "X-Adclick-Finality": started.finality,
            "X-Adclick-Warnings": formats.encode_warnings(started.warnings),
            "Content-Disposition": _file_name(question, name),
            **_described(started.first, started.total),
            **({"X-Adclick-Answer-Id": started.id} if started.id else {}),
        }
        return HttpReply(b"", formats.MEDIA_TYPES[name], headers, started.rows_read, export=started)

    def _streamed(
        self, request: Request, access: Access, reply: HttpReply, name: str, coding: str, slot: Slot
    ) -> HttpReply:
        assert reply.export is not None
        headers = reply.headers if coding == IDENTITY else {**reply.headers, "Content-Encoding": coding}
        respond = partial(
            self._exports.respond,
            request,
            access,
            reply.export,
            formats.STREAMED[name],
            coding,
            self.router.answer,
            slot,
        )
        return replace(reply, headers=headers, stream=respond)

    def _page(self, question: Question, name: str) -> HttpReply:
        return self._reply(self.router.answer(question), name)

    def _reply(self, answer: Answer, name: str) -> HttpReply:
        rows = formats.encode_rows(answer, name)
        headers = {
            # Two answers with the same rows are the same, however long they took.
            "ETag": f'W/"{_digest(answer, rows)}"',
            # Numbers may be settled, and names change.
            "Cache-Control": _A_MINUTE if answer.settled and not answer.question.names else _REVALIDATED,
            "Vary": _VARY,
            "X-Adclick-Answer-Id": answer.id,
        }
        media_type = formats.MEDIA_TYPES[name]
        if name == "json":
            body = formats.encode_document(answer, rows, self._settings.currency)
            return HttpReply(body, media_type, headers, answer.rows_read)
        headers |= {
            "X-Adclick-Finality": answer.finality,
            "X-Adclick-Warnings": formats.encode_warnings(answer.warnings),
            "Content-Disposition": _file_name(answer.question, name),
            **({"X-Adclick-Next-Cursor": answer.next_cursor} if answer.next_cursor else {}),
            **_described(answer, answer.total),
        }
        return HttpReply(rows, media_type, headers, answer.rows_read)

    def changes(self, request: Request, access: Access) -> HttpReply:
        """Cells that were corrected or reconciled."""
        parameters, signer = request.query_params.multi_items(), self.router.signer
        question = parse_changes_question(parameters, self._now(), access.rows, signer)
        document = self.router.guards["clickhouse"].call(lambda: self._changes.answer(question, signer))
        return _compress(request, HttpReply(msgspec.json.encode(document), rows_read=document["rows"]))

    def pipeline(self, _request: Request, access: Access) -> HttpReply:
        """Lag, watermark and level; for a tenant, only how fresh its numbers are."""
        state = self._pipeline.read()
        visible = state if access.admin else {name: state[name] for name in _PUBLIC_STATE}
        return HttpReply(msgspec.json.encode(visible))

    def ledger(self, request: Request, access: Access) -> HttpReply:
        """Why a reconciled day differs from what the stream had counted."""
        date, parameters, signer = request.path_params["date"], request.query_params.multi_items(), self.router.signer
        question = parse_ledger_question(date, parameters, access.rows, signer)
        document = self.router.guards["clickhouse"].call(lambda: self._ledger.answer(question, signer))
        if document is None:
            raise Problem(404, "not-reconciled", f"{question.date} has not been reconciled yet")
        return _compress(request, HttpReply(msgspec.json.encode(document), rows_read=document["rows"]))


def create_app(
    settings: Settings, now: Callable[[], int] = now_ms, monotonic: Callable[[], float] = time.monotonic,
    folder: Path | None = None,
) -> Edge:  # fmt: skip
    """The ASGI application of one query process. Clocks and folder as for `Api`."""
    metrics, tracing = Metrics(settings), Tracing(settings.trace_collector)

    def observe(tier: str, outcome: str, seconds: float) -> None:
        metrics.tier_read(tier, outcome, seconds)
        tracing.tier_read(tier, outcome, seconds)

    api = Api(settings, observe, now, monotonic, folder)

    @asynccontextmanager
    async def serving(_: FastAPI) -> AsyncIterator[None]:
        # Each waits for a store now and then; more of them would mostly wait for each other.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "answers"))
        sys.setswitchinterval(_SWITCH_S)
        await asyncio.to_thread(api.router.warm_up)
        api.uses.start()
        yield
        await asyncio.to_thread(api.uses.stop)
        await asyncio.to_thread(tracing.close)

    # FastAPI's own documentation page loads its script from another host.
    app = FastAPIOffline(
        docs_url="/docs", redoc_url=None, static_url="/docs/static", lifespan=serving, redirect_slashes=False,
        title="adclick", version="1", description="Exact ad-click numbers: minutes, hours and days, and how final each is.",
    )  # fmt: skip
    _add_problem_handlers(app)
    direct = _add_data_routes(app, api)
    _add_operational_routes(app, api, settings, metrics)
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        """With the authentication, which FastAPI does not know of."""
        described = describe()
        described.setdefault("components", {})["securitySchemes"] = document.SECURITY
        for path, operations in described["paths"].items():
            for operation in operations.values():
                operation["security"] = [{"key": []}] if path.startswith("/v1") else []
        return described

    app.openapi = openapi  # type: ignore[method-assign]
    return Edge(
        app, direct, answered=metrics.answered, traced=tracing, log=settings.access_log == "on",
        tls=settings.http.startswith("https"), origins=settings.origins,
    )  # fmt: skip


def _add_problem_handlers(app: FastAPI) -> None:
    async def respond(_: Request, error: Exception) -> Response:
        return problem_of(error).response()

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, respond)


def _add_data_routes(app: FastAPI, api: Api) -> dict[str, Endpoint]:
    """The routes under /v1, each a handler behind the gate. Returns those that the edge may call directly: those of a fixed path."""
    routes = Routes(app.add_api_route, api.gate)
    route = routes.add

    route("/v1/metrics", api.metrics, "Numbers of campaigns, by time and dimension", document.METRICS, "metrics")
    route(
        "/v1/metrics/changes",
        api.changes,
        "Closed cells that were corrected or reconciled since: from, to, and why",
        document.CHANGES,
        "changes",
    )
    route(
        "/v1/pipeline",
        api.pipeline,
        "Lag, watermark and overload level; rates and processes for admin keys",
        [],
        "pipeline",
        waits=True,
    )
    route(
        "/v1/reconciliations", api.bills.reconciliations, "The nightly runs, newest first, with drift, shown and billed",
        document.RUNS, "runs",
    )  # fmt: skip
    route(
        "/v1/reconciliations/{date}/causes", api.bills.causes, "How a day's bill follows from what the stream had shown",
        document.CAUSES, "causes",
    )  # fmt: skip
    route(
        "/v1/reconciliations/{date}/ledger", api.ledger, "Why a reconciled day differs from what the stream had counted",
        document.LEDGER, "ledger",
    )  # fmt: skip

    route(
        "/v1/statements",
        api.bills.statements,
        "What an advertiser is billed for a month",
        document.STATEMENTS,
        "statement",
    )
    route(
        "/v1/budgets", api.budgets.list, "What campaigns have spent of their budgets, and when the rest will be gone",
        document.BUDGETS_OF, "budgets",
    )  # fmt: skip

    route(
        "/v1/reconciliations", api.bills.start_run, "Start a nightly run; with an admin key", [], "started", method="POST",
        admin=True, whole=True, waits=True, body=document_bills.RUN_REQUEST,
    )  # fmt: skip
    route(
        "/v1/dead-letters", api.dead_letters.list, "Rejected events, newest first, and how many by hour and reason; with an admin key",
        document.DEAD_LETTERS, "letters", admin=True, whole=True, waits=True,
    )  # fmt: skip
    route(
        "/v1/dead-letters/replay", api.dead_letters.replay, "Send rejected events again, edited; with an admin key", [],
        "replay", method="POST", admin=True, whole=True, waits=True, body=document_bills.REPLAY_REQUEST,
    )  # fmt: skip

    for collection, kind in COLLECTIONS.items():
        handlers, entry = api.directory.handlers(kind), f"/v1/{collection}/{{id}}"
        listed, one, answers = document.SEARCHES[kind], [document.PATH_ID], f"{kind} entry"
        route(f"/v1/{collection}", handlers["list"], f"{collection.capitalize()} by name", listed, f"{kind} list")
        route(entry, handlers["get"], f"One of the {collection}", one, answers)
        route(
            entry, handlers["put"], f"Write one of the {collection}, whole; with an admin key", one, answers, method="PUT",
            admin=True, whole=True, waits=True, body=document.ENTRY_BODIES[kind],
        )  # fmt: skip
        route(
            entry, handlers["delete"], f"Delete one of the {collection}; with an admin key", one, f"{kind} deleted",
            method="DELETE", admin=True, whole=True, waits=True,
        )  # fmt: skip
    route("/v1/access", api.credentials.access, "What the sent key or token allows", [], "access")
    route(
        "/v1/tokens", api.credentials.issue_token, "Buy a short-lived token, for a browser", [], "issued", method="POST",
        body=document_credentials.TOKEN_REQUEST,
    )  # fmt: skip
    route("/v1/keys", api.keys.list, "Keys and how much each is used; with an admin key", [], "keys", admin=True)
    route(
        "/v1/keys", api.keys.create, "Make a key; with an admin key", [], "new key", method="POST", admin=True,
        body=document_credentials.KEY_REQUEST,
    )  # fmt: skip
    of_key = [document_credentials.KEY_ID]
    route(
        "/v1/keys/{id}", api.keys.revoke, "Revoke a key; with an admin key", of_key, "key", method="DELETE", admin=True
    )
    route(
        "/v1/keys/{id}/rotate", api.keys.rotate, "Give a key a new secret; with an admin key", of_key, "rotated key",
        method="POST", admin=True, body=document_credentials.ROTATE_REQUEST,
    )  # fmt: skip
    route(
        "/v1/audit",
        api.keys.audit,
        "Changes of keys and of the directory; with an admin key",
        document.AUDITED,
        "audit",
        admin=True,
        whole=True,
    )

    async def stream(request: Request) -> Response:
        access, allowance = await asyncio.to_thread(api.gate.enter, request)

        def read_rows() -> LiveRows:
            current = api.gate.authenticate(request)
            question = api.question(request, current)

            def answer() -> Answer:
                answer = api.router.answer(question)
                api.gate.charge(current, answer.rows_read)
                return answer

            return api.live.read(question, answer)

        slot = api.live.take(access)
        try:
            # A bad question is answered with a problem document, not with a stream.
            await asyncio.to_thread(read_rows)
        except BaseException:
            slot.release()
            raise
        return api.live.respond(request, slot, read_rows, allowance.headers())

    app.add_api_route(
        "/v1/stream", stream, summary="Live rows of a query, as server-sent events", response_model=None,
        response_class=Response, responses=document.RESPONSES["live"], openapi_extra={"parameters": document.LIVE},
    )  # fmt: skip
    return routes.direct


def _add_operational_routes(app: FastAPI, api: Api, settings: Settings, metrics: Metrics) -> None:
    """The routes for operators, and the dashboard."""

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
        missing = find_unready(settings)
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

    add_pages(app)


def _digest(answer: Answer, rows: bytes) -> str:
    digest = hashlib.sha256(rows)
    beside = sorted(_described(answer, answer.total).items())
    digest.update(repr((answer.next_cursor, answer.finality, answer.warnings, answer.id, beside)).encode())
    return digest.hexdigest()[:24]


def _described(answer: Answer, total: Page | None) -> dict[str, str]:
    """Headers with what is beside the rows of an answer, and has no place in formats of rows alone."""
    headers = {} if total is None else {"X-Adclick-Totals": msgspec.json.encode(total.amounts()).decode()}
    if answer.part is not None:
        headers["X-Adclick-Comparison"] = msgspec.json.encode(formats.describe_comparison(answer)).decode()
    return headers


def _file_name(question: Question, name: str) -> str:
    """A Content-Disposition whose file name has the grain and the range, so that exports do not overwrite each other."""
    dates = "_".join(iso(ms)[:16].replace(":", "") for ms in (question.start_ms, question.end_ms))
    return f'attachment; filename="adclick_{question.grain}_{dates}.{name}"'


def _coding(request: Request, *, small: bool) -> str:
    """The content coding that the client prefers. Raises Problem (406)."""
    values = request.headers.getlist("accept-encoding")
    coding = preferred_coding(", ".join(values) if values else None, small=small)
    if coding is None:
        offers = ", ".join((*CODINGS, IDENTITY))
        raise Problem(406, "not-acceptable", f"Accept-Encoding allows none of {offers}; retry with one of them")
    return coding


def _compress(request: Request, reply: HttpReply) -> HttpReply:
    """The reply in the coding that the client prefers."""
    reply = replace(reply, headers=vary(reply.headers, "Accept-Encoding", "Authorization"))
    coding = _coding(request, small=len(reply.body) < _COMPRESSED_BYTES)
    if coding == IDENTITY:
        return reply
    compressed = getattr(cramjam, coding).compress(reply.body, level=1)
    return replace(reply, body=bytes(compressed), headers={**reply.headers, "Content-Encoding": coding})


def _cached_bytes(reply: HttpReply) -> int | None:
    """Memory of a reply; None for an export, which is streamed to one client."""
    return None if reply.export is not None else len(reply.body)
