"""Children that do not outlive what they were started for."""

from __future__ import annotations

import contextlib
import ctypes
import signal
from collections.abc import Iterator

import psutil

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """For `preexec_fn`: SIGKILL this process once its parent is gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def no_children_after_failure() -> Iterator[None]:
    """Kill the children that were started within the block when it is left by an exception, Ctrl-C included."""
    before = set(psutil.Process().children())
    try:
        yield
    except BaseException:
        for child in set(psutil.Process().children()) - before:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        raise
