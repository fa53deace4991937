"""What a process of this machine takes."""

from __future__ import annotations

from typing import Any

import psutil


def usage(process: psutil.Process) -> dict[str, Any]:
    """Its pid, CPU time and memory; nothing when it has just ended."""
    try:
        with process.oneshot():
            cpu_s = sum(process.cpu_times()[:2])
            return {"pid": process.pid, "cpu_s": round(cpu_s, 1), "rss_mb": process.memory_info().rss >> 20}
    except psutil.Error:
        return {}
