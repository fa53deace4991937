"""Webhooks over HTTP: for admin keys, and for an advertiser's own key within its advertisers. Tokens and links change none."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from typing import Annotated, Literal

import msgspec
from starlette.requests import Request

from infra.clickhouse.alerts import NOBODY
from infra.clickhouse.client import ClickHouse
from infra.clock import iso
from infra.redis.client import Redis
from infra.settings import Settings
from infra.structs import decodable
from ingest.events import MAX_INT
from query.api.access import HttpReply
from query.api.bodies import decode_body
from query.api.keys import RotateRequest
from query.api.problems import Problem
from query.bad_question import BadQuestion
from query.keys import Access
from query.parameters import collect_parameters, parse_id, parse_limit
from query.row_scope import ALL_ROWS
from query.webhooks.deliveries import MUTED, REQUESTED, Attempt, DeliveryStore, delivery_id
from query.webhooks.editor import PendingTest, TooManyWebhooks, WebhookEditor
from query.webhooks.payloads import TEST_TYPE
from query.webhooks.signature import new_secret
from query.webhooks.targets import BadTarget, TargetPolicy
from query.webhooks.webhooks import MOST_OF_AN_ADVERTISER, Webhook, WebhookStore

MAX_DESCRIPTION_CHARACTERS, MAX_KINDS = 200, 50
KIND_PATTERN = "^[a-z][a-z-]{0,49}$"
_LISTED = "100"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_Description = Annotated[str, msgspec.Meta(max_length=MAX_DESCRIPTION_CHARACTERS)]
_Kinds = Annotated[list[Annotated[str, msgspec.Meta(pattern=KIND_PATTERN)]], msgspec.Meta(max_length=MAX_KINDS)]
_Format = Literal["standard", "alertmanager"]


@decodable
class WebhookRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A webhook to be made. `advertiser_id` null: of the operator's alerts. `kinds`: of alerts; empty: all."""

    url: str
    advertiser_id: Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)] | None = None
    description: _Description = ""
    kinds: _Kinds = []
    format: _Format = "standard"


