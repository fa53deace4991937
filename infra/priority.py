"""How urgent work is to the operating system: answers and the stores first, then what brings events in, then what can wait.

Only where cores are short does it matter. Nobody starves: a core that two want goes to each by weight, three to one a step. What
gives way does not push others off a core when it wakes, either (SCHED_BATCH, sched(7)).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from pathlib import Path

LOG, PIPELINE, BACKGROUND = 5, 10, 15


def give_way(niceness: int) -> None:
    """Let this process, called before it has other threads, run after those that are more urgent, where both cannot run."""
    give_way_here(niceness)
    # Linux may weigh sessions against each other first, and niceness only within one (sched(7), autogroup).
    if sys.platform == "linux" and os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(niceness))


def give_way_here(niceness: int) -> None:
    """The same for this thread, and those that it starts, against others of its process."""
    if sys.platform == "linux":
        # Linux counts niceness by thread. Whoever was started with less than that keeps it.
        thread = threading.get_native_id()
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, thread, max(niceness, os.getpriority(os.PRIO_PROCESS, thread)))
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
