"""Where settings are read from: variables, the TOML file, and files that have one value each. Knows their names, and no more of them."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from infra.errors import UserError

PREFIX = "ADCLICK_"
# Variables that are read elsewhere: where settings are, a worker's name, a fault for tests.
OTHER_VARIABLES = frozenset({"ADCLICK_CONFIG", "ADCLICK_DIR", "ADCLICK_WORKER", "ADCLICK_FAULT"})
# Kubernetes sets ADCLICK_X_SERVICE_HOST, …_SERVICE_PORT and …_PORT… in every container beside a Service named `adclick-x`.
_SERVICE_HOST = "_SERVICE_HOST"


def read_environment(environment: Mapping[str, str], known: Collection[str]) -> dict[str, str]:
    """The settings among the variables. Raises UserError for an ADCLICK_ variable that is none, or that is there twice."""
    values: dict[str, str] = {}
    sources: dict[str, str] = {}
    for variable, value in sorted(environment.items()):
        upper, name = variable.upper(), setting_of(variable)
        if not upper.startswith(PREFIX) or upper in OTHER_VARIABLES:
            continue
        if name not in known:
            if not _from_kubernetes(upper, environment):
                every = {n.removeprefix(PREFIX).lower() for n in OTHER_VARIABLES} | set(known)
                raise UserError(
                    f"no such setting: {variable}", hint=_nearest(name, every, lambda n: PREFIX + n.upper())
                )
            continue
        if values.get(name, value) != value:
            raise UserError(f"{sources[name]} and {variable} differ", hint="unset one of them")
        values[name], sources[name] = value, variable
    return values


def setting_of(variable: str) -> str:
    """The setting that a variable is of, if it is one's."""
    upper = variable.upper()
    return upper.removeprefix(PREFIX).lower() if upper.startswith(PREFIX) else ""


def _from_kubernetes(variable: str, environment: Iterable[str]) -> bool:
    services = [name.removesuffix(_SERVICE_HOST) for name in environment if name.endswith(_SERVICE_HOST)]
    return any(variable.startswith((f"{service}_SERVICE_", f"{service}_PORT")) for service in services)


def read_toml(path: Path, known: Collection[str], setting: str = "ADCLICK_CONFIG") -> dict[str, Any]:
    """The settings in the file that a setting names. Raises UserError for one that is none, and for a file that cannot be read."""
    try:
        # Editors on Windows begin a file with a byte order mark.
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise UserError(f"{setting} names {path}, which does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {_reason(error)}") from error
    for name, value in values.items():
        if name in known:
            continue
        if isinstance(value, dict):
            raise UserError(f"{path}: no such setting: [{name}]", hint="settings stand in no section")
        raise UserError(f"{path}: no such setting: {name}", hint=_nearest(name, known))
    return values


def read_object(file: Path) -> dict[str, Any]:
    """The object in a file of JSON; empty when there is no file. Raises UserError."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {_reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} cannot be read: it holds no JSON object")
    return content


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
    except (OSError, ValueError) as error:
        raise UserError(f"{place} names {path}, which cannot be read: {_reason(error)}") from None
    if not text:
        raise UserError(f"{place} names {path}, which is empty")
    return text


def _nearest(name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """The hint for a name that does not exist; `spell` writes a setting's name as the person would have to."""
    plain = name.lower().replace("-", "_").removeprefix(PREFIX.lower())
    near = difflib.get_close_matches(plain, known, 1)
    return f"did you mean {spell(near[0])}?" if near else "without it, adclick config lists all settings"


def _reason(error: OSError | ValueError) -> str:
    """What a person needs to know of a file that cannot be read."""
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8"
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).splitlines()[0]
