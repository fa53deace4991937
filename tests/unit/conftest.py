"""Unit tests reach no network: a socket that is opened fails the test."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import settings

# The first example may wait for a compiler, and machines are shared.
settings.register_profile("adclick", deadline=None)
settings.load_profile("adclick")


@pytest.fixture(autouse=True)
def _no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_kwargs: Any) -> None:
        raise AssertionError("a unit test opened a socket")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "bind", refuse)
