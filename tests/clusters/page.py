"""The commands of the page on operation that are about clusters. Pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
_CHAPTERS = ("On a cluster", "The archive")
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.M | re.S)
UNTESTED = "**Untested: "


@dataclass(frozen=True)
class Block:
    """A fenced block of commands. `before`: what its section says above it."""

    lines: tuple[str, ...]
    before: str

    @property
    def is_untested(self) -> bool:
        """Whether the page says that nobody has run it."""
        return UNTESTED in self.before

    @property
    def settings(self) -> list[str]:
        """NAME=VALUE of its exports."""
        words = [shlex.split(line, comments=True) for line in self.lines]
        return [word for first, *rest in words if first == "export" for word in rest]

    @property
    def commands(self) -> list[str]:
        """What it has beside exports."""
        return [line for line in self.lines if not line.startswith("export ")]


def _sections() -> Iterator[str]:
    for chapter in _CHAPTERS:
        (text,) = re.findall(rf"^## {chapter}$(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S)
        yield from re.split(r"^### ", text, flags=re.M)


def blocks() -> list[Block]:
    """All blocks, as the page has them."""
    return [
        Block(tuple(match[1].splitlines()), section[: match.start()])
        for section in _sections()
        for match in _BLOCK.finditer(section)
    ]


def commands_in_sentences() -> set[str]:
    """The commands that sentences and tables of these sections name, beside fenced blocks."""
    text = "".join(_BLOCK.sub("", section) for section in _sections())
    return {" ".join(span.split()) for span in re.findall(r"`(adclick [^`]+)`", text)}
