"""Set-up of a fresh machine, with nothing but the standard library: `make setup` runs this.

Makes `.venv` from the hashed lock, fetches a Java where the machine has none, and Kafka's jars into a per-user cache, checked by
SHA-256. Each step is skipped when it is done already. A `.venv` without the mark of a finished set-up is made again from the
start: an interrupted set-up, or another tool, may have left anything in it.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".adclick-lock"
LOCKS = [ROOT / "requirements.lock", ROOT / "requirements-java.lock", ROOT / "pyproject.toml"]
# Run from within `.venv` itself, that may be made again: by what it was made from.
INTERPRETER = getattr(sys, "_base_executable", sys.executable)
VERBOSE = bool(os.environ.get("V"))
NEEDED_BYTES = 3 << 30
PROGRESS_EVERY_S = 15.0
READY = (
    "ready: .venv/bin/adclick, with Kafka, Redis, ClickHouse and Java. Next: `make demo` checks all of it on a day of events, "
    "`.venv/bin/adclick up` starts a stack (see README.md)"
)

# Where packages come from is the machine's affair; where they go to, and which of them, is ours.
_PIP_SOURCES = frozenset(
    "PIP_" + name
    for name in (
        "INDEX_URL", "EXTRA_INDEX_URL", "FIND_LINKS", "TRUSTED_HOST", "CERT", "CLIENT_CERT", "PROXY", "TIMEOUT",
        "DEFAULT_TIMEOUT", "RETRIES", "CACHE_DIR", "NO_CACHE_DIR", "CONFIG_FILE", "KEYRING_PROVIDER", "USE_FEATURE",
        "USE_DEPRECATED", "NO_INDEX",
    )
)  # fmt: skip


class Failure(Exception):
    """Why set-up cannot go on: one line."""


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"setup: {text}", file=sys.stderr, flush=True)


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that the steps are given: nothing that changes which Python runs, or where pip installs to."""
    kept = {
        name: value
        for name, value in environment.items()
        if (
            not name.startswith(("PYTHON", "PIP_"))
            and name not in ("VIRTUAL_ENV", "CONDA_PREFIX", "__PYVENV_LAUNCHER__")
        )
        or name in _PIP_SOURCES
    }
    # A file of pip's configuration may say the same; variables are stronger.
    return kept | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def run(what: str, *command: str) -> None:
    """Run a step. Raises Failure with the line that says what is wrong; all of its output is shown with V=1."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables(os.environ), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=_die_with_parent,
    )  # fmt: skip
    files = [ROOT / word for option, word in pairwise(command) if option == "-r"]
    packages = sum(len(re.findall(r"^[\w.-]+==", file.read_text(), re.M)) for file in files)
    output = finish(what, process, packages)
    if VERBOSE:
        print(output, file=sys.stderr)
    if process.returncode:
        raise Failure(f"{what} failed: {cause(output)} (V=1 shows all; `make setup` can simply be run again)")


def finish(what: str, process: subprocess.Popen[bytes], packages: int = 0) -> str:
    """Wait for a step to end, and say now and then how far it is; returns what it printed. `packages`: how many pip installs."""
    began = time.monotonic()
    try:
        while True:
            try:
                output, _ = process.communicate(timeout=PROGRESS_EVERY_S)
                return (output or b"").decode(errors="replace")
            except subprocess.TimeoutExpired as waiting:
                progress = pip_progress((waiting.output or b"").decode(errors="replace"), packages)
                say(f"{what}: {progress}{time.monotonic() - began:.0f} s so far")
    except BaseException:
        process.kill()
        process.wait()
        raise


def pip_progress(output: str, packages: int) -> str:
    """How far pip is with so many packages, by its output; empty where that does not tell."""
    lines = output.splitlines()
    begun = sum(line.startswith(("Collecting ", "Requirement already satisfied: ")) for line in lines)
    if not begun:
        return ""
    if any(line.startswith("Installing collected packages") for line in lines):
        return f"unpacking {begun} packages, "
    return f"package {begun} of {packages - sum(line.startswith('Ignoring ') for line in lines)}, "


def _die_with_parent() -> None:
    """A step that outlives a killed set-up would write into what the next one makes."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def cause(output: str) -> str:
    """The line of a program's output that says what went wrong."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    if any("No space left on device" in line for line in lines):
        return "no space left on device"
    network = ("NameResolutionError", "Failed to establish a new connection", "ProxyError", "ConnectTimeoutError")
    if unreachable := next((line for line in lines if any(word in line for word in network)), None):
        return f"the package index cannot be reached: {unreachable[-160:]}"
    errors = [line for line in lines if line.startswith(("ERROR:", "Error:", "error:"))]
    return (errors[0] if errors else lines[-1] if lines else "it printed nothing")[:300]


def fingerprint() -> str:
    """Changes when anything that the virtual environment is made from changes."""
    digest = hashlib.sha256()
    for lock in LOCKS:
        digest.update(lock.read_bytes())
    return f"{place()}\n{digest.hexdigest()}"


def place() -> str:
    """Which Python the virtual environment is of, and where it lies: its scripts name both."""
    return f"{sys.version}".replace("\n", " ") + f" {sys.base_prefix} {VENV}"


def stamp() -> str:
    """The mark of the last set-up that was finished; empty when there is none."""
    try:
        return STAMP.read_text()
    except (OSError, ValueError):
        return ""


def works() -> bool:
    """Whether the virtual environment's own interpreter starts, and finds pip."""
    try:
        probe = subprocess.run(
            [str(PYTHON), "-c", "import pip, sys; print(sys.version)"],
            capture_output=True, text=True, env=variables(os.environ),
        )  # fmt: skip
    except OSError:
        return False
    return probe.returncode == 0 and probe.stdout.strip() == sys.version.strip()


