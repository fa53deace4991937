"""The port that routers listen on: shared by the routers of one installation (SO_REUSEPORT), and refused to all other programs.

The kernel lets any process of the same user join a shared port, and would then hand requests to any of them.
So each router registers under a name in Linux's abstract namespace, which has the same scope as ports, needs no file and is gone
with the process, however it ends. A router that finds the port in use joins it only where the registered routers are of its own
installation.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from infra.errors import UserError
from infra.settings import Settings

_NAME = "adclick-router"
_UNIX_SOCKETS = Path("/proc/net/unix")
# For how long a router waits for another one that is starting on the same port.
_STARTING_S, _POLL_S = 10.0, 0.02
_LOOPBACK, _LOOPBACK_NAMES = "127.0.0.1", {"localhost", "127.0.0.1", "[::1]"}
# Address, installation, process: as `listen` registers them.
_ROUTER = re.compile(rb"([0-9a-f.:]+)/([0-9a-f]{16})/\d+-[0-9a-f]{8}")
_WILDCARDS = {"0.0.0.0", "::"}
_HINT = "set ADCLICK_HTTP to another address"


@dataclass(frozen=True)
class Listener:
    """A bound socket. `registration` stays open for as long as it is used."""

    bound: socket.socket
    registration: socket.socket

    def close(self) -> None:
        """Leave the port."""
        self.bound.close()
        self.registration.close()


def listen(settings: Settings) -> Listener:
    """Bind the address of setting `http`. Raises UserError when it cannot be had."""
    family, address, port = _resolve(settings.http)
    host, own = address[0], _installation(settings)
    starting = _claim_start(settings.http, port)
    try:
        installations = _registered(host, port)
        if installations - {own}:
            raise UserError(
                f"cannot listen at {settings.http}: a router of another installation listens there", hint=_HINT
            )
        if not installations:
            # Without SO_REUSEPORT: fails where any other program listens, whether it shares its port or not.
            _bind(family, address, settings.http, shared=False).close()
        registration = socket.socket(socket.AF_UNIX)
        registration.bind(f"\0{_NAME}/{port}/{host}/{own}/{os.getpid()}-{os.urandom(4).hex()}")
        try:
            return Listener(_bind(family, address, settings.http, shared=True), registration)
        except UserError:
            registration.close()
            raise
    finally:
        starting.close()


def _resolve(url: str) -> tuple[socket.AddressFamily, Any, int]:
    """Family, address and port to bind."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "127.0.0.1", parts.port
    except ValueError as error:
        raise UserError(f"setting http is not an address: {url}: {error}", hint=_HINT) from error
    if port is None:
        raise UserError(f"setting http needs a port: {url}", hint="like http://127.0.0.1:8080")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UserError(f"cannot listen at {url}: {host}: {error.strerror}", hint=_HINT) from error
    return family, address, port


def _installation(settings: Settings) -> str:
    """The same for all routers that answer from the same stores, and for no others."""
    stores = [",".join(sorted(map(_address, settings.kafka.split(",")))), settings.namespace]
    for url in (settings.redis, settings.clickhouse):
        parts = urlsplit(url)
        hosts = ",".join(sorted(map(_address, parts.netloc.rpartition("@")[2].split(","))))
        stores.append(f"{hosts}{parts.path}")
    return hashlib.sha256("\n".join(stores).encode()).hexdigest()[:16]


def _address(text: str) -> str:
    """An address, with one name for this machine."""
    host, colon, port = text.strip().lower().rpartition(":")
    return f"{_LOOPBACK if host in _LOOPBACK_NAMES else host}{colon}{port}"


def _claim_start(url: str, port: int) -> socket.socket:
    """Let one router at a time look at a port and bind it."""
    deadline = time.monotonic() + _STARTING_S
    while True:
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0{_NAME}-starting/{port}")
            return claim
        except OSError as error:
            claim.close()
            if time.monotonic() > deadline:
                raise UserError(f"cannot listen at {url}: another router is starting there", hint=_HINT) from error
        time.sleep(_POLL_S)


def _bind(family: socket.AddressFamily, address: Any, url: str, *, shared: bool) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise UserError(f"cannot listen at {url}: {error.strerror}", hint=_HINT) from error
    return bound


def _registered(host: str, port: int) -> set[str]:
    """The installations whose routers are registered for an address, or for one that overlaps with it."""
    try:
        names = [line.rpartition(b" ")[2] for line in _UNIX_SOCKETS.read_bytes().split(b"\n")]
    except OSError:
        return set()
    # Any user of the machine may bind any name, in any bytes: only names that routers bind count.
    prefix = f"@{_NAME}/{port}/".encode()
    routers = [_ROUTER.fullmatch(name.removeprefix(prefix)) for name in names if name.startswith(prefix)]
    registered = {(router[1].decode(), router[2].decode()) for router in routers if router is not None}
    return {installation for other, installation in registered if other == host or {host, other} & _WILDCARDS}
