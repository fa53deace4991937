"""Jars that are not there are fetched by Ivy, which says how far it is; what it brings is judged by its sum alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import user_cache
from infra.embedded import jars, java
from infra.embedded.jars import JarSet
from infra.errors import UserError

JAR = b"a jar"
# Ivy as far as `retrieve` knows it: jars arrive in its cache, then they are copied. $2 is what -retrieve was given.
BRINGS = """
while [ "$1" != -retrieve ]; do shift; done; libs=$(dirname "$2")
while [ "$1" != -cache ]; do shift; done
mkdir -p "$2/a/jars" "$libs"; printf 'CONTENT' > "$2/a/jars/a.jar"; sleep 1; cp "$2/a/jars/a.jar" "$libs/a-1.jar"
"""
AWAY = "echo ':: problems ::'; echo 'SERVER ERROR: java.net.UnknownHostException: repository.example'; exit 1"
Ivy = Callable[[str], JarSet]


@pytest.fixture
def ivy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ivy:
    """A set of one jar, and a Java that runs this script in place of Ivy."""

    class OneJar(JarSet):
        def sums(self) -> dict[str, str]:
            return {"a-1.jar": hashlib.sha256(JAR).hexdigest()}

    def install(script: str) -> JarSet:
        binary = tmp_path / "java"
        binary.write_text(f'#!/bin/sh\n[ "$1" = -version ] && exit 0\n{script.replace("CONTENT", JAR.decode())}\n')
        binary.chmod(0o755)
        return OneJar("one", "One 1", ("g:one:1",), "a jar")

    monkeypatch.setattr(java, "find", lambda: tmp_path / "java")
    monkeypatch.setattr(user_cache, "user_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(jars, "_PROGRESS_EVERY_S", 0.3)
    return install


def test_a_missing_jar_is_fetched_once_with_progress(ivy: Ivy, tmp_path: Path) -> None:
    lines: list[str] = []
    folder = jars.fetch(ivy(BRINGS), lines.append)
    assert (folder / "a-1.jar").read_bytes() == JAR
    assert lines[0] == "fetching One 1 (a jar)"
    assert "One 1: 1 of 1 jars" in lines
    again: list[str] = []
    assert jars.fetch(ivy("exit 1"), again.append) == folder
    assert again == []


def test_a_jar_with_another_sum_is_not_used(ivy: Ivy, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"1 of 1 jars are missing or differ, first a-1\.jar"):
        jars.fetch(ivy(BRINGS.replace("CONTENT", "another")), lambda _: None)
    assert not (tmp_path / "cache" / "one").exists()


def test_the_reason_why_nothing_can_be_fetched_is_one_line_with_what_to_do(ivy: Ivy) -> None:
    with pytest.raises(UserError) as caught:
        jars.fetch(ivy(AWAY), lambda _: None)
    assert "java.net.UnknownHostException: repository.example" in str(caught.value)
    assert "adclick up -v" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ":: problems ::" in caught.value.output
