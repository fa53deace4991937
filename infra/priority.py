"""How urgent work is to the operating system: answers and the stores first, then what brings events in, then what can wait.

Only where cores are short does it matter. Nobody starves: a core that two want goes to each by weight, three to one a step.
"""

from __future__ import annotations

import os
import sys
import threading

PIPELINE, BACKGROUND = 5, 10


def give_way(niceness: int) -> None:
    """Let this thread, and those that it starts, run after those that are more urgent, where both cannot run."""
    if sys.platform == "linux":
        # Linux counts niceness by thread.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
