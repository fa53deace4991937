"""Set-up says in one line what it cannot do, before it makes anything, and mends what an interrupted one left."""

from __future__ import annotations

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
    """A checkout whose steps do nothing but be counted; one of them may be interrupted."""

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
def test_an_environment_that_cannot_be_built_on_is_made_again(
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
def test_a_python_that_makes_no_environments_is_named_before_anything_is_made(
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


def test_variables_say_where_packages_come_from_and_nothing_else() -> None:
    sources = {"PIP_INDEX_URL": "https://mirror.example", "PIP_CERT": "/c", "PIP_FIND_LINKS": "/w", "PATH": "/bin"}
    foreign = {
        "PIP_USER": "1", "PIP_REQUIRE_VIRTUALENV": "1", "PIP_TARGET": "/t", "PIP_PREFIX": "/p", "PIP_CONSTRAINT": "c",
        "PIP_NO_BINARY": ":all:", "PYTHONHOME": "/h", "PYTHONPATH": "/x", "VIRTUAL_ENV": "/v",
    }  # fmt: skip
    kept = setup.variables(sources | foreign)
    assert sources.items() <= kept.items()
    assert {name: kept[name] for name in kept.keys() - sources.keys()} == {
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


@pytest.mark.parametrize("python", ["/nowhere/python", "sh"])
def test_make_names_what_is_no_fitting_python(python: str) -> None:
    result = subprocess.run(
        ["make", "--no-print-directory", "setup", f"PYTHON={python}"], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )  # fmt: skip
    lines = [line for line in result.stderr.splitlines() if not line.startswith("make")]
    assert len(lines) == 1, result.stderr
    assert "Python 3.11 to 3.13 is needed" in lines[0]
