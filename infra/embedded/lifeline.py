"""A child that dies with its parent, however that ends."""

from __future__ import annotations

import ctypes
import signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """For `preexec_fn`: SIGKILL this process once its parent is gone."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
