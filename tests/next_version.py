"""A worker of a later release, as far as its peers can tell: what it writes has a higher schema version, and it reads all up to that one."""

from __future__ import annotations

from collections.abc import Mapping

from ingest import blocks
from stream import chunks

_VARIABLE = "TEST_SCHEMA_VERSION"


def variables(version: int) -> dict[str, str]:
    """For a process that is to be of a release with this version."""
    return {_VARIABLE: str(version)}


def of(environment: Mapping[str, str]) -> int:
    """The version of a process with these variables."""
    return int(environment.get(_VARIABLE, blocks.SCHEMA_VERSION))


def become(environment: Mapping[str, str]) -> None:
    """Be of the release that the variables name, if they do."""
    if _VARIABLE in environment:
        version = of(environment)
        blocks.SCHEMA_VERSION = chunks.SCHEMA_VERSION = version
        blocks.READABLE_VERSIONS = tuple(range(1, version + 1))
