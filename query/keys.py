"""Keys of the HTTP interface: who may see what, how often, until when.

A key is shown once, as `adk_ID_SECRET`; ClickHouse has its SHA-256 (the secret has 256 random bits, so no slower hash is
needed). Every change of a key is in the audit log. Tokens that keys buy are stored nowhere: query/tokens.py.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
import secrets
from dataclasses import dataclass, field, replace

import msgspec

from infra.clickhouse.borders import table_id
from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.errors import UserError
from infra.structs import decodable
from query.row_scope import RowScope
from query.tokens import Claims

PREFIX = "adk_"
ROOT = "root"
"""The id of the installation's own key, which is no row of the table."""


@dataclass(frozen=True)
class Access:
    """What a key, or a token of it, allows. `advertisers`, `campaigns`: those whose rows may be seen, None for all. `rate`: requests a
    second, in the long run, where a thousand rows read count as one; `burst`: at once. None: without limit. `expires_ms`: 0 for
    never."""

    key: str
    advertisers: frozenset[int] | None
    admin: bool
    rate: float | None = None
    burst: float | None = None
    campaigns: frozenset[int] | None = None
    name: str = ""
    expires_ms: int = 0
    token: str = ""
    """The id of the token; empty where the key itself was sent."""
    origin: str = ""
    """The only origin whose pages may use the token; empty: any."""
    digest: str = field(default="", repr=False)
    """Of the secret that was sent, with which tokens can be bought; empty for a token."""
    share: bool = False
    """Whether it is the key of a link to the dashboard, or a token of it."""

    @property
    def rows(self) -> RowScope:
        """The rows that may be seen."""
        return RowScope(self.advertisers, self.campaigns)

    @property
    def scopes(self) -> tuple[str, ...]:
        """What may be done, as the API names it."""
        return ("read", "admin") if self.admin else ("read",)

    @property
    def may_act_on_alerts(self) -> bool:
        """Whether alerts may be acknowledged and muted: with a key, or a token that has the scope admin; not by a shared link."""
        return not self.share and (self.admin or not self.token)

    def narrowed(self, claims: Claims) -> Access:
        """What a token of this key allows: never more than the key."""
        rows = self.rows.within(RowScope(_ids(claims.advertisers), _ids(claims.campaigns)))
        expires_ms = claims.exp * 1000
        return replace(
            self, advertisers=rows.advertisers, campaigns=rows.campaigns, admin=self.admin and "admin" in claims.scopes,
            expires_ms=min(expires_ms, self.expires_ms or expires_ms), token=claims.jti, origin=claims.origin, digest="",
        )  # fmt: skip


@decodable
class Key(msgspec.Struct, frozen=True):
    """A row of `api_keys`. Moments are epoch ms, 0 for never."""

    id: str
    name: str
    digest: str
    former_digest: str
    former_until_ms: int
    everybody: bool
    advertisers: list[int]
    admin: bool
    rate: float
    burst: float
    created_ms: int
    expires_ms: int
    revoked_ms: int
    version: int
    every_campaign: bool
    campaigns: list[int]
    share: bool

    @property
    def rows(self) -> RowScope:
        """The rows that the key may see."""
        return RowScope(
            None if self.everybody else frozenset(self.advertisers),
            None if self.every_campaign else frozenset(self.campaigns),
        )

    def state(self, now_ms: int) -> str:
        """active, expired or revoked."""
        if self.revoked_ms:
            return "revoked"
        return "expired" if self.expires_ms and self.expires_ms <= now_ms else "active"

    def opens(self, digest: str, now_ms: int) -> bool:
        """Whether this key is active and a secret of that digest is its own, the present or the former one. Constant time."""
        new = hmac.compare_digest(digest, self.digest)
        former = hmac.compare_digest(digest, self.former_digest or "-" * len(digest)) and now_ms < self.former_until_ms
        return (new or former) and self.state(now_ms) == "active"

    def digests(self, now_ms: int) -> list[str]:
        """The digests of the secrets that open this key now."""
        return [digest for digest in (self.digest, self.former_digest) if digest and self.opens(digest, now_ms)]

    def access(self, digest: str = "") -> Access:
        """What the key allows; `digest`: of the secret that was sent."""
        rows = self.rows
        return Access(
            self.id, rows.advertisers, self.admin, self.rate, self.burst, rows.campaigns, self.name, self.expires_ms, digest=digest,
            share=self.share,
        )  # fmt: skip


_COLUMNS = Key.__struct_fields__


