"""The keys that a query worker knows, and what a key or token that a request sends allows."""

from __future__ import annotations

import hmac
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from infra.clock import now_ms
from infra.errors import AdclickError, Unavailable
from query.keys import PREFIX, ROOT, Access, Key, Keys, digest_of
from query.tokens import Claims, TokenSigner, looks_like_token

REFRESH_S = 2.0
"""For how long a query worker uses the keys that it has read; a revoked key stops working after this, and the time of a request."""
# For how long a request waits until they are read again; after that it uses the former ones.
_REFRESH_TIMEOUT_S = 1.0
# For so long no other unknown key makes a query worker read the keys again, after one that is not among them did.
_UNKNOWN_PAUSE_S = 0.2


class ExpiredToken(AdclickError):
    """A token of an active key that has expired. `origin`: whose pages may read this; `key`: its key."""

    def __init__(self, claims: Claims) -> None:
        super().__init__("the token has expired")
        self.origin, self.key, self.expired_ms = claims.origin, claims.sub, claims.exp * 1000


@dataclass(frozen=True)
class _Known:
    """What a query worker has read: the keys by id, and the id of the installation."""

    keys: dict[str, Key]
    installation: str


class Keyring:
    """The keys that a query worker has read: read again after REFRESH_S, and kept while ClickHouse is away. Thread-safe."""

    def __init__(
        self,
        keys: Keys,
        root: str,
        signer: TokenSigner | None = None,
        now: Callable[[], int] = now_ms,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`root`: the installation's own key, which allows everything. `signer`: of tokens. Keys expire by `now`, and are read again
        by `monotonic`."""
        self._keys, self._root = keys, digest_of(root) if root else ""
        self.signer = signer or TokenSigner("")
        self._now, self._monotonic = now, monotonic
        self._known: _Known | None = None
        self._read_at, self._missed_at = 0.0, -math.inf
        self._starting = threading.Lock()
        self._reading: Future[_Known] | None = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="keys")
        self._answers = True

    @property
    def installation(self) -> str:
        """The id of this installation, as tokens name it. Raises Unavailable when the keys have never been read."""
        return self._current().installation

    def access(self, text: str) -> Access | None:
        """What a key or token allows; None for one that is not valid. Raises ExpiredToken, and Unavailable when the keys have never
        been read."""
        if looks_like_token(text):
            return self._token_access(text)
        digest = digest_of(text)
        if self._root and hmac.compare_digest(digest, self._root):
            return self._root_access(digest)
        if not text.startswith(PREFIX):
            return None
        key = self._find(text.removeprefix(PREFIX).partition("_")[0])
        return key.access(digest) if key is not None and key.opens(digest, self._now()) else None

    def expire(self) -> None:
        """Have the keys read again before they are used: this process has changed one."""
        self._read_at = -math.inf

    def _root_access(self, digest: str = "") -> Access:
        return Access(ROOT, None, admin=True, name="the installation's own key", digest=digest)

    def _find(self, id_: str) -> Key | None:
        key = self._current().keys.get(id_)
        if key is None and self._monotonic() - self._missed_at >= _UNKNOWN_PAUSE_S:
            # A key that was created a moment ago works at once.
            key = self._current(0.0).keys.get(id_)
            self._missed_at = self._monotonic() if key is None else self._missed_at
        return key

    def _token_access(self, text: str) -> Access | None:
        signed = self.signer.read(text)
        if signed is None or signed.claims.iss != self.installation:
            return None
        claims = signed.claims
        if claims.sub == ROOT:
            access, digests = self._root_access(), [self._root]
        elif (key := self._find(claims.sub)) is not None:
            access, digests = key.access(), key.digests(self._now())
        else:
            return None
        if not any(map(signed.is_of, digests)):
            return None
        if not signed.is_current(self._now()):
            raise ExpiredToken(claims)
        return access.narrowed(claims)

    def _current(self, max_age_s: float = REFRESH_S) -> _Known:
        known = self._known
        if known is not None and self._monotonic() - self._read_at < max_age_s:
            return known
        with self._starting:
            if self._reading is None or self._reading.done():
                self._reading = self._reader.submit(self._read)
            reading = self._reading
        try:
            # While ClickHouse does not answer, requests do not wait for it again.
            return reading.result(None if known is None else _REFRESH_TIMEOUT_S if self._answers else 0.0)
        except (TimeoutError, Unavailable):
            self._answers = False
            if known is None:
                raise
            return known

    def _read(self) -> _Known:
        began = self._monotonic()
        # The id of the installation stays: with another table of keys, none of the keys that tokens name is there.
        installation = self._keys.installation() if self._known is None else self._known.installation
        known = _Known({key.id: key for key in self._keys.all()}, installation)
        self._known, self._read_at, self._answers = known, began, True
        return known
