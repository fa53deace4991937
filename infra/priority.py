"""How urgent a thread's work is to the operating system."""

from __future__ import annotations

import os
import sys
import threading

_LOWER = 5


def give_way() -> None:
    """Let this thread, and those that it starts, run after those that somebody waits for, where both cannot run."""
    if sys.platform == "linux":
        # Linux counts niceness by thread.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _LOWER)