class Keys:
    """The keys of an installation, in ClickHouse. Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self.client = client

    def all(self) -> list[Key]:
        """All keys, newest first."""
        rows = self.client.rows(
            f"SELECT {', '.join(_COLUMNS)} FROM {self.client.database}.api_keys FINAL ORDER BY created_ms DESC"
        )
        return [msgspec.convert(dict(zip(_COLUMNS, row, strict=True)), Key, strict=False) for row in rows]

    def create(
        self,
        name: str,
        advertisers: frozenset[int] | None,
        *,
        admin: bool,
        rate: float,
        burst: float,
        lasts_ms: int | None,
        campaigns: frozenset[int] | None = None,
        share: bool = False,
        actor: str | None = None,
    ) -> tuple[Key, str]:
        """A new key, and its secret, which is stored nowhere. `advertisers`, `campaigns` None: all. `share`: it stands in a link.
        `actor`: who does it, for the audit log; None: the user of this process."""
        id_, now = secrets.token_hex(5), now_ms()
        secret = _new_secret(id_)
        key = Key(
            id_, name, digest_of(secret), "", 0, advertisers is None, sorted(advertisers or ()), admin, rate, burst,
            now, now + lasts_ms if lasts_ms else 0, 0, 1, campaigns is None, sorted(campaigns or ()), share,
        )  # fmt: skip
        visible = "all advertisers" if advertisers is None else str(key.advertisers)
        visible += "" if campaigns is None else f", campaigns {key.campaigns}"
        self._write(key, "share" if share else "create", f"{name}: {visible}", actor)
        return key, secret

    def rotate(self, id_: str, grace_ms: int, actor: str | None = None) -> tuple[Key, str]:
        """A new secret for a key; the former one works for `grace_ms` more. Raises UserError for one that is not active."""
        former = self._active(id_)
        secret, now = _new_secret(id_), now_ms()
        key = msgspec.structs.replace(
            former, digest=digest_of(secret), former_digest=former.digest, former_until_ms=now + grace_ms,
            version=former.version + 1,
        )  # fmt: skip
        self._write(key, "rotate", f"the former one works for {grace_ms // 1000} s more", actor)
        return key, secret

    def revoke(self, id_: str, actor: str | None = None) -> Key:
        """Revoke a key; repeating it changes nothing. Raises UserError for an unknown one."""
        key = self._find(id_)
        if key.revoked_ms:
            return key
        key = msgspec.structs.replace(key, revoked_ms=now_ms(), version=key.version + 1)
        self._write(key, "revoke", "", actor)
        return key

    def installation(self) -> str:
        """The id of this installation: of its table of keys, which no other has. Another one with the same secrets has its own."""
        return table_id(self.client, "api_keys")

    def audit(self, limit: int, *, only_keys: bool = True) -> list[tuple[str, str, str, str, str]]:
        """(at, actor, action, subject, detail), newest first. A subject is the id of a key; of anything else, it is kind/id."""
        which = "WHERE position(subject, '/') = 0" if only_keys else ""
        return [
            (row[0], row[1], row[2], row[3], row[4])
            for row in self.client.rows(
                "SELECT formatDateTime(at, '%Y-%m-%dT%H:%i:%SZ'), actor, action, subject, detail"
                f" FROM {self.client.database}.audit {which} ORDER BY at DESC LIMIT {{limit:UInt32}}",
                {"limit": limit},
            )
        ]

    def _find(self, id_: str) -> Key:
        for key in self.all():
            if key.id == id_:
                return key
        raise UserError(f"no such key: {id_}", hint="adclick keys list shows them")

    def _active(self, id_: str) -> Key:
        key = self._find(id_)
        if (state := key.state(now_ms())) != "active":
            raise UserError(f"key {id_} is {state}", hint="adclick keys create makes another")
        return key

    def _write(self, key: Key, action: str, detail: str, actor: str | None) -> None:
        # The audit log first: no change without an entry.
        self.client.command(
            f"INSERT INTO {self.client.database}.audit SELECT"
            " fromUnixTimestamp64Milli({at:Int64}), {actor:String}, {action:String}, {subject:String}, {detail:String}",
            {"at": now_ms(), "actor": actor or current_user(), "action": action, "subject": key.id, "detail": detail},
        )
        types = {
            str: "String", bool: "UInt8", int: "UInt64", float: "Float64", list: "Array(UInt64)",
        }  # fmt: skip
        values = msgspec.structs.asdict(key)
        shown = ", ".join(f"{{{name}:{types[type(values[name])]}}}" for name in _COLUMNS)
        bound = {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}
        self.client.command(
            f"INSERT INTO {self.client.database}.api_keys ({', '.join(_COLUMNS)}) SELECT {shown}", bound
        )


def current_user() -> str:
    """The user who makes a change, for the audit log; in a container a uid may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _ids(numbers: list[int] | None) -> frozenset[int] | None:
    return None if numbers is None else frozenset(numbers)


def _new_secret(id_: str) -> str:
    return f"{PREFIX}{id_}_{secrets.token_urlsafe(32)}"


def digest_of(secret: str) -> str:
    """The digest that is stored of a key's secret."""
    return hashlib.sha256(secret.encode()).hexdigest()
