"""Tokens for OAUTHBEARER: printed by a command, or fetched from a token endpoint by the grant for clients (RFC 6749, 4.4).

https://datatracker.ietf.org/doc/html/rfc7628; the expiry of a JWT is its claim `exp` (RFC 7519). All clients of a process share a token
for a minute at most, so that one that is refused is soon followed by another; and until it expires, where there is no other.
"""

from __future__ import annotations

import base64
import binascii
import json
import shlex
import subprocess
import threading
import time
import urllib.error
import urllib.request
from copy import copy
from dataclasses import dataclass, field
from http.client import HTTPException
from urllib.parse import quote_plus, urlencode

from infra.errors import Denied, UserError
from infra.http_client import open_with_secret
from infra.tls import TlsFiles, handshake_failure

_PATIENCE_S = 30.0
_FETCH_S = 10.0
_KEPT_S, _SHARE_KEPT = 60.0, 0.5
_FAILURE_KEPT_S = 3.0
_LARGEST_REPLY = 1 << 20


@dataclass(frozen=True)
class TokenSource:
    """Where tokens come from: `command`, which prints one, or else `endpoint`. `ca`: file of the authorities that the endpoint's certificate
    may be of; empty: those of the system."""

    command: str = ""
    endpoint: str = ""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    scope: str = ""
    ca: str = ""


class _SharedToken:
    """The newest token of a source."""

    def __init__(self, source: TokenSource) -> None:
        self._source, self._lock = source, threading.Lock()
        self._value, self._expires_at = "", 0.0
        self._failure: Denied | None = None
        """Why the last attempt gave no token."""
        self._next_attempt_at = 0.0

    def read(self) -> tuple[str, float]:
        """The token and when it expires. A source that gives none is left alone for some seconds; meanwhile a token counts until it
        expires. Raises Denied."""
        # While one thread fetches, the others wait for what it gets.
        with self._lock:
            if time.time() >= self._next_attempt_at:
                self._renew()
            if self._failure is not None and time.time() >= self._expires_at:
                # An object of its own for each thread that raises it.
                raise copy(self._failure) from self._failure.__cause__
            return self._value, self._expires_at

    def _renew(self) -> None:
        source = self._source
        try:
            self._value, self._expires_at = _printed(source.command) if source.command else _fetched(source)
            self._failure, now = None, time.time()
            self._next_attempt_at = now + min(_KEPT_S, _SHARE_KEPT * (self._expires_at - now))
        except Denied as error:
            self._failure, self._next_attempt_at = error, time.time() + _FAILURE_KEPT_S


class _SharedTokens:
    """One for each source: none waits for another's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokens = dict[TokenSource, _SharedToken]()

    def token(self, source: TokenSource) -> tuple[str, float]:
        with self._lock:
            shared = self._tokens.setdefault(source, _SharedToken(source))
        return shared.read()


_SHARED = _SharedTokens()


def token_of(source: TokenSource) -> tuple[str, float]:
    """A token, and when it expires (epoch seconds). May block for seconds. Raises Denied."""
    return _SHARED.token(source)


def _printed(command: str) -> tuple[str, float]:
    origin = "the command in kafka_token_command"
    try:
        done = subprocess.run(shlex.split(command), capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise _failed(f"{origin} cannot be run: {error}") from error
    if done.returncode:
        raise _failed(f"{origin} ended with {done.returncode}: {(done.stderr.strip().splitlines() or [''])[-1]}")
    token = done.stdout.strip()
    expires_at = _expiry_of(token)
    if expires_at is None:
        raise _failed(f"{origin} prints no JSON web token that expires")
    return token, expires_at


def _fetched(source: TokenSource) -> tuple[str, float]:
    """From the endpoint. Messages have neither the secret nor the token."""
    origin = f"the token endpoint {source.endpoint}"
    # As RFC 6749, 2.3.1, wants both to be encoded.
    credentials = f"{quote_plus(source.client_id)}:{quote_plus(source.client_secret)}"
    form = {"grant_type": "client_credentials"} | ({"scope": source.scope} if source.scope else {})
    request = urllib.request.Request(source.endpoint, data=urlencode(form).encode(), method="POST")
    request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(credentials.encode()).decode()}")
    request.add_header("Accept", "application/json")
    try:
        context = TlsFiles("kafka_oidc", ca=source.ca).context() if source.endpoint.startswith("https:") else None
        with open_with_secret(request, _FETCH_S, context) as response:
            reply = json.loads(response.read(_LARGEST_REPLY))
        token = str(reply["access_token"])
        expires_at = _expiry_of(token) or time.time() + float(reply["expires_in"])
    except urllib.error.HTTPError as error:
        raise _failed(f"{origin} answers {error.code}{_reason(error)}", "look at settings kafka_oidc_…") from error
    except OSError as error:
        failure = handshake_failure("kafka_oidc", "Kafka: the token endpoint", error)
        reason = getattr(error, "reason", error)
        raise failure or _failed(f"{origin} does not answer: {reason}") from error
    except HTTPException as error:
        raise _failed(f"{origin} gives no answer in HTTP", "look at kafka_oidc_endpoint") from error
    except UserError as error:  # a file that is being replaced may be there at the next attempt
        raise _failed(str(error)) from error
    except (KeyError, TypeError, ValueError) as error:
        raise _failed(f"{origin} gives no token that expires") from error
    return token, expires_at


def _reason(error: urllib.error.HTTPError) -> str:
    """The error's name in an answer, by RFC 6749, 5.2; empty where it has none."""
    try:
        return f": {str(json.loads(error.read(_LARGEST_REPLY))['error'])[:100]}"
    except (OSError, HTTPException, KeyError, TypeError, ValueError):
        return ""


def _expiry_of(token: str) -> float | None:
    """When a JSON web token expires; None where it is none that does."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return float(claims["exp"])
    except (IndexError, KeyError, TypeError, ValueError, binascii.Error):
        return None


def _failed(why: str, hint: str = "") -> Denied:
    return Denied(f"Kafka: {why}", hint=hint, backend="kafka", code="TOKEN")
