"""Values that a client holds for us and hands back: signed, so that nobody makes up their own."""

from __future__ import annotations

import hashlib
import hmac
import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any

_MAC_BYTES = 12


class Signer:
    """HMAC-SHA-256 under a secret of the installation, shortened to 96 bits."""

    def __init__(self, secret: str) -> None:
        self._key = hashlib.sha256(b"adclick cursor " + secret.encode()).digest()

    def sign(self, told: dict[str, Any]) -> str:
        """As text that may stand in a URL."""
        raw = json.dumps(told, separators=(",", ":")).encode()
        return urlsafe_b64encode(self._mac(raw) + raw).decode().rstrip("=")

    def read(self, text: str) -> dict[str, Any] | None:
        """What was signed; None for anything else."""
        try:
            held = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
        except ValueError:
            return None
        mac, raw = held[:_MAC_BYTES], held[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(raw)):
            return None
        found: dict[str, Any] = json.loads(raw)
        return found

    def _mac(self, raw: bytes) -> bytes:
        return hmac.new(self._key, raw, hashlib.sha256).digest()[:_MAC_BYTES]
