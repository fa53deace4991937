"""Keys of the HTTP interface: who may see what, how often, until when.

A key is shown once, as `adk_ID_SECRET`; ClickHouse holds its SHA-256 (the secret has 256 random bits, so nothing slower is
needed). What is done to keys is written down in the audit log.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
import secrets
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import msgspec

from infra.clickhouse.client import ClickHouse
from infra.clock import now_ms
from infra.errors import Unavailable, UserError

PREFIX = "adk_"
REFRESH_S = 2.0
"""For how long a query worker goes by what it has read; a revoked key stops after this, and the time of a request."""
# How long a request waits for that, when keys are known.
_PATIENCE_S = 1.0
# Whoever makes up keys has ClickHouse asked no more often than this.
_MADE_S = 0.2


@dataclass(frozen=True)
class Access:
    """What the bearer of a key may do. `advertisers`: those whose rows may be seen, None for all. `rate`: requests a second,
    and rows read in thousands, in the long run; `burst`: at once. None: without limit."""

    key: str
    advertisers: frozenset[int] | None
    admin: bool
    rate: float | None = None
    burst: float | None = None


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

    def state(self, now_ms: int) -> str:
        """active, expired or revoked."""
        if self.revoked_ms:
            return "revoked"
        return "expired" if self.expires_ms and self.expires_ms <= now_ms else "active"

    def opens(self, digest: str, now_ms: int) -> bool:
        """Whether a token of that digest is this key's. Takes the same time for every wrong one."""
        new = hmac.compare_digest(digest, self.digest)
        former = hmac.compare_digest(digest, self.former_digest or "-" * len(digest)) and now_ms < self.former_until_ms
        return (new or former) and self.state(now_ms) == "active"

    def access(self) -> Access:
        """What it allows."""
        return Access(
            self.id, None if self.everybody else frozenset(self.advertisers), self.admin, self.rate, self.burst
        )


_COLUMNS = Key.__struct_fields__


class Keys:
    """The keys of an installation. Every method may raise Unavailable."""

    def __init__(self, client: ClickHouse) -> None:
        self._client = client

    def all(self) -> list[Key]:
        """Newest first."""
        found = self._client.rows(
            f"SELECT {', '.join(_COLUMNS)} FROM {self._client.database}.api_keys FINAL ORDER BY created_ms DESC"
        )
        return [msgspec.convert(dict(zip(_COLUMNS, row, strict=True)), Key, strict=False) for row in found]

    def create(
        self,
        name: str,
        advertisers: frozenset[int] | None,
        *,
        admin: bool,
        rate: float,
        burst: float,
        lasts_ms: int | None,
    ) -> tuple[Key, str]:
        """A new key, and its token, which is told nowhere else. `advertisers` None: all."""
        id_, now = secrets.token_hex(5), now_ms()
        token = _new_token(id_)
        key = Key(
            id_, name, digest_of(token), "", 0, advertisers is None, sorted(advertisers or ()), admin, rate, burst,
            now, now + lasts_ms if lasts_ms else 0, 0, 1,
        )  # fmt: skip
        self._write(key, "create", f"{name}: {'all advertisers' if advertisers is None else key.advertisers}")
        return key, token

    def rotate(self, id_: str, grace_ms: int) -> tuple[Key, str]:
        """A new token for a key; the former one works for `grace_ms` more. Raises UserError for one that is not active."""
        held = self._active(id_)
        token, now = _new_token(id_), now_ms()
        key = msgspec.structs.replace(
            held, digest=digest_of(token), former_digest=held.digest, former_until_ms=now + grace_ms,
            version=held.version + 1,
        )  # fmt: skip
        self._write(key, "rotate", f"the former one works for {grace_ms // 1000} s more")
        return key, token

    def revoke(self, id_: str) -> Key:
        """Raises UserError for a key that is not there; one that is revoked stays so."""
        held = self._known(id_)
        if held.revoked_ms:
            return held
        key = msgspec.structs.replace(held, revoked_ms=now_ms(), version=held.version + 1)
        self._write(key, "revoke", "")
        return key

    def audit(self, limit: int) -> list[tuple[str, str, str, str, str]]:
        """(at, actor, action, key id, detail), newest first."""
        return [
            (row[0], row[1], row[2], row[3], row[4])
            for row in self._client.rows(
                "SELECT formatDateTime(at, '%Y-%m-%dT%H:%i:%SZ'), actor, action, subject, detail"
                f" FROM {self._client.database}.audit ORDER BY at DESC LIMIT {{limit:UInt32}}",
                {"limit": limit},
            )
        ]

    def _known(self, id_: str) -> Key:
        for key in self.all():
            if key.id == id_:
                return key
        raise UserError(f"there is no key {id_}", hint="adclick keys list shows them")

    def _active(self, id_: str) -> Key:
        key = self._known(id_)
        if (state := key.state(now_ms())) != "active":
            raise UserError(f"key {id_} is {state}", hint="adclick keys create makes another")
        return key

    def _write(self, key: Key, action: str, detail: str) -> None:
        # What is not written down did not happen: the audit log first.
        self._client.command(
            f"INSERT INTO {self._client.database}.audit SELECT"
            " fromUnixTimestamp64Milli({at:Int64}), {actor:String}, {action:String}, {subject:String}, {detail:String}",
            {"at": now_ms(), "actor": _actor(), "action": action, "subject": key.id, "detail": detail},
        )
        types = {
            str: "String", bool: "UInt8", int: "UInt64", float: "Float64", list: "Array(UInt64)",
        }  # fmt: skip
        values = msgspec.structs.asdict(key)
        shown = ", ".join(f"{{{name}:{types[type(values[name])]}}}" for name in _COLUMNS)
        bound = {name: int(value) if isinstance(value, bool) else value for name, value in values.items()}
        self._client.command(
            f"INSERT INTO {self._client.database}.api_keys ({', '.join(_COLUMNS)}) SELECT {shown}", bound
        )