def reason_to_make_again() -> str:
    """Why the virtual environment that is there cannot be built on; empty when it can be, or when there is none."""
    if not (VENV.exists() or VENV.is_symlink()):
        return ""
    mark = stamp().partition("\n")[0]
    if not mark:
        return "it is not from a set-up that was finished"
    if mark != place():
        return f"it is of another Python or another folder, and this is Python {sys.version.split()[0]}"
    return "" if works() else "its Python does not start, or has no pip"


def check_machine() -> None:
    """Raises Failure, before anything is made, where set-up could not succeed."""
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise Failure(f"Python 3.11 to 3.13 is needed, this is {sys.version.split()[0]}; try `make PYTHON=python3.11`")
    if sys.platform != "linux":
        raise Failure("adclick runs on Linux (x86-64, or arm64 where wheels exist)")
    if os.pathsep in str(ROOT):
        raise Failure(f"{ROOT} has a colon in its name, which virtual environments cannot have: move the checkout")


def check_before_making() -> None:
    """Raises Failure where the virtual environment could not be made."""
    for module in ("venv", "ensurepip"):
        if find_spec(module) is None:
            version = f"{sys.version_info.major}.{sys.version_info.minor}"
            raise Failure(
                f"{INTERPRETER} has no {module}, which makes virtual environments: install python{version}-venv, "
                "or use another with `make PYTHON=…`"
            )
    if not os.access(ROOT, os.W_OK) or (VENV.is_dir() and not os.access(VENV, os.W_OK)):
        raise Failure(f"{ROOT} cannot be written: clone to a folder of your own")
    if shutil.disk_usage(ROOT).free < NEEDED_BYTES:
        raise Failure(f"{NEEDED_BYTES >> 30} GB of free disk space are needed in {ROOT}")


