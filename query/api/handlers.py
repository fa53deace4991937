"""The handlers of a query process, and what they share: the router, keys and limits, caches."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import cramjam
import msgspec
from starlette.requests import Request

from infra.clickhouse.client import ClickHouse
from infra.clock import iso, now_ms
from infra.redis.client import Redis
from infra.settings import Settings
from query import export_stretches, formats
from query.alerts.store import AlertStore
from query.api.access import Gate, HttpReply
from query.api.alerts import AlertsApi
from query.api.anomalies import Anomalies
from query.api.bills import Bills
from query.api.budgets import Budgets
from query.api.credentials import Credentials
from query.api.dead_letters import DeadLetters
from query.api.directory import DirectoryApi
from query.api.exports import Exports
from query.api.keys import KeyOperations
from query.api.live import Live
from query.api.negotiation import CODINGS, IDENTITY, matches_any, preferred_coding, preferred_format, vary
from query.api.problems import Problem
from query.api.slots import Slot
from query.api.trending import Trending
from query.api.webhooks import Webhooks
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
from query.progress import ProgressWatch
from query.question import BadQuestion, Question, parse_question
from query.reply_cache import ReplyCache
from query.router import BRIEF_TIMEOUT_S, Answer, Observe, Router
from query.status import read_status
from query.tiers.trending_users import HourlyUsers
from query.tokens import TokenSigner
from query.top import parse_top_question
from query.trend_lists import TrendLists
from stream.reach.progress import read_progress

_COMPRESSED_BYTES = 1024
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
        progress: ProgressWatch | None = None,
    ) -> None:
        """`now`: epoch ms, of questions and keys. `monotonic`: seconds, after which keys are read again. `folder`: of the embedded stack
        that the router may be a process of. `progress`: has seen earlier states of the pipeline."""
        self._settings, self._now = settings, now
        self.router = Router(settings, observe)
        redis = Redis(settings.redis_access, timeout_s=1.0)
        clickhouse = ClickHouse.of(settings, timeout_s=settings.query_timeout_s)
        self._changes, self._ledger = ChangesReader(clickhouse, settings.block_partitions), LedgerReader(clickhouse)
        stack = OwnStack(folder)
        self._pipeline = PipelineReader(settings, stack, partial(read_status, progress=progress))
        self.dead_letters = DeadLetters(settings, self.router.signer, now)
        self.bills = Bills(clickhouse, self.router, settings, now, stack)
        self.budgets, self.anomalies = Budgets(self.router, now), Anomalies(self.router, settings, now)
        reach_progress = partial(read_progress, redis, settings.key_prefix, settings.event_partitions)
        guarded = partial(self.router.guards["redis"].call, reach_progress)
        users = HourlyUsers(clickhouse, settings.query_timeout_s, guarded)
        self.trending = Trending(self.router, TrendLists(redis, settings.key_prefix), users, now)
        self.alerts = AlertsApi(AlertStore(clickhouse), self.router.signer, self.router.guards["clickhouse"], now)
        self.webhooks = Webhooks(clickhouse, redis, settings, now)
        limits = RateLimits(redis, self.router.guards["redis"], settings.key_prefix)
        brief = ClickHouse.of(settings, timeout_s=BRIEF_TIMEOUT_S)
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
        # Two: replies of one share locks, and those with users take longer.
        self._replies: dict[bool, ReplyCache[HttpReply]] = (
            {users: ReplyCache(_cached_bytes) for users in (False, True)} if settings.query_cache == "on" else {}
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
            replies = self._replies.get(question.users)
            reply = compute() if replies is None else replies.get((question, name, whole), compute)
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

    def top(self, request: Request, access: Access) -> HttpReply:
        """The groups that have most of a measure."""
        parameters = request.query_params.multi_items()
        question = parse_top_question(
            parameters, self._now(), self.router.retention, access.rows, admin=access.admin
        )  # fmt: skip
        return _compress(request, self._page(question, "json"))

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
    if users := formats.describe_users(answer.question):
        headers["X-Adclick-Users"] = msgspec.json.encode(users).decode()
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
