"""Alerts over HTTP: lists, one alert with its history, acknowledging, and mutes."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
from starlette.requests import Request

from infra.structs import decodable
from ingest.events import MAX_INT
from query.alerts.actions import AlertActions, NoSuchMute
from query.alerts.mutes import MuteRequest, parse_mute
from query.alerts.positions import StreamPosition
from query.alerts.questions import AlertFilter, parse_alert_filter, parse_alerts_question
from query.alerts.reader import AlertReader, NoSuchAlert, StreamStep
from query.alerts.scope import AlertScope
from query.alerts.store import AlertStore
from query.alerts.summary import AlertSummary
from query.api.access import HttpReply
from query.api.bills import encode
from query.api.bodies import decode_body
from query.api.problems import Problem
from query.bad_question import BadQuestion
from query.circuit import Guard
from query.keys import Access
from query.parameters import collect_parameters, parse_id
from query.reply_cache import ReplyCache
from query.signing import Signer

LAST_EVENT_ID = "last-event-id"
# Summaries are of whole days that are over; only mutes and withdrawals still change them.
_SUMMARY_FRESH_S, _SUMMARY_BYTES = 60.0, 1_000


@decodable
class AcknowledgeRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`version`: what was seen of the alert; null: the current one."""

    version: int | None = None


class AlertsApi:
    """The handlers, called once the gate has let a request in. Thread-safe."""

    def __init__(self, store: AlertStore, signer: Signer, guard: Guard, now: Callable[[], int]) -> None:
        """`guard`: of ClickHouse. `now`: epoch ms."""
        self._reader = AlertReader(store, signer)
        self._actions = AlertActions(store, self._reader, now)
        self._signer, self._guard, self._now = signer, guard, now
        # Its statements read 28 days: where they are too slow, counts are still read.
        self._summary_guard = Guard("clickhouse-summaries")
        self._summaries: ReplyCache[AlertSummary] = ReplyCache(lambda _: _SUMMARY_BYTES, _SUMMARY_FRESH_S)

    def list(self, request: Request, access: Access) -> HttpReply:
        """A page of alerts, the newest first."""
        now_ms = self._now()
        question = parse_alerts_question(request.query_params.multi_items(), now_ms, scope_of(access), self._signer)
        document = self._guard.call(lambda: self._reader.page(question, now_ms))
        return HttpReply(encode(document), rows_read=document["rows"])

    def summary(self, request: Request, access: Access) -> HttpReply:
        """How many of the last alerts of campaigns were false, as of a minute ago at the earliest."""
        values, _ = collect_parameters(request.query_params.multi_items(), ("advertiser_id",))
        advertiser = parse_id("advertiser_id", values["advertiser_id"]) if "advertiser_id" in values else None
        scope = scope_of(access)
        scope.refuse_foreign(advertiser)

        def read() -> AlertSummary:
            return self._summary_guard.call(lambda: self._reader.summary(scope, advertiser, self._now()))

        summary = self._summaries.get((scope, advertiser), read)
        return HttpReply(encode(summary.document()), rows_read=summary.total.alerts)

    def get(self, request: Request, access: Access) -> HttpReply:
        """An alert with all its versions."""
        collect_parameters(request.query_params.multi_items(), ())
        id_ = request.path_params["id"]
        try:
            return HttpReply(encode(self._guard.call(lambda: self._reader.show(id_, scope_of(access), self._now()))))
        except NoSuchAlert:
            raise _unknown_alert(id_) from None

    def acknowledge(self, request: Request, access: Access) -> HttpReply:
        """Acknowledge an alert."""
        _refuse_readers(access)
        id_, wanted = request.path_params["id"], decode_body(request, AcknowledgeRequest)
        if wanted.version is not None and not 0 <= wanted.version <= MAX_INT:
            raise BadQuestion("version", f"version must be an integer from 0 to 2^63 - 1, not {wanted.version}")
        try:
            document = self._actions.acknowledge(id_, wanted.version, scope_of(access), f"key {access.key}")
        except NoSuchAlert:
            raise _unknown_alert(id_) from None
        return HttpReply(encode(document))

    def mutes(self, request: Request, access: Access) -> HttpReply:
        """The mutes that have not ended."""
        values, _ = collect_parameters(request.query_params.multi_items(), ("advertiser_id",))
        advertiser = parse_id("advertiser_id", values["advertiser_id"]) if "advertiser_id" in values else None
        scope = scope_of(access)
        scope.refuse_foreign(advertiser)
        data = [mute.document() for mute in self._guard.call(lambda: self._actions.mutes(scope, advertiser))]
        return HttpReply(encode({"data": data, "rows": len(data)}), rows_read=len(data))

    def put_mute(self, request: Request, access: Access) -> HttpReply:
        """Mute alerts until a moment."""
        _refuse_readers(access)
        subject, until_ms = parse_mute(decode_body(request, MuteRequest), self._now(), scope_of(access))
        return HttpReply(encode(self._actions.mute(subject, until_ms, f"key {access.key}").document()))

    def delete_mute(self, request: Request, access: Access) -> HttpReply:
        """End a mute."""
        _refuse_readers(access)
        id_ = request.path_params["id"]
        try:
            mute = self._actions.unmute(id_, scope_of(access), f"key {access.key}")
        except NoSuchMute:
            detail = f"no such mute: {id_[:40]}; GET /v1/mutes lists those that this key may see"
            raise Problem(404, "not-found", detail) from None
        return HttpReply(encode(mute.document()))

    # -- the stream ---------------------------------------------------------------------------------------------

    def filter_of(self, request: Request, access: Access) -> AlertFilter:
        """Which alerts a stream is about, within what its key may see at this moment. Raises BadQuestion."""
        return parse_alert_filter(request.query_params.multi_items(), scope_of(access))

    def begin(self, request: Request, access: Access) -> StreamPosition:
        """From where a stream goes on: where its client was, or now. Raises BadQuestion."""
        filter_, text = self.filter_of(request, access), request.headers.get(LAST_EVENT_ID, "")
        if not text:
            return self._guard.call(lambda: self._reader.begin(filter_))
        try:
            return self._reader.resume(text)
        except BadQuestion:
            detail = (
                "Last-Event-ID was not issued by this installation; reconnect without it, and read GET /v1/alerts again"
            )
            raise BadQuestion("Last-Event-ID", detail) from None

    def next(self, position: StreamPosition, filter_: AlertFilter) -> StreamStep:
        """What the stream sends next."""
        return self._guard.call(lambda: self._reader.next(position, filter_, self._now()))

    def encode(self, position: StreamPosition) -> str:
        """A position as the id of an event."""
        return self._reader.encode(position)


def scope_of(access: Access) -> AlertScope:
    """The alerts that a key or token may see."""
    return AlertScope.of(access.rows, admin=access.admin)


def _refuse_readers(access: Access) -> None:
    if not access.may_act_on_alerts:
        what = "a shared link changes nothing" if access.share else "a token without the scope admin changes nothing"
        raise Problem(403, "forbidden", f"{what}; send a key that is no link")


def _unknown_alert(id_: str) -> Problem:
    return Problem(404, "not-found", f"no such alert: {id_[:40]}; GET /v1/alerts lists those that this key may see")
