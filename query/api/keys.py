"""Operations on keys, for admin keys: list, create, rotate, revoke, and the audit log. No key makes another that allows more than
itself or lasts longer, and tokens change no key at all."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated

import msgspec
from starlette.requests import Request

from infra.clock import iso
from infra.errors import AdclickError
from infra.structs import decodable
from query.api.access import HttpReply
from query.api.bodies import decode_body
from query.api.problems import Problem
from query.bad_question import BadQuestion
from query.key_use import KeyUse, Use
from query.keyring import Keyring
from query.keys import ROOT, Access, Key, Keys
from query.parameters import collect_parameters, parse_limit
from query.row_scope import RowScope
from query.token_purchase import Ids

MAX_NAME_CHARACTERS = 200
LONGEST_KEY_S, LONGEST_GRACE_S = 3650 * 86_400, 30 * 86_400
RATE, BURST = 50.0, 500.0
"""Of a key that is created without others."""
_AUDITED = "100"


@decodable
class KeyRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A key to be created. Advertisers, campaigns null: all. `expires_in`: seconds; null: never."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_CHARACTERS)]
    advertisers: Ids | None
    campaigns: Ids | None = None
    admin: bool = False
    rate: Annotated[float, msgspec.Meta(ge=0.01, le=1e6)] = RATE
    burst: Annotated[float, msgspec.Meta(ge=1, le=1e7)] = BURST
    expires_in: Annotated[int, msgspec.Meta(ge=1, le=LONGEST_KEY_S)] | None = None


@decodable
class RotateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`grace_s`: for how long the former secret remains valid."""

    grace_s: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_GRACE_S)] = 0


class KeyOperations:
    """Handlers, called once the gate has let an admin key in. Thread-safe."""

    def __init__(self, keys: Keys, keyring: Keyring, uses: KeyUse, now: Callable[[], int]) -> None:
        self._keys, self._keyring, self._uses, self._now = keys, keyring, uses, now

    def list(self, _request: Request, access: Access) -> HttpReply:
        """The keys that see no more than this one, newest first, without their secrets."""
        uses = self._uses.read()
        data = [self._describe(key, uses.get(key.id)) for key in self._keys.all() if not _wider(access, key.rows)]
        return HttpReply(msgspec.json.encode({"data": data, "rows": len(data)}), rows_read=len(data))

    def create(self, request: Request, access: Access) -> HttpReply:
        """A new key, shown once."""
        _refuse_token(access)
        wanted = decode_body(request, KeyRequest)
        if not wanted.name.strip() or re.search(r"[\x00-\x1f\x7f-\x9f]", wanted.name):
            raise BadQuestion("name", "name must have visible characters, and no control characters")
        lasts_ms = None if wanted.expires_in is None else wanted.expires_in * 1000
        rows = RowScope.of(wanted.advertisers, wanted.campaigns)
        _refuse_wider(access, rows, self._now() + lasts_ms if lasts_ms else 0)
        key, secret = self._keys.create(
            wanted.name.strip(), rows.advertisers, admin=wanted.admin, rate=wanted.rate, burst=wanted.burst,
            lasts_ms=lasts_ms, campaigns=rows.campaigns, actor=_actor(access),
        )  # fmt: skip
        return self._changed(key, secret, status=201)

    def rotate(self, request: Request, access: Access) -> HttpReply:
        """A new secret for a key, shown once."""
        _refuse_token(access)
        wanted, key = decode_body(request, RotateRequest), self._find(request)
        if (state := key.state(self._now())) != "active":
            raise Problem(409, "key-not-active", f"key {key.id} is {state}; create another")
        if key.id != access.key:
            _refuse_wider(access, key.rows, key.expires_ms)
        return self._changed(*self._keys.rotate(key.id, wanted.grace_s * 1000, actor=_actor(access)))

    def revoke(self, request: Request, access: Access) -> HttpReply:
        """Revoke a key; repeating it changes nothing."""
        _refuse_token(access)
        key = self._find(request)
        if key.id != access.key:
            _refuse_wider(access, key.rows, access.expires_ms)
        return self._changed(self._keys.revoke(key.id, actor=_actor(access)))

    def audit(self, request: Request, _access: Access) -> HttpReply:
        """Changes of keys, of the directory, of alerts and mutes, newest first."""
        values, _ = collect_parameters(request.query_params.multi_items(), ("limit",))
        limit = parse_limit({"limit": values.get("limit", _AUDITED)})
        names = ("at", "actor", "action", "subject", "detail")
        data = [dict(zip(names, row, strict=True)) for row in self._keys.audit(limit, only_keys=False)]
        return HttpReply(msgspec.json.encode({"data": data, "rows": len(data)}), rows_read=len(data))

    def _find(self, request: Request) -> Key:
        id_ = request.path_params["id"]
        if id_ == ROOT:
            raise Problem(409, "root-key", "the installation's own key is changed by the setting ADCLICK_API_KEY")
        for key in self._keys.all():
            if key.id == id_:
                return key
        raise Problem(404, "not-found", f"no such key: {id_[:40]}; GET /v1/keys lists them")

    def _changed(self, key: Key, secret: str = "", *, status: int = 200) -> HttpReply:
        # Other routers follow within seconds, this one at once.
        self._keyring.expire()
        try:
            use = self._uses.read().get(key.id)
        except AdclickError:
            use = None  # the key is changed, and a secret that is not sent now is lost
        described = self._describe(key, use) | ({"key": secret} if secret else {})
        return HttpReply(msgspec.json.encode(described), status=status)

    def _describe(self, key: Key, use: Use | None) -> dict[str, object]:
        return {
            "id": key.id,
            "name": key.name,
            "advertisers": None if key.everybody else key.advertisers,
            "campaigns": None if key.every_campaign else key.campaigns,
            "admin": key.admin,
            "share": key.share,
            "rate": key.rate,
            "burst": key.burst,
            "created_at": _moment(key.created_ms),
            "expires_at": _moment(key.expires_ms),
            "revoked_at": _moment(key.revoked_ms),
            "state": key.state(self._now()),
            "last_used_at": _moment(use.last_used_ms) if use else None,
            "requests": use.requests if use else 0,
        }


def _refuse_token(access: Access) -> None:
    if access.token:
        raise Problem(403, "forbidden", "a token cannot change keys; send an admin key itself")


def _refuse_wider(access: Access, rows: RowScope, expires_ms: int) -> None:
    """Raises BadQuestion (403), naming what is wider than the key that asks."""
    for name, foreign in _wider(access, rows).items():
        raise BadQuestion(name, f"the key would see {foreign}, which this one may not", 403, "wider-than-key")
    if access.expires_ms and not 0 < expires_ms <= access.expires_ms:
        expires = iso(access.expires_ms // 1000 * 1000)
        raise BadQuestion(
            "expires_in", f"the key would outlive this one, which expires at {expires}", 403, "wider-than-key"
        )


def _wider(access: Access, rows: RowScope) -> dict[str, str]:
    """What some rows have beyond those of a key: the field, and what it is."""
    wider = {}
    for name in ("advertisers", "campaigns"):
        limit, wanted = getattr(access.rows, name), getattr(rows, name)
        if limit is not None and (wanted is None or wanted - limit):
            wider[name] = f"{name[:-1]} {min(wanted - limit)}" if wanted is not None else f"all {name}"
    return wider


def _actor(access: Access) -> str:
    return f"key {access.key}"


def _moment(ms: int) -> str | None:
    return iso(ms // 1000 * 1000) if ms else None
