"""Output of commands: cells and messages are plain text, never markup or control sequences."""

from __future__ import annotations

import io
import json
import sys

import click
import pytest

from infra.cli import main
from infra.cli.app import App
from infra.cli.output import printable
from infra.errors import UserError

APP = App(None, False, False, False)
MARKUP = [
    "[/index.html] GET 404",
    "[error] x",
    "Acme [/EU]",
    "[bold]",
    "[link=http://x]y[/link]",
    ":warning:",
    "[[",
    "\\[a]",
]
HOSTILE = {
    "clear screen": ("\x1b[2J", "\\x1b[2J"),
    "window title": ("\x1b]0;pwned\x07", "\\x1b]0;pwned\\x07"),
    "eight-bit CSI": ("\x9b31m", "\\x9b31m"),
    "carriage return": ("a\rb", "a\\rb"),
    "line break": ("a\nb", "a\\nb"),
    "backspace": ("a\bb", "a\\x08b"),
    "delete": ("a\x7fb", "a\\x7fb"),
    "NUL": ("a\0b", "a\\x00b"),
    "right-to-left override": ("a\u202eb", "a\\u202eb"),
    "line separator": ("a\u2028b", "a\\u2028b"),
    "half of a surrogate pair": ("a\ud800b", "a\\ud800b"),
    "byte that was no text": (b"\xff".decode("utf-8", "surrogateescape"), "\\udcff"),
}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed_table(monkeypatch: pytest.MonkeyPatch, rows: list[list[object]], *, terminal: bool) -> str:
    out = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setenv("TERM", "xterm")
    APP.table(["name", "value"], rows)
    return out.getvalue()


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("text", MARKUP)
def test_a_table_cell_is_not_interpreted_as_markup(text: str, terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text in printed_table(monkeypatch, [["0/1", text], ["0/2", None]], terminal=terminal)


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
@pytest.mark.parametrize("case", HOSTILE)
def test_control_characters_in_a_table_cell_are_escaped(
    case: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, shown = HOSTILE[case]
    out = printed_table(monkeypatch, [["0/1", raw]], terminal=terminal)
    assert shown in out
    assert raw not in out


@pytest.mark.parametrize("case", HOSTILE)
def test_json_of_a_command_is_ascii_without_control_characters(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    raw, _ = HOSTILE[case]
    APP.data({"value": raw})
    out = capsys.readouterr().out
    assert all(c == "\n" or " " <= c <= "~" for c in out)
    assert json.loads(out) == {"value": raw}


@pytest.mark.parametrize("verbose", [False, True], ids=["one line", "with -v"])
def test_errors_and_messages_contain_no_escape_sequences(
    verbose: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(**_options: object) -> None:
        APP.say("said \x1b[2J\nsecond line")
        raise UserError("topic \x1b]0;pwned\x07 is missing\nhere")

    monkeypatch.setattr(main.cli, "main", fail)
    monkeypatch.setattr(sys, "argv", ["adclick", *(["-v"] if verbose else [])])
    with pytest.raises(SystemExit):
        main.main()
    stderr = capsys.readouterr().err
    assert "\x1b" not in stderr
    assert stderr.startswith("said \\x1b[2J\nsecond line\n")
    assert "topic \\x1b]0;pwned\\x07 is missing" in stderr
    assert ("Traceback" in stderr) is verbose


def test_usage_errors_repeat_arguments_without_escape_sequences(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["adclick", "\x1b[2J"])
    with pytest.raises(SystemExit):
        main.main()
    stderr = capsys.readouterr().err
    assert "\x1b" not in stderr
    assert "\\x1b[2J" in stderr


def test_columns_are_aligned_by_the_width_of_characters_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed_table(monkeypatch, [["広告", 1], ["ad", 22]], terminal=False).splitlines()
    assert lines == ["name  value", "広告  1", "ad    22"]


@pytest.mark.parametrize("terminal", [False, True], ids=["pipe", "terminal"])
def test_a_row_with_fewer_cells_than_columns_is_shown(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "short" in printed_table(monkeypatch, [["short"], ["long", 1]], terminal=terminal)


def test_a_table_without_rows_is_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    assert printed_table(monkeypatch, [], terminal=False) == "name  value\n"


def test_a_long_table_is_complete_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[object]] = [[f"row-{n}", n] for n in range(1_000)]
    lines = printed_table(monkeypatch, rows, terminal=True).splitlines()
    assert [line.split() for line in lines[1:]] == [[f"row-{n}", str(n)] for n in range(1_000)]


def test_characters_outside_the_encoding_of_the_locale_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, "latin-1"))
    monkeypatch.setattr(main.cli, "main", lambda **_options: click.echo("広 größe"))
    with pytest.raises(SystemExit):
        main.main()
    sys.stdout.flush()
    assert raw.getvalue() == b"\\u5e83 gr\xf6\xdfe\n"


@pytest.mark.parametrize("text", ["größe", "広告 👍", "[/EU]", "a b", ""])
def test_printable_text_is_not_changed(text: str) -> None:
    assert printable(text) == text


def test_the_label_of_a_progress_bar_is_not_interpreted_as_markup() -> None:
    with App(None, False, False, True).progress("[/x]", None) as bar:
        assert bar.tasks[0].description == "[/x]"
