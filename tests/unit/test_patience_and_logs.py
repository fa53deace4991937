"""What is away is waited for, but not for ever, and not with a thousand lines."""

from __future__ import annotations

import logging
import sys
import threading

import pytest

from infra import logs
from infra.errors import Fenced
from infra.patience import bounded


def test_a_call_that_never_returns_is_given_up() -> None:
    assert bounded(lambda: 7, 5.0, "answer") == 7
    with pytest.raises(ValueError, match="its own"):
        bounded(lambda: int("its own"), 5.0, "answer")
    stuck = threading.Event()
    with pytest.raises(Fenced, match="did not answer within 0 s"):
        bounded(stuck.wait, 0.05, "answer")
    stuck.set()


def test_a_library_says_the_same_thing_once(capsys: pytest.CaptureFixture[str]) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.addFilter(logs.Once())
    noisy = logging.Logger("noisy")
    noisy.addHandler(handler)
    for port in range(1000):
        noisy.error("no connection to %s", port)
    noisy.error("something else")
    assert capsys.readouterr().out == "no connection to 0\nsomething else\n"
