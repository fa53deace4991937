"""Folders to work in do not pile up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra import scratch

_OWNER = "from infra import scratch\nwith scratch.folder('mine-') as f:\n    print(f, flush=True)\n    input()"


def owner(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    env = os.environ | {"TMPDIR": str(parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    made = Path(process.stdout.readline().strip())
    os.utime(made, (0, 0))
    return process, made


def test_what_a_killed_process_left_goes_and_what_is_used_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, left = owner(tmp_path)
    killed.kill()
    killed.wait()
    living, used = owner(tmp_path)
    assert left.exists() is False, "the next owner removed it"
    (tmp_path / "mine-of-somebody").mkdir()
    with scratch.folder("mine-") as made:
        assert {p.name for p in tmp_path.iterdir()} == {made.name, used.name, "mine-of-somebody"}
    living.communicate("\n")
    assert [p.name for p in tmp_path.iterdir()] == ["mine-of-somebody"]
