"""Host and port in the addresses of settings. Pure."""

from __future__ import annotations

import re

_HOST = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::(\d+))?")


def split_address(text: str, port: int) -> tuple[str, int]:
    """Host and port of HOST, HOST:PORT or [IPV6]:PORT; `port` where it names none. Raises ValueError."""
    parts = _HOST.fullmatch(text)
    if parts is None:
        raise ValueError(f"{text} is no HOST:PORT")
    return parts[1].strip("[]"), int(parts[2] or port)
