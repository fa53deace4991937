"""What a token may be bought for: never for more than its key allows. Pure."""

from __future__ import annotations

from typing import Annotated

import msgspec

from infra.addresses import check_origins
from infra.clock import iso
from infra.structs import decodable
from ingest.events import MAX_INT
from query.bad_question import BadQuestion
from query.keys import Access
from query.row_scope import RowScope
from query.tokens import DEFAULT_S, LONGEST_S, Claims

SCOPES = ("read", "admin")
MAX_IDS = 500
"""Of advertisers, and of campaigns: a token travels with each request."""
Id = Annotated[int, msgspec.Meta(ge=0, le=MAX_INT)]
Ids = Annotated[list[Id], msgspec.Meta(min_length=1, max_length=MAX_IDS)]


@decodable
class TokenRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a client asks for. Ids that are left out, or null: all that the key sees. `expires_in`: seconds."""

    advertisers: Ids | None = None
    campaigns: Ids | None = None
    scopes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)] = ("read",)
    expires_in: Annotated[int, msgspec.Meta(ge=1, le=MAX_INT)] | None = None
    origin: Annotated[str, msgspec.Meta(max_length=300)] | None = None


def make_claims(
    access: Access, request: TokenRequest, *, issuer: str, id_: str, fingerprint: str, now_ms: int
) -> Claims:
    """The claims of the token that the key of `access` buys. Raises BadQuestion that names what is wrong, or wider than the key."""
    wanted = RowScope.of(request.advertisers, request.campaigns)
    for name, ids in (("advertisers", wanted.advertisers), ("campaigns", wanted.campaigns)):
        limit = getattr(access.rows, name)
        if ids is not None and limit is not None and (foreign := sorted(ids - limit)):
            raise BadQuestion(
                name, f"the token would be wider than its key, which may not see {name[:-1]} {foreign[0]}", 403, "wider-than-key"
            )  # fmt: skip
    unknown = [scope for scope in request.scopes if scope not in SCOPES]
    if unknown:
        raise BadQuestion("scopes", f"no such scope: {unknown[0][:40]!r}; use {', '.join(SCOPES)}")
    if "admin" in request.scopes and not access.admin:
        raise BadQuestion(
            "scopes", "the token would be wider than its key, which has no scope admin", 403, "wider-than-key"
        )
    now_s = now_ms // 1000
    return Claims(
        iss=issuer, sub=access.key, jti=id_, iat=now_s, exp=now_s + _lifetime_s(access, request.expires_in, now_ms), fpr=fingerprint,
        scopes=[scope for scope in SCOPES if scope == "read" or scope in request.scopes],
        advertisers=_sorted(wanted.advertisers), campaigns=_sorted(wanted.campaigns), origin=_origin(request.origin),
    )  # fmt: skip


def _lifetime_s(access: Access, wanted_s: int | None, now_ms: int) -> int:
    left_s = (access.expires_ms - now_ms) // 1000 if access.expires_ms else LONGEST_S
    if wanted_s is None:
        return max(1, min(DEFAULT_S, left_s))
    if wanted_s > LONGEST_S:
        raise BadQuestion(
            "expires_in", f"a token lasts {LONGEST_S} seconds at most, not {wanted_s}", 422, "lasts-too-long"
        )
    if wanted_s > left_s:
        expires = iso(access.expires_ms // 1000 * 1000)
        raise BadQuestion(
            "expires_in", f"the token would outlive its key, which expires at {expires}; ask for {max(1, left_s)} seconds at most",
            422, "lasts-too-long",
        )  # fmt: skip
    return wanted_s


def _origin(text: str | None) -> str:
    """An origin as browsers write it; empty for none."""
    if text is None:
        return ""
    try:
        origin = check_origins(text)
    except ValueError as error:
        raise BadQuestion("origin", f"origin {error}") from None
    if not origin or origin == "*" or "," in origin:
        raise BadQuestion("origin", f"origin must be one origin, like https://dash.example.com, not {text[:60]!r}")
    return origin


def _sorted(numbers: frozenset[int] | None) -> list[int] | None:
    return None if numbers is None else sorted(numbers)
