"""Set-up reports in one line what it cannot do, before it changes anything, and replaces what an interrupted one left."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from infra import setup

STEPS = ("python -m venv", "installing the build tools", "installing the packages", "installing adclick", "compiling")
REPOSITORY = Path(__file__).resolve().parents[2]


class Checkout:
    """A checkout whose steps are only recorded; one of them may be interrupted."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.venv = root, root / ".venv"
        self.steps: list[str] = []
        self.interrupted_at = ""
        for lock in ("requirements.lock", "requirements-java.lock", "pyproject.toml"):
            (root / lock).write_text(f"setuptools==1 \\\n    --hash=sha256:0\n# {lock}\n")
        for name, value in (
            ("ROOT", root), ("VENV", self.venv), ("PYTHON", self.venv / "bin" / "python"),
            ("STAMP", self.venv / ".adclick-lock"), ("LOCKS", sorted(root.iterdir())), ("run", self._run),
        ):  # fmt: skip
            monkeypatch.setattr(setup, name, value)

    def _run(self, step: str, *_command: str) -> None:
        self.steps.append(step)
        if step == STEPS[0]:
            subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self.venv)], check=True)
            (pip := next(self.venv.glob("lib/python*/site-packages")) / "pip").mkdir()
            (pip / "__init__.py").write_text("")
        if step == self.interrupted_at:
            raise KeyboardInterrupt


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    return Checkout(tmp_path, monkeypatch)


def test_a_finished_setup_is_not_done_again(checkout: Checkout) -> None:
    setup.make_venv()
    assert checkout.steps == list(STEPS)
    setup.make_venv()
    assert checkout.steps == list(STEPS)
    (checkout.root / "requirements.lock").write_text("setuptools==2\n")
    setup.make_venv()
    assert checkout.steps == [*STEPS, *STEPS[1:]]


