"""How far the archive has got, in the metadata of its committed offsets: written by the archive worker, read by others."""

from __future__ import annotations

import msgspec


def metadata_of(to_offset: int | None) -> str:
    """The metadata of a committed offset below which every source offset less than `to_offset` is archived."""
    return msgspec.json.encode({"to": to_offset}).decode()


def archived_to(metadata: str) -> int:
    """The source offset below which everything is archived; 0 without metadata."""
    return int(msgspec.json.decode(metadata)["to"]) if metadata else 0
