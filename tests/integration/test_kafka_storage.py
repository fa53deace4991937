"""The storage of the embedded Kafka: what is copied is what Kafka's own tool writes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from infra.embedded import start_commands


def formatted(folder: Path) -> tuple[bytes, dict[str, str]]:
    """The levels of features, and the ids, of a storage that is formatted now."""
    start_commands.kafka(folder, 1, 2)
    lines = (folder / "data" / "meta.properties").read_text().splitlines()
    ids = dict(line.split("=", 1) for line in lines if not line.startswith("#"))
    return (folder / "data" / "bootstrap.checkpoint").read_bytes(), ids


def test_a_storage_is_the_same_whether_it_is_made_by_the_tool_or_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    levels, ids = formatted(tmp_path / "made")
    (kept,) = (tmp_path / "cache" / "adclick").glob("kafka-storage-*")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("Java is started"))
    copied, its_ids = formatted(tmp_path / "copied")
    assert copied == levels
    assert its_ids.keys() == ids.keys()
    assert {key: its_ids[key] for key in ("version", "node.id")} == {key: ids[key] for key in ("version", "node.id")}
    for key in ("cluster.id", "directory.id"):
        assert (its_ids[key] != ids[key], len(its_ids[key])) == (True, len(ids[key]))
    # One that was damaged is not copied.
    kept.write_bytes(kept.read_bytes()[:-1])
    with pytest.raises(pytest.fail.Exception, match="Java is started"):
        formatted(tmp_path / "again")
