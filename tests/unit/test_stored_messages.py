"""Messages that a worker of a former release wrote are read as what that worker meant by them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ingest import blocks
from ingest.archive import schema as archive_schema
from ingest.partials import Partials
from stream import chunks

FOLDERS = sorted(file.parent for file in (Path(__file__).parents[1] / "stored_messages").glob("*/said.json"))


def decoded(name: str, value: bytes) -> tuple[dict[str, list[Any]], Any]:
    """The columns and the header of a message, by today's code."""
    if name in ("chunk", "base"):
        rows, header = chunks.decode(value, name)
        return {column: values.tolist() for column, values in rows.columns.items()}, header
    table, block_header = blocks.decode_block(value, name)
    if name == "archive":
        return archive_schema.decode_archived(table).to_pydict(), block_header
    partials = Partials.of_arrow(table)
    return {column: values.tolist() for column, values in partials.columns.items()}, block_header


def as_former(value: Any, former: Any) -> Any:
    """A value without the places that lists have got since at their ends, where these are as if they had not been written."""
    if not isinstance(value, list) or not isinstance(former, list):
        return value
    added = value[len(former) :]
    assert not any(added), added
    return [as_former(*pair) for pair in zip(value, former, strict=False)]


@pytest.mark.parametrize("name", ["block", "chunk", "base", "archive", "heartbeat"])
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_message_of_a_former_release_is_read_as_it_was_meant(folder: Path, name: str) -> None:
    meant = json.loads((folder / "said.json").read_text())[name]
    columns, header = decoded(name, (folder / f"{name}.arrow").read_bytes())
    assert {column: columns[column] for column in meant["rows"]} == meant["rows"]
    assert {len(values) for values in columns.values()} == ({60} if meant["rows"] else {0})
    fields = json.loads(msgspec.json.encode(header))
    assert {field: as_former(fields[field], value) for field, value in meant["header"].items()} == meant["header"]


def test_there_are_messages_of_a_former_release() -> None:
    assert "f1a2860" in {folder.name for folder in FOLDERS}
