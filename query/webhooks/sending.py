"""One request to a webhook's target: bounded in time and size, to an address that was checked, and without following redirects.

Not by an HTTP client: these resolve the name again when they connect, and a name may have another address by then. The response is
parsed by httptools, of which this is the only importer.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

import httptools

from query.webhooks.resolver import Resolver
from query.webhooks.targets import Address, BadTarget, Target, TargetPolicy, literal_address

LIMIT_S = 10.0
"""From the begin of the name's lookup to the end of what is read."""
MOST_BYTES = 64 * 1024
KEPT_BYTES = 500
"""Of the body of a reply."""
_CHUNK_BYTES = 16 * 1024
# Addresses of a host that are tried: an IPv6 and an IPv4 one, say.
_ADDRESSES_TRIED = 2


@dataclass(frozen=True)
class TargetReply:
    """What came of a request. `status` 0: no response. `problem`: why it counts as failed; empty where it does not."""

    status: int
    elapsed_ms: int
    body: bytes = b""
    problem: str = ""


class WebhookSender:
    """Posts messages. Used in one event loop."""

    def __init__(
        self, policy: TargetPolicy, *, limit_s: float = LIMIT_S, resolver: Resolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:  # fmt: skip
        """`tls`: by which certificates are checked; the system's authorities by default."""
        self._policy, self._limit_s, self._resolver, self._tls = policy, limit_s, resolver or Resolver(), tls

    async def post(self, url: str, body: bytes, headers: Mapping[str, str], advertiser: int = 0) -> TargetReply:
        """Send a message once, on behalf of an advertiser. What goes wrong is the reply's problem. Raises ResolverBusy where nothing
        was sent, since the lookup of the host's name could not begin; waiting for it is not part of the limit."""
        began, response, problem = time.monotonic(), _Response(), ""
        try:
            target = self._policy.parse(url)
            lookup = await self._begin_lookup(target, advertiser)
            began = time.monotonic()
            async with asyncio.timeout(self._limit_s):
                await self._exchange(target, await lookup, body, headers, response)
        except TimeoutError:
            problem = f"no response within {self._limit_s:.0f} s"
        except BadTarget as error:
            problem = f"refused: {error}"
        except (OSError, ValueError) as error:
            problem = _reason(error)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            problem = "the response is not HTTP"
        elapsed_ms = round((time.monotonic() - began) * 1000)
        # Once there is a status, it counts: the rest of the body may take as long as it likes.
        if response.status:
            problem = describe_status(response.status)
        return TargetReply(response.status, elapsed_ms, bytes(response.body), problem)

    def close(self) -> None:
        """End the threads that look up names, without waiting for them."""
        self._resolver.close()

    async def _begin_lookup(self, target: Target, advertiser: int) -> Awaitable[list[Address]]:
        literal = literal_address(target.host)
        if literal is None:
            return await self._resolver.begin(target.host, target.port, advertiser)
        known = asyncio.get_running_loop().create_future()
        known.set_result([literal])
        return known

    async def _exchange(
        self, target: Target, addresses: list[Address], body: bytes, headers: Mapping[str, str], response: _Response
    ) -> None:
        reader, writer = await self._connect(target, self._policy.choose(addresses)[:_ADDRESSES_TRIED])
        try:
            writer.write(_encode_request(target, body, headers))
            await writer.drain()
            received = 0
            while not response.suffices and received < MOST_BYTES:
                chunk = await reader.read(min(_CHUNK_BYTES, MOST_BYTES - received))
                if not chunk:
                    break
                received += len(chunk)
                response.feed(chunk)
            if not response.status:
                raise ValueError(
                    f"no status within {MOST_BYTES:,} bytes"
                    if received >= MOST_BYTES
                    else "the connection was closed without a response"
                )
        finally:
            # Not in order: a target that does not read or does not end would hold it up.
            writer.transport.abort()

    async def _connect(
        self, target: Target, addresses: list[Address]
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to one of the addresses themselves: no name is looked up again."""
        tls = (self._tls or ssl.create_default_context()) if target.scheme == "https" else None
        error: Exception = OSError("no address")
        for address in addresses:
            try:
                return await asyncio.open_connection(
                    str(address), target.port, ssl=tls, server_hostname=target.host if tls else None
                )
            except ssl.SSLError:
                raise
            except OSError as reason:
                error = reason
        raise error


class _Response:
    """What is read of a response. Its methods are called by httptools."""

    def __init__(self) -> None:
        self.status, self.body, self._is_complete = 0, bytearray(), False
        self._parser = httptools.HttpResponseParser(self)

    @property
    def suffices(self) -> bool:
        """Whether no more has to be read."""
        return self._is_complete or (self.status > 0 and len(self.body) >= KEPT_BYTES)

    def feed(self, data: bytes) -> None:
        """Raises HttpParserError, HttpParserUpgrade."""
        self._parser.feed_data(data)

    def on_headers_complete(self) -> None:
        code = self._parser.get_status_code()
        # What is below announces the real one.
        if code >= 200:
            self.status = code

    def on_body(self, data: bytes) -> None:
        self.body += data[: KEPT_BYTES - len(self.body)]

    def on_message_complete(self) -> None:
        self._is_complete = self.status > 0


def describe_status(status: int) -> str:
    """Why a status counts as failed; empty for one that does not."""
    if 200 <= status < 300:
        return ""
    return f"answered {status}" + ("; redirects are not followed" if 300 <= status < 400 else "")


def _encode_request(target: Target, body: bytes, headers: Mapping[str, str]) -> bytes:
    lines = {
        "Host": target.host_header, "Content-Type": "application/json", "Content-Length": str(len(body)),
        "User-Agent": "adclick", "Accept": "*/*", "Connection": "close", **headers,
    }  # fmt: skip
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"POST {target.path} HTTP/1.1\r\n{head}\r\n".encode("ascii") + body


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the certificate is not accepted: {error.verify_message}"
    if isinstance(error, socket.gaierror):
        return f"the host is not found: {error.strerror}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[:200]
    return str(error)[:200] or type(error).__name__