@decodable
class WebhookChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is to change of a webhook; what is left out stays."""

    url: str | msgspec.UnsetType = msgspec.UNSET
    description: _Description | msgspec.UnsetType = msgspec.UNSET
    kinds: _Kinds | msgspec.UnsetType = msgspec.UNSET
    format: _Format | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET


class Webhooks:
    """Handlers, called once the gate has let a key in. Thread-safe."""

    def __init__(self, client: ClickHouse, redis: Redis, settings: Settings, now: Callable[[], int]) -> None:
        """`now`: epoch ms."""
        self._webhooks, self._deliveries, self._now = WebhookStore(client), DeliveryStore(client), now
        self._editor = WebhookEditor(self._webhooks, self._deliveries, redis, settings.key_prefix)
        self._policy = TargetPolicy.of(settings.webhook_allowed_networks, settings.webhook_ports)

    def list(self, request: Request, access: Access) -> HttpReply:
        """The webhooks that the key may change, without their secrets."""
        values, _ = collect_parameters(request.query_params.multi_items(), ("advertiser_id",))
        wanted = parse_id("advertiser_id", values["advertiser_id"]) if "advertiser_id" in values else None
        if wanted is not None:
            _refuse(access, wanted)
        data = [
            _describe(webhook)
            for webhook in self._webhooks.all()
            if wanted in (None, webhook.advertiser_id) and not _why_refused(access, webhook.advertiser_id)
        ]
        return _reply({"data": data, "rows": len(data)}, rows=len(data))

    def get(self, request: Request, access: Access) -> HttpReply:
        """One of them."""
        return _reply(_describe(self._find(request.path_params["id"], access)))

    def create(self, request: Request, access: Access) -> HttpReply:
        """A new webhook, with its secret, which is shown once."""
        wanted, now_ms = decode_body(request, WebhookRequest), self._now()
        advertiser = wanted.advertiser_id or NOBODY
        _refuse(access, advertiser)
        self._check_url(wanted.url)
        _check_description(wanted.description)
        webhook = Webhook(
            f"wh_{secrets.token_hex(8)}", advertiser, wanted.url, wanted.description.strip(), sorted(set(wanted.kinds)), wanted.format,
            new_secret(), "", 0, True, "", now_ms, self._deliveries.now_ms(), False, 1,
        )  # fmt: skip
        try:
            self._editor.create(webhook, _actor(access), now_ms)
        except TooManyWebhooks:
            detail = f"there are {MOST_OF_AN_ADVERTISER} already; delete one first"
            raise Problem(409, "too-many-webhooks", detail) from None
        return _reply(_describe(webhook) | {"secret": webhook.secret}, status=201)

    def change(self, request: Request, access: Access) -> HttpReply:
        """Change some fields of a webhook. One that is enabled again gets the alerts from then on."""
        wanted, webhook = decode_body(request, WebhookChange), self._found(request, access)
        fields = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not msgspec.UNSET}
        if "url" in fields:
            self._check_url(fields["url"])
        if "description" in fields:
            _check_description(fields["description"])
            fields["description"] = fields["description"].strip()
        if "kinds" in fields:
            fields["kinds"] = sorted(set(fields["kinds"]))

        def edit(former: Webhook) -> Webhook:
            more: dict[str, object] = {}
            if fields.get("enabled", former.enabled) != former.enabled:
                more = {"disabled_why": ""} | ({} if former.enabled else {"since_ms": self._deliveries.now_ms()})
            return msgspec.structs.replace(former, **fields, **more)

        return _reply(_describe(self._change(webhook, edit, "change", access)))

    def rotate(self, request: Request, access: Access) -> HttpReply:
        """A new secret, shown once. Messages are signed with the former one, too, for `grace_s` more."""
        wanted, webhook = decode_body(request, RotateRequest), self._found(request, access)

        def edit(former: Webhook) -> Webhook:
            return msgspec.structs.replace(
                former, secret=new_secret(), former_secret=former.secret if wanted.grace_s else "",
                former_until_ms=self._now() + wanted.grace_s * 1000 if wanted.grace_s else 0,
            )  # fmt: skip

        webhook = self._change(webhook, edit, "rotate", access)
        return _reply(_describe(webhook) | {"secret": webhook.secret})

    def delete(self, request: Request, access: Access) -> HttpReply:
        """Delete a webhook; what it has not got is not sent any more."""

        def edit(former: Webhook) -> Webhook:
            return msgspec.structs.replace(former, deleted=True, enabled=False, secret="", former_secret="")

        return _reply(_describe(self._change(self._found(request, access), edit, "delete", access)))

    def test(self, request: Request, access: Access) -> HttpReply:
        """Have the worker send a test message, once. A webhook has one test at a time."""
        webhook, message = self._found(request, access), f"test_{secrets.token_hex(10)}"
        attempt = self._dated(webhook, Attempt(
            delivery_id(webhook.id, message), webhook.id, message, message, 0, TEST_TYPE, 1, REQUESTED, 0, 0, "", "", 0, 0, 0,
        ))  # fmt: skip
        try:
            self._editor.request_test(webhook, attempt)
        except PendingTest:
            detail = f"a test is under way; wait until GET /v1/webhooks/{webhook.id}/deliveries has its outcome"
            raise Problem(409, "test-pending", detail) from None
        return _reply(_describe_attempt(attempt), status=202)

    def deliveries(self, request: Request, access: Access) -> HttpReply:
        """Attempts to deliver to a webhook, and requests to do so, the newest first."""
        values, _ = collect_parameters(request.query_params.multi_items(), ("limit",))
        limit = parse_limit({"limit": values.get("limit", _LISTED)})
        webhook = self._found(request, access)
        data = [_describe_attempt(attempt) for attempt in self._deliveries.of_webhook(webhook.id, limit)]
        return _reply({"data": data, "rows": len(data)}, rows=len(data))

    def replay(self, request: Request, access: Access) -> HttpReply:
        """Have the worker send a message again, under the same id."""
        id_ = request.path_params["id"]
        attempt = self._deliveries.latest(id_)
        if attempt is None:
            raise Problem(404, "not-found", f"no such delivery: {id_[:40]}; GET /v1/webhooks/ID/deliveries lists them")
        webhook = self._find(attempt.webhook_id, access)
        if attempt.type == TEST_TYPE:
            raise Problem(409, "is-a-test", f"this was a test; POST /v1/webhooks/{webhook.id}/test sends another one")
        attempt = self._dated(webhook, msgspec.structs.replace(
            attempt, attempt=attempt.attempt + 1, outcome=REQUESTED, status=0, elapsed_ms=0, reply="", problem="", next_ms=0
        ))  # fmt: skip
        self._deliveries.add([attempt])
        return _reply(_describe_attempt(attempt), status=202)

    def _dated(self, webhook: Webhook, attempt: Attempt) -> Attempt:
        """A request for a message, as of now. Raises Problem where the webhook is disabled."""
        if not webhook.enabled:
            raise Problem(409, "webhook-disabled", "the webhook is disabled; enable it first")
        now_ms = self._deliveries.now_ms()
        return msgspec.structs.replace(attempt, began_ms=now_ms, at_ms=now_ms)

    def _change(self, webhook: Webhook, edit: Callable[[Webhook], Webhook], action: str, access: Access) -> Webhook:
        changed = self._editor.change(webhook, edit, action, _actor(access), self._now())
        if changed is None:
            raise _no_webhook(webhook.id)
        return changed

    def _found(self, request: Request, access: Access) -> Webhook:
        return self._find(request.path_params["id"], access)

    def _find(self, id_: str, access: Access) -> Webhook:
        """One that the key may change. Raises Problem: 403 for tokens and links, 404 for one of others, too."""
        _refuse_bearer(access)
        webhook = self._webhooks.find(id_)
        if webhook is None or _why_refused(access, webhook.advertiser_id):
            raise _no_webhook(id_)
        return webhook

    def _check_url(self, url: str) -> None:
        try:
            self._policy.parse(url)
        except BadTarget as error:
            raise BadQuestion("url", f"url: {error}") from None


def _no_webhook(id_: str) -> Problem:
    return Problem(404, "not-found", f"no such webhook: {id_[:40]}; GET /v1/webhooks lists them")


def _refuse(access: Access, advertiser: int) -> None:
    """Raise Problem (403) where the key may not change webhooks of an advertiser; 0: of the operator."""
    _refuse_bearer(access)
    if why := _why_refused(access, advertiser):
        raise Problem(403, "forbidden", why, "advertiser_id")


def _refuse_bearer(access: Access) -> None:
    if access.token or access.share:
        raise Problem(403, "forbidden", "webhooks are changed with a key itself, not with a token or the key of a link")


def _why_refused(access: Access, advertiser: int) -> str:
    """Why a key may not change webhooks of an advertiser; empty where it may."""
    if access.token or access.share:
        return "not with a token"
    if advertiser == NOBODY:
        is_whole = access.admin and access.rows == ALL_ROWS
        return "" if is_whole else "alerts of the operator need an admin key for all advertisers; or give advertiser_id"
    if not access.rows.sees_advertiser(advertiser):
        return f"this key may not see advertiser {advertiser}"
    if access.campaigns is not None:
        return "this key may see only some campaigns, and alerts are about all of them; use another one"
    if not access.admin and access.advertisers is None:
        return "a key for all advertisers changes webhooks only if it is an admin key"
    return ""


def _check_description(text: str) -> None:
    if _CONTROL.search(text):
        raise BadQuestion("description", "description must have no control characters")


def _describe(webhook: Webhook) -> dict[str, object]:
    return {
        "id": webhook.id,
        "advertiser_id": webhook.advertiser_id or None,
        "url": webhook.url,
        "description": webhook.description,
        "kinds": webhook.kinds,
        "format": webhook.format,
        "enabled": webhook.enabled,
        "disabled_why": webhook.disabled_why or None,
        "created_at": iso(webhook.created_ms // 1000 * 1000),
        "former_secret_until": iso(webhook.former_until_ms // 1000 * 1000) if webhook.former_until_ms else None,
    }


def _describe_attempt(attempt: Attempt) -> dict[str, object]:
    return {
        "id": attempt.id,
        "webhook_id": attempt.webhook_id,
        "message_id": attempt.message_id,
        "alert_id": attempt.alert_id if attempt.alert_version else None,
        "alert_version": attempt.alert_version or None,
        "type": attempt.type,
        "attempt": attempt.attempt,
        "at": iso(attempt.at_ms),
        "outcome": attempt.outcome,
        "status": attempt.status or None,
        "elapsed_ms": None if attempt.outcome in (REQUESTED, MUTED) else attempt.elapsed_ms,
        "reply": attempt.reply,
        "problem": attempt.problem or None,
        "next_at": iso(attempt.next_ms) if attempt.next_ms else None,
    }


def _actor(access: Access) -> str:
    return f"key {access.key}"


def _reply(document: dict[str, object], *, status: int = 200, rows: int = 0) -> HttpReply:
    return HttpReply(msgspec.json.encode(document), status=status, rows_read=rows)
