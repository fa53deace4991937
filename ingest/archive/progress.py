"""How far the archive has got, in the metadata of its committed offsets: written by the archive worker, read by others."""

from __future__ import annotations

import msgspec


def metadata_of(to_offset: int | None, canary_ms: int = 0) -> str:
    """The metadata of a committed offset below which every source offset less than `to_offset` is archived. `canary_ms`: when the last
    canary before that was sent; 0 where there was none."""
    return msgspec.json.encode({"to": to_offset, "canary": canary_ms}).decode()


def archived_to(metadata: str) -> int:
    """The source offset below which everything is archived; 0 without metadata."""
    return int(msgspec.json.decode(metadata)["to"]) if metadata else 0


def archived_canary_ms(metadata: str) -> int:
    """When the last canary that the archive has passed was sent; 0 where there was none, and in metadata of earlier releases."""
    return int(msgspec.json.decode(metadata).get("canary", 0)) if metadata else 0
