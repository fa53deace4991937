"""Content negotiation by Accept, Accept-Encoding and If-None-Match (RFC 9110), which werkzeug parses. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

from werkzeug.datastructures import Accept, MIMEAccept
from werkzeug.http import parse_accept_header, parse_etags

CODINGS = ("zstd", "gzip")
"""Content codings that answers come in, the preferred one first."""
IDENTITY = "identity"
_ALIASES = {"x-gzip": "gzip"}


@lru_cache(maxsize=1024)
def preferred_format(accept: str, offers: tuple[tuple[str, str], ...]) -> str | None:
    """The name of the offer that an Accept header prefers; None when none is acceptable.

    `accept`: all values of the header, joined by commas. `offers`: names and media types, the default one first.
    Parameters other than weights are ignored: `text/csv; charset=utf-8` asks for CSV.
    """
    if not accept.strip():
        return offers[0][0]
    ranges = MIMEAccept([(value.partition(";")[0].strip(), q) for value, q in parse_accept_header(accept)])
    types = {name: media_type.partition(";")[0] for name, media_type in offers}
    weighted = [(ranges.quality(media_type), -ranges.find(media_type), name) for name, media_type in types.items()]
    best = max(weighted, key=lambda offer: offer[:2])
    return best[2] if best[0] > 0 else None


@lru_cache(maxsize=1024)
def preferred_coding(accept_encoding: str | None, *, small: bool) -> str | None:
    """One of CODINGS or IDENTITY; None when none is acceptable. `accept_encoding` None: the request has no such header.

    `small`: the answer is not worth compressing, and is compressed only for a client that does not accept identity.
    """
    if accept_encoding is None:
        return IDENTITY
    listed = parse_accept_header(accept_encoding)
    codings = Accept([(_ALIASES.get(value.lower(), value), q) for value, q in listed])
    # Identity is acceptable unless it is excluded, but a coding that the client lists comes first.
    identity = codings.quality(IDENTITY) if codings.find(IDENTITY) >= 0 else 0.0005
    weights = {coding: codings.quality(coding) for coding in CODINGS} | {IDENTITY: identity}
    if small and identity > 0:
        return IDENTITY
    best = max(weights, key=weights.__getitem__)
    return best if weights[best] > 0 else None


def matches_any(if_none_match: Sequence[str], etag: str) -> bool:
    """Whether If-None-Match (each value of the header) names an entity tag, by weak comparison, or is `*`."""
    if not if_none_match:
        return False
    tags = parse_etags(", ".join(if_none_match).strip())
    return tags.star_tag or tags.contains_weak(etag.removeprefix("W/").strip('"'))


def vary(headers: Mapping[str, str], *names: str) -> dict[str, str]:
    """Headers with `names` added to Vary."""
    before = [name.strip() for name in headers.get("Vary", "").split(",") if name.strip()]
    return {**headers, "Vary": ", ".join(dict.fromkeys([*before, *names]))}
