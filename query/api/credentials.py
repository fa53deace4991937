"""Operations on what a request is allowed with: what the sent key or token allows, and tokens that a key buys."""

from __future__ import annotations

import secrets
from collections.abc import Callable

import msgspec
from starlette.requests import Request

from infra.clock import iso
from query.api.access import HttpReply
from query.api.bodies import decode_body
from query.api.problems import Problem
from query.keyring import Keyring
from query.keys import Access
from query.token_purchase import TokenRequest, make_claims
from query.tokens import MAX_BYTES, MIN_SECRET_CHARACTERS


class Credentials:
    """Handlers. Thread-safe."""

    def __init__(self, keyring: Keyring, currency: str, now: Callable[[], int]) -> None:
        self._keyring, self._currency, self._now = keyring, currency, now

    def access(self, _request: Request, access: Access) -> HttpReply:
        """What the key or token of this request allows."""
        described = _describe(access) | {
            "name": access.name,
            "admin": access.admin,
            "token": bool(access.token),
            "origin": access.origin or None,
            "may_act_on_alerts": access.may_act_on_alerts,
            "currency": self._currency,
        }
        return HttpReply(msgspec.json.encode(described))

    def issue_token(self, request: Request, access: Access) -> HttpReply:
        """A token, narrower than the key that buys it or as wide. Nothing of it is stored."""
        if access.token:
            raise Problem(403, "forbidden", "a token cannot buy tokens; send the key itself")
        signer = self._keyring.signer
        if not signer.can_sign:
            raise Problem(
                503, "no-token-secret",
                f"this installation has no secret of at least {MIN_SECRET_CHARACTERS} characters to sign tokens with; set"
                " ADCLICK_TOKEN_SECRET, the same in all routers",
            )  # fmt: skip
        claims = make_claims(
            access, decode_body(request, TokenRequest), issuer=self._keyring.installation, id_=secrets.token_hex(8),
            fingerprint=signer.fingerprint(access.digest), now_ms=self._now(),
        )  # fmt: skip
        token = signer.sign(claims)
        if len(token) > MAX_BYTES:
            raise Problem(
                422, "too-many-campaigns", f"the token would have {len(token):,} bytes, and {MAX_BYTES:,} are the limit; name fewer"
                " advertisers or campaigns", "campaigns",
            )  # fmt: skip
        narrowed = access.narrowed(claims)
        issued = {"token": token, "id": claims.jti} | _describe(narrowed) | {"origin": narrowed.origin or None}
        return HttpReply(msgspec.json.encode(issued), status=201)


def _describe(access: Access) -> dict[str, object]:
    return {
        "key": access.key,
        "advertisers": None if access.advertisers is None else sorted(access.advertisers),
        "campaigns": None if access.campaigns is None else sorted(access.campaigns),
        "scopes": access.scopes,
        "expires_at": iso(access.expires_ms // 1000 * 1000) if access.expires_ms else None,
    }
