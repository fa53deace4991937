"""Slots of a Redis Cluster: which one a key is in, which key a packed command is about, and which node has a slot. Pure."""

from __future__ import annotations

import binascii
from collections.abc import Iterable, Sequence

from infra.redis.access import Address

SLOTS = 16_384
# Their second word is no key. A command with a key behind other words (EVAL) has its number in front.
_WITHOUT_KEY = frozenset(
    {b"PING", b"TIME", b"INFO", b"CONFIG", b"CLIENT", b"CLUSTER", b"SCRIPT", b"ACL", b"SCAN", b"DBSIZE", b"WAIT",
     b"FLUSHALL", b"FLUSHDB", b"BGSAVE", b"SAVE", b"LASTSAVE", b"DEBUG", b"COMMAND", b"ROLE", b"ECHO", b"SLOWLOG"}
)  # fmt: skip
_SCRIPTS = frozenset({b"EVAL", b"EVALSHA"})
_SECOND_WORD = frozenset({b"MEMORY", b"OBJECT", b"XINFO"})


def key_slot(key: bytes) -> int:
    """The slot of a key: CRC-16 (XMODEM) of what stands between its first braces, or of all of it."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


def pattern_slot(pattern: bytes) -> int | None:
    """The slot of all keys that match; None where they may be in several."""
    start = pattern.find(b"{")
    end = pattern.find(b"}", start + 1)
    if start < 0 or end <= start + 1 or any(sign in pattern[: end + 1] for sign in b"*?[\\"):
        return None
    return key_slot(pattern)


def first_key(command: bytes) -> bytes | None:
    """The first key of a packed command; None for one without."""
    name, at = _word(command, command.index(b"\n") + 1)
    if at == len(command):
        return None
    name = name.upper()
    if name in _WITHOUT_KEY:
        return None
    word, at = _word(command, at)
    if name in _SCRIPTS:
        count, at = _word(command, at)
        return _word(command, at)[0] if int(count) else None
    if name in _SECOND_WORD:
        return None if at == len(command) else _word(command, at)[0]
    return word


def _word(command: bytes, at: int) -> tuple[bytes, int]:
    """The word of a command in RESP that begins at a place, and where the next one begins."""
    start = command.index(b"\n", at) + 1
    end = start + int(command[at + 1 : start - 2])
    return command[start:end], end + 2


class SlotMap:
    """Which node has each slot."""

    def __init__(self, ranges: Iterable[tuple[int, int, Address]] = ()) -> None:
        """`ranges`: first and last slot, and the address of the node that has them."""
        self._owners: list[Address | None] = [None] * SLOTS
        for first, last, address in ranges:
            self._owners[first : last + 1] = [address] * (last + 1 - first)
        self.addresses: Sequence[Address] = sorted({owner for owner in self._owners if owner is not None})
        """All nodes that have slots."""

    @classmethod
    def of_reply(cls, reply: Sequence[Sequence[object]], host: str) -> SlotMap:
        """From the reply to CLUSTER SLOTS; `host`: of the node that gave it, which may not know its own."""
        return cls(_range(entry, host) for entry in reply)

    def owner(self, slot: int) -> Address | None:
        """The node that has a slot; None where no node serves it."""
        return self._owners[slot]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SlotMap) and self._owners == other._owners

    __hash__ = None  # type: ignore[assignment]


def _range(entry: Sequence[object], asked: str) -> tuple[int, int, Address]:
    first, last, node = entry[0], entry[1], entry[2]
    assert isinstance(first, int) and isinstance(last, int) and isinstance(node, list)
    host, port = node[0], node[1]
    name = host.decode() if isinstance(host, bytes) else ""
    # A node that does not know its name says nothing, or a question mark.
    return first, last, (name if name not in ("", "?") else asked, int(port))
