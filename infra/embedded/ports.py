"""Ports of this machine: the usual ones, those that a stack had before, and free ones."""

from __future__ import annotations

import errno
import os
import socket
import time
import zlib
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from infra.errors import UserError

LOOPBACK = "127.0.0.1"
USUAL_PORTS = {"kafka": 9092, "controller": 9093, "redis": 6379, "clickhouse": 8123, "http": 8080}
# Below those that connections go out from.
_ELSEWHERE, _PLACES = 20_000, 600
_DYING_S = 8.0
_kept: list[socket.socket] = []


def _keep(port: int) -> bool:
    """Claim a port for the life of this process, whether a server listens there at the moment or not."""
    # A name in Linux's abstract namespace: gone with the process, however it ends.
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0adclick-port-{port}")
    except OSError:
        claim.close()
        return False
    _kept.append(claim)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port(preferred: int, taken: set[int], elsewhere: int = _ELSEWHERE) -> int:
    """`preferred` where it can be bound, otherwise the first free port from `elsewhere` on, and never one of another stack that
    runs.

    Else a stack whose Kafka is down for a moment would find another's at its address, and write into it.
    """
    for port in [preferred, *range(elsewhere, elsewhere + 200)]:
        if port not in taken and _is_free(port) and _keep(port):
            taken.add(port)
            return int(port)
    raise UserError("no free port was found on the loopback interface")


def choose_ports(folder: Path, known: dict[str, int], usual: dict[str, int] = USUAL_PORTS) -> dict[str, int]:
    """The ports of a folder's stack by what listens there: those that it had (`known`), else the usual ones, else free ones.

    Those it had are waited for: when a supervisor was killed, its servers take a moment to die, and clients know their
    addresses. Free ones are looked for in another place for each folder, lest a stack that is just coming back finds its own
    taken by a new one.
    """
    elsewhere = _ELSEWHERE + 20 * (zlib.crc32(os.fsencode(folder.resolve())) % _PLACES)
    deadline, taken = time.monotonic() + _DYING_S, set[int]()
    known = {name: port for name, port in known.items() if name in usual}
    while not all(map(_is_free, known.values())) and time.monotonic() < deadline:
        time.sleep(0.05)
    return {name: free_port(known.get(name, port), taken, elsewhere) for name, port in usual.items()}


def claim_address(url: str) -> None:
    """Claim the address that is set for the router. Raises UserError where it cannot be had: no other one would do."""
    address = _split(url)
    host, port = address.hostname or "", address.port or 0
    deadline = time.monotonic() + _DYING_S
    while True:
        try:
            family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(where)
            break
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                raise UserError(
                    f"cannot listen at {url}: {error.strerror}", hint="set ADCLICK_HTTP to an address that is free"
                ) from error
        time.sleep(0.05)
    if not _keep(port):
        raise UserError(f"cannot listen at {url}: another stack has port {port}", hint="set ADCLICK_HTTP to another")


def client_address(url: str) -> str:
    """Where clients on this machine find a router that listens at `url`."""
    address = _split(url)
    host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(address.hostname or "", address.hostname or "")
    return f"{address.scheme}://{f'[{host}]' if ':' in host else host}:{address.port}"


def _split(url: str) -> SplitResult:
    try:
        address = urlsplit(url)
        if address.scheme in ("http", "https") and address.hostname and address.port:
            return address
    except ValueError:
        pass
    raise UserError(f"setting http is not an address to listen at: {url}", hint="like http://0.0.0.0:8080")
