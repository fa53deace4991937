"""What is written to topics, and where reading stands, without any client."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Record:
    """One message to write. `partition` −1 lets the key decide."""

    topic: str
    value: bytes | None
    key: bytes | None = None
    partition: int = -1
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Committed:
    """A committed position: the next offset to read, and the text stored with it. Offset −1: none yet."""

    partition: int
    offset: int
    metadata: str = ""
    topic: str = ""
    """Empty for the topic that the group consumes."""
