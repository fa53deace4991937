"""Signed text that clients hold for the router, such as cursors: no client can make up its own. Through itsdangerous."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from itsdangerous import BadData, URLSafeSerializer

# itsdangerous passes over letters beyond ASCII, and over padding.
_SIGNED_TEXT = re.compile(r"[\w.-]+", re.ASCII)


class Signer:
    """Signs under a secret of the installation, with HMAC-SHA-256."""

    def __init__(self, secret: str) -> None:
        self._serializer = URLSafeSerializer(
            secret, salt=b"adclick cursor", signer_kwargs={"digest_method": hashlib.sha256}
        )

    def sign(self, payload: dict[str, Any]) -> str:
        """The payload as text that may stand in a URL."""
        text = self._serializer.dumps(payload)
        return text if isinstance(text, str) else text.decode()

    def read(self, text: str) -> dict[str, Any] | None:
        """The payload of a text that was signed here; None for any other text."""
        if not _SIGNED_TEXT.fullmatch(text):
            return None
        try:
            payload: dict[str, Any] = self._serializer.loads(text)
        except BadData:
            return None
        return payload