def make_venv() -> None:
    """The virtual environment with the locked packages, and this project in it."""
    reason = reason_to_make_again()
    if not reason and stamp() == fingerprint():
        return
    check_before_making()
    if reason:
        say(f"making .venv again: {reason}")
        remove(VENV)
    STAMP.unlink(missing_ok=True)
    if not VENV.exists():
        say("making .venv")
        run("python -m venv", INTERPRETER, "-m", "venv", str(VENV))
    pip = [str(PYTHON), "-m", "pip", "install", "--progress-bar", "off", "--no-input"]
    say("installing the locked packages (about 800 MB; some minutes)")
    lock = (ROOT / "requirements.lock").read_text()
    tools = VENV / "build-tools.lock"
    tools.write_text(_entry(lock, "setuptools"))
    run("installing the build tools", *pip, "--require-hashes", "--no-deps", "-r", str(tools))
    # Packages that come as source are built with the locked setuptools, not with whatever is newest.
    run("installing the packages", *pip, "--require-hashes", "--no-build-isolation", "-r", "requirements.lock")
    run("installing adclick", *pip, "--no-deps", "--no-build-isolation", "--editable", ".")
    say("compiling the loops over columns (a quarter of a minute)")
    run("compiling", str(PYTHON), "-m", "stream.warm_up")
    STAMP.write_text(fingerprint())


def remove(path: Path) -> None:
    """Remove what is there in place of the virtual environment: a folder, a file, or a link (not what it names)."""
    if path.is_symlink() or not path.is_dir():
        path.unlink()
        return
    # First the mark: a removal that is interrupted leaves nothing that looks finished.
    STAMP.unlink(missing_ok=True)
    shutil.rmtree(path)


def _entry(lock: str, package: str) -> str:
    """One package's lines of the lock."""
    lines, taking = [], False
    for line in lock.splitlines():
        if line and not line.startswith((" ", "#")):
            taking = line.startswith(f"{package}==")
        if taking and not line.strip().startswith("#"):
            lines.append(line)
    return "\n".join(lines) + "\n"


def find_java() -> None:
    """See that there is a Java 17 or newer; fetch one where there is none. Raises Failure."""
    probe = [str(PYTHON), "-m", "infra.embedded.java"]

    def starts() -> bool:
        return subprocess.run(probe, cwd=ROOT, env=variables(os.environ), capture_output=True).returncode == 0

    if starts():
        return
    say("no Java 17 or newer here: installing one into .venv (100 MB)")
    run(
        "installing Java",
        # An interrupted installation may look like a finished one.
        str(PYTHON), "-m", "pip", "install", "--progress-bar", "off", "--force-reinstall", "--no-deps",
        "--require-hashes", "-r", "requirements-java.lock",
    )  # fmt: skip
    if not starts():
        raise Failure("the Java that was installed does not start; install a Java 17 or newer, or set JAVA_HOME to one")


def fetch_jars() -> None:
    """The jars of Kafka and of the dashboard, by our own module, which says itself what goes wrong."""
    words = [str(PYTHON), "-m", "infra.embedded.jars", *(["-v"] if VERBOSE else [])]
    process = subprocess.Popen(words, cwd=ROOT, env=variables(os.environ), preexec_fn=_die_with_parent)
    finish("fetching jars", process)
    if process.returncode:
        sys.exit(1)


@contextlib.contextmanager
def exclusive_lock() -> Iterator[None]:
    """One set-up of a checkout at a time: a second one waits for the first."""
    descriptor = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another set-up of this checkout is running: waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main() -> int:
    """Run all steps of set-up, in order. With an argument, as `make setup` gives it, say at the end what is ready."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        check_machine()
        with exclusive_lock():
            make_venv()
            find_java()
            fetch_jars()
    except Failure as failure:
        say(f"failed: {failure}")
        return 1
    except OSError as error:
        say(f"failed: {error.filename or ROOT}: {error.strerror}")
        return 1
    except KeyboardInterrupt:
        say("interrupted: `make setup` does the rest")
        return 130
    if len(sys.argv) > 1:
        say(READY)
    return 0


if __name__ == "__main__":
    sys.exit(main())
