"""Files of entries: CSV and NDJSON, read and written row by row. Pure: no backend, no clock."""

from __future__ import annotations

import csv
import difflib
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import msgspec

from infra.errors import UserError
from query.directory.entries import KINDS, BadEntry, Entry, fields_of, parse_cells, parse_entry, required_of
from query.directory.snapshot import Snapshot

FORMATS = ("csv", "ndjson")
COLUMNS = ("kind", *dict.fromkeys(name for kind in KINDS for name in fields_of(kind)))
"""Of a CSV file with entries of all kinds."""
_MAX_LINE_BYTES = 64 << 10
_SEPARATORS = ",;\t"
"""Of CSV files: a spreadsheet writes the second where commas are decimal points, and the third as "text"."""
_NAMED_SEPARATOR = re.compile(rf'"?sep=([{_SEPARATORS}])"?\s*', re.IGNORECASE)
_NO_TEXT = re.compile("[\0\udc80-\udcff]")
"""What a head has that is UTF-16, another encoding than UTF-8, or a spreadsheet's own format."""
Row = tuple[int, Entry | BadEntry]
"""The line, from 1, and the entry, or why it cannot be taken."""


def read_rows(file: BinaryIO, form: str, kind: str | None) -> Iterator[Row]:
    """The rows of a file, each of `kind`, or of the kind that it names itself. Raises UserError where its columns are wrong."""
    return _read_csv(file, kind) if form == "csv" else _read_ndjson(file, kind)


def write_rows(snapshot: Snapshot, kinds: tuple[str, ...], form: str, file: BinaryIO) -> int:
    """Write all entries of some kinds, such that `read_rows` reads them again; returns their number."""
    if form == "csv":
        file.write(f"{','.join(COLUMNS)}\n".encode())
    for kind in kinds:
        frame = snapshot.labelled(kind, COLUMNS if form == "csv" else ("kind", *fields_of(kind)))
        frame.write_csv(file, include_header=False) if form == "csv" else frame.write_ndjson(file)
    return sum(snapshot.count(kind) for kind in kinds)


# -- CSV --------------------------------------------------------------------------------------------------------


def _read_csv(file: BinaryIO, kind: str | None) -> Iterator[Row]:
    # Bytes that are no UTF-8 make their row a bad one, not the file.
    text = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
    head = _read_head(text)
    reader = csv.reader(text, delimiter=head.separator, strict=True)
    _check_columns(head.names, kind)
    while True:
        line = head.line + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield line, BadEntry("", f"this is not CSV: {error}")
            continue
        # Spreadsheets write empty rows and columns as separators with nothing between them.
        while len(cells) > len(head.names) and not cells[-1].strip():
            cells.pop()
        if any(cell.strip() for cell in cells):
            yield line, _entry_of_cells(head.names, cells, kind)
    text.detach()


class _Head(NamedTuple):
    """The columns of a file, what separates its cells, and its line."""

    names: list[str]
    separator: str
    line: int


def _read_head(text: io.TextIOWrapper) -> _Head:
    """The first line that is not empty. Its separator is the file's, as is one that `sep=` names on a line before it."""
    separator, number, line = "", 0, ""
    while not line.strip(_SEPARATORS + " \r\n"):
        number += 1
        if not (line := text.readline(_MAX_LINE_BYTES)):
            raise UserError("the file is empty", hint=f"its first line names the columns, of {', '.join(COLUMNS)}")
        if not separator and (named := _NAMED_SEPARATOR.fullmatch(line)):
            separator, line = named[1], ""
    if _NO_TEXT.search(line):
        raise _no_text(number)
    separator = separator or next((s for s in _SEPARATORS if s in line), ",")
    try:
        names = [name.strip() for name in next(csv.reader([line], delimiter=separator, strict=True))]
    except csv.Error as error:
        raise UserError(f"line {number} is no head of a CSV file: {error}") from error
    while names and not names[-1]:
        names.pop()
    return _Head(names, separator, number)


def _no_text(line: int) -> UserError:
    hint = "in a spreadsheet, save the sheet as CSV UTF-8, not in another form"
    return UserError(f"line {line} is no text in UTF-8", hint=hint)


def _check_columns(names: list[str], kind: str | None) -> None:
    known = COLUMNS if kind is None else ("kind", *fields_of(kind))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise UserError(f"no such column: {name[:40]!r}", hint=hint)
        if names.count(name) > 1:
            raise UserError(f"the column {name} is there twice")
    required = ("kind", "id", "name") if kind is None else required_of(kind)
    for name in required:
        if name not in names:
            hint = "give --kind, or a column that says it" if name == "kind" else "each entry has one"
            raise UserError(f"the file has no column {name}", hint=hint)


def _entry_of_cells(names: list[str], cells: list[str], kind: str | None) -> Entry | BadEntry:
    if len(cells) != len(names):
        return BadEntry("", f"the row has {len(cells)} cells, and the head {len(names)}")
    values = dict(zip(names, cells, strict=True))
    try:
        return parse_cells(_kind_of_row(values.pop("kind", None) or None, kind), values)
    except BadEntry as error:
        return error


# -- NDJSON -----------------------------------------------------------------------------------------------------


def _read_ndjson(file: BinaryIO, kind: str | None) -> Iterator[Row]:
    number = 0
    while line := file.readline(_MAX_LINE_BYTES + 1):
        number += 1
        if b"\0" in line:
            raise _no_text(number)
        if len(line) > _MAX_LINE_BYTES:
            while line and not line.endswith(b"\n"):
                line = file.readline(_MAX_LINE_BYTES)
            yield number, BadEntry("", f"the line has more than {_MAX_LINE_BYTES} bytes")
        elif line.strip():
            yield number, _entry_of_line(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, kind)


def _entry_of_line(line: bytes, kind: str | None) -> Entry | BadEntry:
    try:
        values = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return BadEntry("", f"this is not JSON: {error}")
    if not isinstance(values, dict):
        return BadEntry("", "this is not a JSON object")
    try:
        return parse_entry(_kind_of_row(values.pop("kind", None), kind), values)
    except BadEntry as error:
        return error


def _kind_of_row(named: Any, kind: str | None) -> str:
    if named is None and kind is None:
        raise BadEntry("kind", f"kind is missing; it is one of {', '.join(KINDS)}, or give --kind")
    if named is not None and named not in KINDS:
        raise BadEntry("kind", f"kind must be one of {', '.join(KINDS)}, not {named!r:.60}")
    if None not in (named, kind) and named != kind:
        raise BadEntry("kind", f"kind is {named}, and --kind is {kind}")
    return named or kind or ""
