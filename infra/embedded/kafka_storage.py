"""Kafka's storage, formatted: by Kafka's own tool the first time, later by a copy of what the tool wrote then.

That is the levels of Kafka's features, the same for a release and a configuration. Only the ids of cluster and folder differ, and to
start Java for them takes two seconds.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import subprocess
import uuid
from collections.abc import Sequence
from pathlib import Path

from infra import user_cache
from infra.embedded import exit_reasons, java
from infra.errors import AdclickError

_LEVELS = "bootstrap.checkpoint"
_IDS = "meta.properties"


def is_formatted(data: Path) -> bool:
    """Whether a folder is Kafka's already."""
    return (data / _IDS).exists()


def format_storage(java_line: Sequence[str], folder: Path, data: Path, kind: str) -> None:
    """Make `data` Kafka's, by `server.properties` in `folder`. `kind`: of release and configuration, the same for all whose levels are.
    Raises AdclickError."""
    cluster = uuid.uuid4().hex[:22]
    if (levels := _kept_levels(kind)) is not None:
        copy_storage(data, levels, cluster)
        return
    command = [*java_line, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", "server.properties"]
    result = subprocess.run(
        command, cwd=folder, env=java.environment(), capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    if result.returncode:
        output = result.stdout + result.stderr
        raise AdclickError(
            f"Kafka's storage could not be formatted: {exit_reasons.find_cause(output) or f'it ended with {result.returncode}'}",
            hint="-v shows all of its output",
            output=output,
        )
    with contextlib.suppress(OSError):
        _keep_levels(kind, levels_of(data))


def copy_storage(data: Path, levels: bytes, cluster: str, node: int = 1) -> None:
    """Make `data` the storage of a node of a cluster, as `levels_of` another one are."""
    (data / _LEVELS).write_bytes(levels)
    # Last, for it tells that the folder is formatted.
    temporary = data / f".{_IDS}"
    temporary.write_text(f"version=1\nnode.id={node}\ncluster.id={cluster}\ndirectory.id={_new_id()}\n")
    temporary.replace(data / _IDS)


def levels_of(data: Path) -> bytes:
    """What the tool wrote into a storage."""
    return (data / _LEVELS).read_bytes()


def _kept_levels(kind: str) -> bytes | None:
    """What the tool wrote for such a storage; None where it is not kept, or damaged."""
    try:
        digest, _, levels = _kept_file(kind).read_bytes().partition(b"\n")
    except OSError:
        return None
    return levels if digest == _digest(levels) else None


def _keep_levels(kind: str, levels: bytes) -> None:
    file = _kept_file(kind)
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_bytes(_digest(levels) + b"\n" + levels)
    temporary.replace(file)


def _kept_file(kind: str) -> Path:
    name = hashlib.sha256(kind.encode()).hexdigest()[:16]
    return user_cache.writable_folder() / f"kafka-storage-{name}"


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _new_id() -> str:
    """A random id as Kafka writes them. One that begins with a dash would look like an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
