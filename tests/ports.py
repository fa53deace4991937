"""Ports for servers that tests start themselves, also while other suites run on the same machine."""

from __future__ import annotations

import random
import socket

_FIRST, _LAST = 10_000, 20_000
"""Below those that stacks look among (infra/embedded/ports.py), and those that connections go out from."""


_DRAWN = set[int]()
"""What was returned by this process: a server may not listen there yet."""


def unused_port(count: int = 1, *, beside: int = 0) -> int:
    """The first of `count` ports in a row at which nothing listens, nor at those that are `beside` higher. Drawn at random, so that two suites
    hardly ever get the same."""
    chance = random.SystemRandom()
    while True:
        first = chance.randrange(_FIRST, _LAST - count)
        ports = {port + offset for port in range(first, first + count) for offset in (0, beside)}
        if ports.isdisjoint(_DRAWN) and all(map(_is_unused, ports)):
            _DRAWN.update(ports)
            return first


def _is_unused(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
