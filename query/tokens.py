"""Tokens for browsers: signed, short-lived, and narrower than the key that bought them. JSON Web Tokens (HS256), through pyjwt.

A token is stored nowhere. It names its key and a fingerprint of that key's secret, so it is refused once the key is revoked, has
expired, or has another secret.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jwt
import msgspec

from infra.structs import decodable

ALGORITHM = "HS256"
MIN_SECRET_CHARACTERS = 32
"""A token can be tried against secrets offline, so a short one would be found."""
LEEWAY_S = 5
"""By how much the clocks of routers may differ: a token is accepted for so long after it expires, and before it was issued."""
LONGEST_S, DEFAULT_S = 86_400, 3_600
MAX_BYTES = 6 << 10
"""Proxies refuse header lines of more than 8 KB."""
_SHAPE = re.compile(r"[\w-]{10,}\.[\w-]{10,}\.[\w-]{43}", re.ASCII)
_SIGNATURE_BYTES = 32
# Tokens whose signature is remembered as right or wrong: a few megabytes at most.
_VERIFIED = 1024
# What the key that signs is derived for: another purpose of the same secret has another key.
_PURPOSE, _FINGERPRINT = b"adclick token signing v1", b"adclick fingerprint of a key v1"


@decodable
class Claims(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a token says. `sub`: the id of its key; `fpr`: of the key's secret. Seconds since 1970; None: all that the key sees."""

    iss: str
    sub: str
    jti: str
    iat: int
    exp: int
    fpr: str
    scopes: list[str]
    advertisers: list[int] | None = None
    campaigns: list[int] | None = None
    origin: str = ""


@dataclass(frozen=True)
class SignedClaims:
    """The claims of a token whose signature is right. Whether it has expired, and what its key allows, is not checked yet."""

    claims: Claims
    signing_key: bytes

    def is_of(self, digest: str) -> bool:
        """Whether the token was bought with the secret of this digest. Constant time."""
        return bool(digest) and hmac.compare_digest(self.claims.fpr, _fingerprint(self.signing_key, digest))

    def is_current(self, now_ms: int) -> bool:
        """Whether it has been issued and has not expired, give or take LEEWAY_S."""
        now_s = now_ms / 1000
        return self.claims.iat - LEEWAY_S <= now_s < self.claims.exp + LEEWAY_S


class TokenSigner:
    """Signs tokens with a key derived from the installation's secret, and reads those signed with it or with the former one.

    The key is HMAC-SHA-256 of the purpose under the secret; `kid` in a token's header is a digest of the key, so that a reader
    knows which one it was."""

    def __init__(self, secret: str, former: str = "") -> None:
        """A secret that is too short for tokens signs none. `former`: what the secret was before it was rotated."""
        secrets = [text for text in (secret, former) if len(text) >= MIN_SECRET_CHARACTERS]
        keys = [hmac.digest(text.encode(), _PURPOSE, "sha256") for text in secrets]
        self._keys = {hashlib.sha256(key).hexdigest()[:16]: key for key in keys}
        self._current = keys[0] if len(secret) >= MIN_SECRET_CHARACTERS else None
        # A dashboard sends the same token with each request, and pyjwt takes longer than most answers.
        self._verified = lru_cache(_VERIFIED)(self._verify)

    @property
    def can_sign(self) -> bool:
        """Whether there is a secret to sign with."""
        return self._current is not None

    def fingerprint(self, digest: str) -> str:
        """What a token says of the key whose secret has this digest."""
        assert self._current is not None
        return _fingerprint(self._current, digest)

    def sign(self, claims: Claims) -> str:
        """The token."""
        assert self._current is not None
        payload = {name: value for name, value in msgspec.to_builtins(claims).items() if value not in (None, "")}
        kid = hashlib.sha256(self._current).hexdigest()[:16]
        return jwt.encode(payload, self._current, ALGORITHM, {"kid": kid})

    def read(self, text: str) -> SignedClaims | None:
        """The claims of a token that was signed here, None for any other text: of another algorithm, also `none`, with another
        key, or changed by as much as a letter."""
        if len(text) > MAX_BYTES or not _SHAPE.fullmatch(text):
            return None
        return self._verified(text)

    def _verify(self, text: str) -> SignedClaims | None:
        if not _is_canonical(text.rpartition(".")[2]):
            return None
        try:
            kid = jwt.get_unverified_header(text).get("kid")
            key = self._keys.get(kid) if isinstance(kid, str) else None
            if key is None:
                return None
            # Time and issuer are checked by the reader, whose clock and installation they are.
            payload: dict[str, Any] = jwt.decode(
                text, key, algorithms=[ALGORITHM],
                options={"verify_exp": False, "verify_iat": False, "verify_nbf": False, "verify_aud": False},
            )  # fmt: skip
            return SignedClaims(msgspec.convert(payload, Claims), key)
        except (jwt.PyJWTError, msgspec.ValidationError):
            return None


def looks_like_token(text: str) -> bool:
    """Whether a text has the shape of a token, and so is no key."""
    return text.count(".") == 2


def _fingerprint(signing_key: bytes, digest: str) -> str:
    return hmac.digest(signing_key, _FINGERPRINT + digest.encode(), "sha256").hex()[:32]


def _is_canonical(signature: str) -> bool:
    """Whether a signature is written in the one way that signs it: base64 has several, which differ in bits that count for nothing."""
    raw = jwt.utils.base64url_decode(signature)
    return len(raw) == _SIGNATURE_BYTES and jwt.utils.base64url_encode(raw).decode() == signature
