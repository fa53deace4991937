"""Tokens for OAUTHBEARER, as a command prints them: how they are had is the installation's own matter.

https://datatracker.ietf.org/doc/html/rfc7628; the expiry is the claim `exp` of RFC 7519.
"""

from __future__ import annotations

import base64
import json
import shlex
import subprocess

from infra.errors import Denied

_PATIENCE_S = 30.0


def token_of(command: str) -> tuple[str, float]:
    """The token that a command prints, and when it expires (epoch seconds). Raises Denied."""
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _failed(f"cannot be run: {error}") from error
    if done.returncode:
        raise _failed(f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    token = done.stdout.strip()
    return token, _expires_at(token)


def _expires_at(token: str) -> float:
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _failed("prints no JSON web token that expires") from error


def _failed(why: str) -> Denied:
    return Denied(f"Kafka: the command in kafka_token_command {why}", backend="kafka", code="TOKEN")