@pytest.mark.parametrize("step", STEPS)
def test_after_an_interruption_setup_begins_anew(
    checkout: Checkout, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout.interrupted_at = step
    with pytest.raises(KeyboardInterrupt):
        setup.make_venv()
    (checkout.venv / "half-made").touch()
    checkout.steps, checkout.interrupted_at = [], ""
    setup.make_venv()
    assert checkout.steps == list(STEPS)
    assert "making .venv again" in capsys.readouterr().err
    assert not (checkout.venv / "half-made").exists()


def without_pip(venv: Path) -> None:
    shutil.rmtree(next(venv.glob("lib/python*/site-packages/pip")))


def without_interpreter(venv: Path) -> None:
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/nowhere/python3.11")


def of_another_python(venv: Path) -> None:
    stamp = venv / ".adclick-lock"
    stamp.write_text(stamp.read_text().replace(sys.version.split()[0], "3.9.18"))


def moved(venv: Path) -> None:
    stamp = venv / ".adclick-lock"
    stamp.write_text(stamp.read_text().replace(str(venv), "/elsewhere/.venv"))


def of_another_tool(venv: Path) -> None:
    (venv / ".adclick-lock").unlink()


def a_file(venv: Path) -> None:
    shutil.rmtree(venv)
    venv.write_text("")


def a_link_to_nothing(venv: Path) -> None:
    shutil.rmtree(venv)
    venv.symlink_to("/nowhere/venv")


DAMAGES = [without_pip, without_interpreter, of_another_python, moved, of_another_tool, a_file, a_link_to_nothing]


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unusable_environment_is_made_again(
    checkout: Checkout, damage: Callable[[Path], None], capsys: pytest.CaptureFixture[str]
) -> None:
    setup.make_venv()
    damage(checkout.venv)
    checkout.steps = []
    capsys.readouterr()
    setup.make_venv()
    assert checkout.steps == list(STEPS)
    assert capsys.readouterr().err.splitlines()[0].startswith("setup: making .venv again: ")
    assert setup.reason_to_make_again() == ""


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_without_venv_is_reported_before_anything_is_changed(
    checkout: Checkout, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout.venv.mkdir()
    (checkout.venv / "mine").touch()
    monkeypatch.setattr(setup, "find_spec", lambda name: None if name == module else object())
    with pytest.raises(setup.Failure, match=rf"has no {module}.*install python3\.\d+-venv"):
        setup.make_venv()
    assert (checkout.venv / "mine").exists()
    assert checkout.steps == []


def test_a_checkout_that_cannot_be_written_is_named(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, _mode: path != checkout.root)
    with pytest.raises(setup.Failure, match="cannot be written"):
        setup.make_venv()
    assert checkout.steps == []


def test_a_checkout_with_a_colon_in_its_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "ROOT", Path("/a:b"))
    with pytest.raises(setup.Failure, match="colon"):
        setup.check_machine()


def test_only_variables_about_package_sources_are_passed_on() -> None:
    sources = {"PIP_INDEX_URL": "https://mirror.example", "PIP_CERT": "/c", "PIP_FIND_LINKS": "/w", "PATH": "/bin"}
    foreign = {
        "PIP_USER": "1", "PIP_REQUIRE_VIRTUALENV": "1", "PIP_TARGET": "/t", "PIP_PREFIX": "/p", "PIP_CONSTRAINT": "c",
        "PIP_NO_BINARY": ":all:", "PYTHONHOME": "/h", "PYTHONPATH": "/x", "VIRTUAL_ENV": "/v",
    }  # fmt: skip
    passed_on = setup.variables(sources | foreign)
    assert sources.items() <= passed_on.items()
    assert {name: passed_on[name] for name in passed_on.keys() - sources.keys()} == {
        "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("output", "line"),
    [
        ("Collecting x\nERROR: No matching distribution found for x\nmore\n", "ERROR: No matching distribution found for x"),
        ("WARNING: Retrying\nERROR: [Errno 28] No space left on device\n", "no space left on device"),
        (
            "WARNING: Retrying (Retry(total=0)) after connection broken by 'NameResolutionError(\"x\")': /simple/x/\n"
            "ERROR: No matching distribution found for x\n",
            "the package index cannot be reached",
        ),
        ("Segmentation fault\n\n", "Segmentation fault"),
        ("", "it printed nothing"),
    ],
)  # fmt: skip
def test_why_a_step_failed_is_one_line(output: str, line: str) -> None:
    assert setup.cause(output).startswith(line)


@pytest.mark.parametrize(
    ("output", "progress"),
    [
        ("", ""),
        ("Looking in links: /wheels\nIgnoring colorama: markers do not match\n", ""),
        ("Ignoring a: markers\nCollecting b==1\n  Downloading b.whl\nCollecting c==1\n", "package 2 of 9, "),
        ("Requirement already satisfied: a\nCollecting b==1\n", "package 2 of 10, "),
        ("Collecting a==1\nCollecting b==1\nInstalling collected packages: a, b\n", "unpacking 2 packages, "),
    ],
)
def test_progress_is_read_from_the_output_of_pip(output: str, progress: str) -> None:
    assert setup.pip_progress(output, 10) == progress


def test_a_long_step_reports_its_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "PROGRESS_EVERY_S", 0.2)
    monkeypatch.setattr(setup, "VERBOSE", False)
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    (tmp_path / "a.lock").write_text("b==1 \\\n    --hash=sha256:0\nc==1\n")
    program = "import time; print('Collecting b==1', flush=True); time.sleep(3)"
    setup.run("installing", sys.executable, "-c", program, "-r", "a.lock")
    lines = capsys.readouterr().err.splitlines()
    assert any(re.fullmatch(r"setup: installing: package 1 of 2, \d+ s so far", line) for line in lines), lines


@pytest.mark.parametrize(("words", "lines"), [(["setup"], 1), ([], 0)], ids=["make setup", "before another target"])
def test_the_last_line_of_make_setup_says_what_is_ready_and_what_comes_next(
    words: list[str], lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    for step in ("make_venv", "find_java", "fetch_jars"):
        monkeypatch.setattr(setup, step, lambda: None)
    monkeypatch.setattr(sys, "argv", ["infra/setup.py", *words])
    assert setup.main() == 0
    lines_printed = capsys.readouterr().err.splitlines()
    assert len(lines_printed) == lines
    assert all(".venv/bin/adclick" in line and "`make demo`" in line for line in lines_printed)


@pytest.mark.parametrize("python", ["/nowhere/python", "sh"])
def test_make_names_an_unsuitable_python(python: str) -> None:
    result = subprocess.run(
        ["make", "--no-print-directory", "setup", f"PYTHON={python}"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, result.stderr
    assert "Python 3.11 to 3.13 is needed" in lines[0]
