"""The assembly of a query process: routes, each behind the gate, problem documents, and the edge around them."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline

from infra.clock import now_ms
from infra.errors import Unavailable
from infra.settings import Settings
from query.api import document, document_bills, document_credentials
from query.api.alert_routes import add_alert_routes
from query.api.directory import COLLECTIONS
from query.api.edge import Edge
from query.api.handlers import Api
from query.api.live import LiveRows
from query.api.metrics import Metrics
from query.api.pages import add_pages
from query.api.problems import EXPECTED, Problem, problem_of
from query.api.routes import Routes
from query.api.tracing import Tracing
from query.api.webhook_routes import add_webhook_routes
from query.bad_question import BadQuestion
from query.progress import ProgressWatch
from query.router import Answer
from query.row_scope import ALL_ROWS
from query.status import find_unready

# Threads that answer. Few: they share one interpreter, and each switch costs.
_THREADS = 4
# For how long a thread may keep the interpreter from the others.
_SWITCH_S = 0.0005


def create_app(
    settings: Settings, now: Callable[[], int] = now_ms, monotonic: Callable[[], float] = time.monotonic,
    folder: Path | None = None,
) -> Edge:  # fmt: skip
    """The ASGI application of one query process. Clocks and folder as for `Api`."""
    progress = ProgressWatch(settings)
    metrics, tracing = Metrics(settings, progress), Tracing(settings.trace_collector)

    def observe(tier: str, outcome: str, seconds: float) -> None:
        metrics.tier_read(tier, outcome, seconds)
        tracing.tier_read(tier, outcome, seconds)

    api = Api(settings, observe, now, monotonic, folder, progress)
    api.gate.charged = metrics.key_charged

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
    routes = Routes(app.add_api_route, api.gate)
    _add_data_routes(app, api, routes)
    add_webhook_routes(routes, api.webhooks)
    _add_operational_routes(app, api, settings, metrics, progress)
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
        app, routes.direct, answered=metrics.answered, traced=tracing, log=settings.access_log == "on",
        tls=settings.http.startswith("https"), origins=settings.origins, own_key=settings.api_key.get_secret_value(),
        key_used=metrics.key_used,
    )  # fmt: skip


def _add_problem_handlers(app: FastAPI) -> None:
    async def respond(_: Request, error: Exception) -> Response:
        return problem_of(error).response()

    for kind in (*EXPECTED, Exception):
        app.add_exception_handler(kind, respond)


def _add_data_routes(app: FastAPI, api: Api, routes: Routes) -> None:
    """The routes under /v1, each a handler behind the gate."""
    route = routes.add

    route("/v1/metrics", api.metrics, "Numbers of campaigns, by time and dimension", document.METRICS, "metrics")
    route(
        "/v1/top",
        api.top,
        "The campaigns, ads, publishers or countries that have most of a measure",
        document.TOP,
        "top",
    )
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
        "/v1/anomalies", api.anomalies.list, "What is unusual in the closed hours or minutes of campaigns", document.ANOMALIES_OF,
        "anomalies",
    )  # fmt: skip
    route(
        "/v1/alerts/backtest", api.anomalies.backtest, "Which alerts a policy would have raised on the numbers that are retained",
        document.BACKTEST_OF, "backtest",
    )  # fmt: skip
    route(
        "/v1/trending", api.trending.list, "The campaigns, ads or publishers that have more events than usual, now",
        document.TRENDING_OF, "trending",
    )  # fmt: skip
    route(
        "/v1/budgets", api.budgets.list, "What campaigns have spent of their budgets, and when the rest will be gone",
        document.BUDGETS_OF, "budgets",
    )  # fmt: skip
    add_alert_routes(routes, app.add_api_route, api.gate, api.live, api.alerts)

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
        "Changes of keys, of the directory, of alerts and mutes; with an admin key",
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
            if question.users:
                raise BadQuestion("users", "streams have no users; ask /v1/metrics for them, as often as you need them")

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


def _may_see_keys(api: Api, request: Request) -> bool:
    """Whether the request has an admin key for all advertisers. While keys cannot be read it has none: the other metrics say why."""
    try:
        access = api.gate.authenticate(request)
    except (Problem, Unavailable):
        return False
    return access.admin and access.rows == ALL_ROWS


def _add_operational_routes(
    app: FastAPI, api: Api, settings: Settings, metrics: Metrics, progress: ProgressWatch
) -> None:
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
        missing = find_unready(settings, progress)
        body = {"status": "not ready" if missing else "ready", "missing": missing}
        return JSONResponse(body, 503 if missing else 200)

    @app.get(
        "/metrics", summary="Prometheus metrics of this process and of the pipeline; away from loopback, with an admin key",
        response_model=None, response_class=Response, responses=document.RESPONSES["text"],
    )  # fmt: skip
    def prometheus(request: Request) -> Response:
        if request.client is None or request.client.host not in ("127.0.0.1", "::1"):
            api.gate.enter(request, admin=True)
        by_key = "authorization" in request.headers and _may_see_keys(api, request)
        return Response(metrics.render(by_key=by_key), media_type=metrics.content_type)

    add_pages(app)
