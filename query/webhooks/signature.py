"""Secrets of webhooks, and signatures by the Standard Webhooks scheme, through the library standardwebhooks: the only module that
imports it."""

from __future__ import annotations

import base64
import datetime as dt
import secrets
from collections.abc import Sequence

from standardwebhooks.webhooks import Webhook as Signer

PREFIX = "whsec_"
_SECRET_BYTES = 32


def new_secret() -> str:
    """A secret with 256 random bits."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def sign(message_id: str, now_ms: int, body: bytes, secrets_in_use: Sequence[str]) -> dict[str, str]:
    """The headers of a signed message: a signature by each secret, so that a receiver may know the former one only."""
    now_s = now_ms // 1000
    # The library takes a moment of UTC without its zone for what it is.
    at, text = dt.datetime.fromtimestamp(now_s, dt.UTC), body.decode()
    signatures = [Signer(secret).sign(message_id, at, text) for secret in secrets_in_use]
    return {"webhook-id": message_id, "webhook-timestamp": str(now_s), "webhook-signature": " ".join(signatures)}
