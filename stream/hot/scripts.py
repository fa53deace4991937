"""Loads the Lua scripts of the hot tier. What a script takes and returns is at its top."""

from __future__ import annotations

from functools import cache
from importlib import resources

from infra.redis.client import Redis, Script
from stream.hot import layout


def apply_flush(redis: Redis) -> Script:
    """`apply.lua`: show a flush."""
    return redis.script(_source("cells", "apply"))


def pack_cells(redis: Redis) -> Script:
    """`pack.lua`: pack cells of a closed minute."""
    return redis.script(_source("cells", "pack"))


def move_late(redis: Redis) -> Script:
    """`move_late.lua`: keep rows by flush of a minute that no worker holds any more."""
    return redis.script(_source("cells", "move_late"))


def drop_hours(redis: Redis) -> Script:
    """`drop.lua`: drop hours that are old."""
    return redis.script(_source("drop"))


@cache
def _source(*names: str) -> str:
    folder = resources.files(__package__)
    return "\n".join([layout.lua_constants(), *((folder / f"{name}.lua").read_text() for name in names)])
