"""A setting's value in a file of its own, as orchestrators mount secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from infra.errors import UserError


def read_value(place: str, file: Any) -> str:
    """The text of a file, without blanks and line breaks around it. `place`: the variable or the line that names the file.

    Raises UserError for a file that cannot be read or is empty: an empty secret would protect nothing. No message has the text.
    """
    if not isinstance(file, str) or not file.strip():
        raise UserError(f"{place} must be the name of a file")
    path = file.strip()
    try:
        # Editors on Windows begin a file with a byte order mark.
        text = Path(path).read_text(encoding="utf-8-sig").strip()
    except UnicodeDecodeError:
        raise UserError(f"{place} names {path}, which is not UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{place} names {path}, which cannot be read: {reason}") from error
    if not text:
        raise UserError(f"{place} names {path}, which is empty")
    return text
