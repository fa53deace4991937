"""Why a server that we started ended: the line of its own output that says so. Pure."""

from __future__ import annotations

import re

_LONGEST = 300
# Of these the first one names the cause: what follows is its consequence.
_FIRST = [
    re.compile(pattern)
    for pattern in (
        r"No space left on device|Disk quota exceeded|File too large|NOT_ENOUGH_SPACE",
        r"[Tt]oo many open files|ulimit|Could not create server TCP listening socket|Address already in use",
        r"Read-only file system|Permission denied|AccessDeniedException",
        r"insufficient memory|Could not reserve enough space|OutOfMemoryError|Cannot allocate memory|MEMORY_LIMIT_EXCEEDED",
        r"Error opening zip file|Unrecognized (?:VM )?option|Invalid maximum heap size|UnsupportedClassVersionError",
        r"Bad file format|Unexpected end of file|Fatal error loading|Wrong signature",
        r"Code: \d+\. DB::\w*Exception",
    )
]
_CAUSED = re.compile(r"^Caused by: (.*(?:Exception|Error)\b.*)")
# Java names an exception with its package, Python without.
_EXCEPTION = re.compile(r"^(?:[\w$]+\.)*[\w$]+(?:Exception|Error)(?:: .*)?$")
_PACKAGE = re.compile(r"\b(?:[a-z_][\w$]*\.)+(?=[A-Z][\w$]*(?:Exception|Error)\b)")
_NOISE = re.compile(
    r"^\s+at |^\s*\.\.\. \d+ more|^Traceback|^  File \"|^    |^SLF4J|^Picked up |^\s*\d+\. |^#?\s*$"
    r"|^Logging (?:trace|errors) to |^Initializing subsystem|Uninitializing subsystem"
)
# What stands before the text of a line: time and level as Redis, ClickHouse, log4j and the JVM write them.
_HEAD = re.compile(
    r"^(?:\d+:[A-Z] \d+ \w+ \d+ [\d:.]+ [#*.-] (?:Warning: )?"
    r"|[\d.:\-,T ]{19,}(?:\[ \d+ \] \{[^}]*\} )?(?:<\w+> )?(?:(?:ERROR|FATAL|WARN) )?"
    r"|# )"
)


def find_cause(output: str) -> str:
    """The line that names the cause, without time and level; the last one that says anything where none does; empty for no output."""
    lines = [line for line in output.splitlines() if not _NOISE.search(line)]
    for pattern in _FIRST:
        for line in lines:
            if pattern.search(line):
                return _text(line)
    caused = [match[1] for line in lines if (match := _CAUSED.search(line))]
    exceptions = [line for line in lines if _EXCEPTION.search(line)]
    return _text((caused[-1:] or exceptions[:1] or lines[-1:] or [""])[0])


def ending(code: int) -> str:
    """How a process ended that said nothing: by which signal, or with which exit code."""
    if code == -9:
        return "it was killed (signal 9), as Linux does when memory runs out"
    return f"it was ended by signal {-code}" if code < 0 else f"it ended with exit code {code}"


def _text(line: str) -> str:
    text = _HEAD.sub("", line).strip().removeprefix("Caused by: ").removeprefix("adclick: ")
    return _PACKAGE.sub("", text)[:_LONGEST]
