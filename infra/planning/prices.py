"""Prices by which a plan is costed."""

from __future__ import annotations

import math
import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

import msgspec

from infra.errors import UserError
from infra.structs import decodable

EXAMPLES = Path(__file__).with_name("prices.toml")


@decodable
@dataclass(frozen=True)
class Prices:
    """Of a unit each; a GB is 10⁹ bytes, a month 730 hours."""

    currency: str
    core_hour: float
    memory_gb_month: float
    ssd_gb_month: float
    object_gb_month: float
    zone_gb: float


def load_prices(path: Path = EXAMPLES) -> Prices:
    """Read a price file. Raises UserError, which names the file and what is wrong in it."""
    hint = f"it has {', '.join(field.name for field in fields(Prices))}"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # of TOML, and of UTF-8
        raise UserError(f"{path} is not TOML: {error}", hint=hint) from error
    if unknown := sorted(set(values) - {field.name for field in fields(Prices)}):
        raise UserError(f"{path}: no price is called {unknown[0]}", hint=hint)
    try:
        prices = msgspec.convert(values, Prices)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}", hint=hint) from error
    for name in unit_prices(prices):
        if not (math.isfinite(price := getattr(prices, name)) and price >= 0):
            raise UserError(f"{path}: {name} is {price}", hint="a price is 0 or more")
    return prices


def unit_prices(prices: Prices) -> list[str]:
    """Names of all prices."""
    return [field.name for field in fields(prices) if field.name != "currency"]
