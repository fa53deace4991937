"""How urgent work is to the operating system: answers and the stores first, then what brings events in, then what can wait.

Only where cores are short does it matter. No process starves: two that compete for a core share it 3:1 for each level between them. What
gives way does not push others off a core when it wakes, either (SCHED_BATCH, sched(7)). What answers does: it asks for short
turns, and Linux lets those who do interrupt longer ones (EEVDF, 6.12 and newer).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
import threading
from pathlib import Path

LOG, PIPELINE, BACKGROUND = 10, 15, 19
_SHORT_NS = 100_000
# The number of sched_setattr(2), which the C library does not wrap everywhere.
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}
# struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period.
_SCHED_ATTR = struct.Struct("=IIQiIQQQ")


def answer_soon() -> None:
    """Let this process, called before it has other threads, get a core soon when it wakes."""
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform == "linux" and number is not None:
        attributes = (os.SCHED_OTHER, 0, os.getpriority(os.PRIO_PROCESS, 0), 0, _SHORT_NS, 0, 0)
        # An older Linux does not heed it, or refuses it; then everything is as it was.
        ctypes.CDLL(None).syscall(number, 0, _SCHED_ATTR.pack(_SCHED_ATTR.size, *attributes), 0)


def give_way(niceness: int) -> None:
    """Let this process, called before it has other threads, run after those that are more urgent, where both cannot run."""
    give_way_here(niceness)
    # Linux may weigh sessions against each other first, and niceness only within one (sched(7), autogroup).
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(niceness))


def give_way_here(niceness: int) -> None:
    """Let this thread, and those that it starts, give way to others of its process."""
    if sys.platform == "linux":
        # Linux counts niceness by thread. A thread that was started with a lower priority keeps it.
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
