"""Types of settings: what a value is checked for, and brought into form by. Pure."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr

from infra import addresses

MOST = 2**31 - 1
"""What librdkafka, ClickHouse and Kafka take for a number at most."""
_SECRET_CHARACTERS = 32


def no_flag(value: Any) -> Any:
    """Refuse true and false, which Python takes for numbers. Raises ValueError."""
    if isinstance(value, bool):
        raise ValueError("should be a number")
    return value


def _line(value: Any) -> Any:
    """Text as it is meant: a value read from a file ends with a line break."""
    return value.strip() if isinstance(value, str) else value


def _sendable(value: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[!-~]*", value.get_secret_value()):
        raise ValueError("must be ASCII without blanks, to be sent in a header")
    return value


def _long_enough(value: SecretStr) -> SecretStr:
    # A token is enough to try secrets offline.
    if 0 < len(value.get_secret_value()) < _SECRET_CHARACTERS:
        raise ValueError(f"must have at least {_SECRET_CHARACTERS} characters, or none")
    return value


Count = Annotated[int, BeforeValidator(no_flag), Field(le=MOST)]
Share = Annotated[float, BeforeValidator(no_flag), Field(ge=0, le=1, allow_inf_nan=False)]
Secret = Annotated[SecretStr, BeforeValidator(_line)]
TokenSecret = Annotated[Secret, AfterValidator(_long_enough)]
Key = Annotated[Secret, AfterValidator(_sendable)]
WebAddress = Annotated[str, AfterValidator(addresses.check_web)]
