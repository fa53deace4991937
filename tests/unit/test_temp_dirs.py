"""Temporary folders of dead processes are removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from infra import temp_dirs

_OWNER = "from infra import temp_dirs\nwith temp_dirs.folder('mine-') as f:\n    print(f, flush=True)\n    input()"


def owner(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    env = os.environ | {"TMPDIR": str(parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", _OWNER], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    folder = Path(process.stdout.readline().strip())
    os.utime(folder, (0, 0))
    return process, folder


def test_folders_of_killed_processes_are_removed_and_those_in_use_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    killed, left = owner(tmp_path)
    killed.kill()
    killed.wait()
    living, used = owner(tmp_path)
    assert left.exists() is False, "the next owner removed it"
    (tmp_path / "mine-of-another").mkdir()
    with temp_dirs.folder("mine-") as own:
        assert {p.name for p in tmp_path.iterdir()} == {own.name, used.name, "mine-of-another"}
    living.communicate("\n")
    assert [p.name for p in tmp_path.iterdir()] == ["mine-of-another"]
