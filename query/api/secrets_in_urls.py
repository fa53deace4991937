"""Keys and tokens in the address of a request: refused, since addresses end up in logs, histories and Referer headers. Pure."""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

from query.api.problems import Problem

HIDDEN = "[hidden: it had a key or token]"
"""What logs and traces have in place of such an address."""
_NAMES = "token|access_token|id_token|api_?key|apikey|key|authorization|auth|bearer|secret|password"
_NAMED = re.compile(rf"(?:^|[&;?])(?:{_NAMES})=", re.IGNORECASE)
# A key of ours, and a JSON Web Token: a cursor has one dot, a token two.
_SHAPES = re.compile(r"adk_[0-9a-f]+_[\w-]|eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]{5,}")


# A shorter one, as in a test, may be a word of any address.
_SHORTEST_OWN_KEY = 16


def find_secret(path: str, query: bytes, own_key: str = "") -> Problem | None:
    """The problem with an address that has a key or token in its path or query, under whichever name; None for any other. `own_key`:
    the installation's, which has no shape of its own."""
    own_key = own_key if len(own_key) >= _SHORTEST_OWN_KEY else ""
    text = query.decode("latin-1")
    # Encoded twice, as some libraries do, is encoded all the same.
    for _ in range(3):
        if _NAMED.search(text) or _has_shape(text) or _has_shape(path) or (own_key and own_key in f"{path}?{text}"):
            return Problem(
                400, "secret-in-url",
                "the address has a key or token in it; send it in the header Authorization: Bearer, or, to the dashboard, behind a #;"
                " it is not in the log of this server, but may be in others: revoke it",
            )  # fmt: skip
        if "%" not in text and "%" not in path:
            break
        text, path = unquote_plus(text), unquote_plus(path)
    return None


def _has_shape(text: str) -> bool:
    return ("adk_" in text or "eyJ" in text) and _SHAPES.search(text) is not None
