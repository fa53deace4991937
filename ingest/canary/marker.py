"""The canary: a message of ad-events that goes the way of an event and is none. It carries the moment at which it was sent.

A message is a canary by its header and its value together. The value is no JSON, so no valid event is taken for one; and a producer
that happens to send such a value does not send our header with it. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

HEADER = "adclick-canary"
_VERSION = b"1"
# What a later version adds comes behind the time.
_VALUE = re.compile(rb"adclick-canary ([0-9]{1,15})(?: .*)?", re.DOTALL | re.ASCII)
_PREFIX = b"adclick-canary "
LONGEST_WAIT_S = 60
"""A sender gives a canary up that no broker has taken for so long."""


def encode_canary(sent_ms: int) -> tuple[bytes, tuple[tuple[str, bytes], ...]]:
    """Value and headers of a canary that is sent then."""
    return b"%b%d" % (_PREFIX, sent_ms), ((HEADER, _VERSION),)


def may_be_canary(value: bytes | None) -> bool:
    """Whether it is worth reading the headers of a message."""
    return value is not None and value.startswith(_PREFIX)


def sent_ms_of(value: bytes | None, headers: Mapping[bytes, bytes]) -> int | None:
    """When a canary was sent, by its sender's clock; None for any other message."""
    if value is None or HEADER.encode() not in headers:
        return None
    parts = _VALUE.fullmatch(value)
    return int(parts[1]) if parts else None


def believable_ms(sent_ms: int, appended_ms: int) -> int:
    """When a canary was sent, whatever its sender's clock says. `appended_ms`: its timestamp, of the broker (LogAppendTime); 0 or less
    where it has none.

    It was appended after it was sent, and soon: a clock that is off by hours makes it older by a minute at most.
    """
    if appended_ms <= 0:
        return sent_ms
    return min(max(sent_ms, appended_ms - LONGEST_WAIT_S * 1000), appended_ms)