class Keyring:
    """The keys as a query worker knows them: read again after REFRESH_S, and kept while ClickHouse is away. Thread-safe."""

    def __init__(self, keys: Keys, root: str) -> None:
        """`root`: the installation's own key, which sees everything."""
        self._keys, self._root = keys, digest_of(root) if root else ""
        self._known: dict[str, Key] | None = None
        self._read_at = 0.0
        self._starting = threading.Lock()
        self._reading: Future[dict[str, Key]] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._answers = True

    def access(self, token: str) -> Access | None:
        """What a token allows; None for one that is not a key, or no longer. Raises Unavailable when that cannot be known."""
        digest = digest_of(token)
        if self._root and hmac.compare_digest(digest, self._root):
            return Access("root", None, admin=True)
        if not token.startswith(PREFIX):
            return None
        id_ = token.removeprefix(PREFIX).partition("_")[0]
        # One that was made a moment ago works at once.
        key = self._current().get(id_) or self._current(_MADE_S).get(id_)
        return key.access() if key is not None and key.opens(digest, now_ms()) else None

    def _current(self, max_age_s: float = REFRESH_S) -> dict[str, Key]:
        known = self._known
        if known is not None and time.monotonic() - self._read_at < max_age_s:
            return known
        with self._starting:
            if self._reading is None or self._reading.done():
                self._reading = self._reader.submit(self._read)
            reading = self._reading
        try:
            # Where ClickHouse did not answer before, what is known is right until it does.
            return reading.result(None if known is None else _PATIENCE_S if self._answers else 0.0)
        except (TimeoutError, Unavailable):
            self._answers = False
            if known is None:
                raise
            return known

    def _read(self) -> dict[str, Key]:
        began = time.monotonic()
        known = {key.id: key for key in self._keys.all()}
        self._known, self._read_at, self._answers = known, began, True
        return known


def _actor() -> str:
    """Who changes a key, for the audit: a container's uid may have no name."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def _new_token(id_: str) -> str:
    return f"{PREFIX}{id_}_{secrets.token_urlsafe(32)}"


def digest_of(token: str) -> str:
    """What is stored of a token."""
    return hashlib.sha256(token.encode()).hexdigest()
