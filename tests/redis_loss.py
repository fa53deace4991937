"""A Redis that comes back empty, or from an older file."""

from __future__ import annotations

from infra.redis.client import Redis


def lose_keys(redis: Redis, pattern: str) -> None:
    """Delete all keys that match."""
    for key in redis.scan_keys(pattern):
        redis.call("DEL", key)


def dump_keys(redis: Redis, pattern: str) -> dict[bytes, bytes]:
    """All keys that match, and their values as DUMP gives them."""
    return {key: redis.call("DUMP", key) for key in redis.scan_keys(pattern)}


def go_back(redis: Redis, pattern: str, dump: dict[bytes, bytes]) -> None:
    """Let the keys that match be those of an earlier dump again, and no others."""
    lose_keys(redis, pattern)
    for key, value in dump.items():
        redis.call("RESTORE", key, 0, value)
