"""Parameters of requests that several endpoints take: collected by name, and parsed. Pure."""

from __future__ import annotations

import datetime as dt
import difflib
import re
from collections.abc import Mapping, Sequence

from ingest.events import MAX_INT
from query.bad_question import BadQuestion
from query.row_scope import RowScope

MAX_LIMIT = 10_000
MAX_CAMPAIGNS = 1_000


def collect_parameters(
    parameters: Sequence[tuple[str, str]], known: Sequence[str], *, repeated: str = ""
) -> tuple[dict[str, str], list[str]]:
    """Parameters by name, each given once, and the values of the one that may be repeated. Raises BadQuestion."""
    values, repeated_values = dict[str, str](), list[str]()
    for name, value in parameters:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            raise BadQuestion(name, f"no such parameter: {name}" + (f"; did you mean {near[0]}?" if near else ""))
        if name == repeated:
            repeated_values.append(value)
        elif name in values:
            raise BadQuestion(name, f"{name} is given twice; give it once")
        else:
            values[name] = value
    return values, repeated_values


def parse_visible_subject(values: Mapping[str, str], scope: RowScope) -> tuple[tuple[int, ...], int | None]:
    """Campaigns, or an advertiser, or neither for all that may be seen. Raises BadQuestion, with 403 for what may not be seen."""
    if "campaign_id" in values and "advertiser_id" in values:
        raise BadQuestion("campaign_id", "give campaign_id or advertiser_id, or neither for all that the key may see")
    campaigns = parse_campaigns(values["campaign_id"]) if "campaign_id" in values else ()
    advertiser = parse_id("advertiser_id", values["advertiser_id"]) if "advertiser_id" in values else None
    scope.refuse_foreign(advertiser, campaigns)
    return campaigns, advertiser


def parse_campaigns(text: str) -> tuple[int, ...]:
    """Numbers of campaigns by comma, sorted, each once. Raises BadQuestion."""
    campaigns = [parse_id("campaign_id", part) for part in text.split(",")]
    if len(campaigns) > MAX_CAMPAIGNS:
        raise BadQuestion("campaign_id", f"a question may name {MAX_CAMPAIGNS} campaigns at most, not {len(campaigns)}")
    return tuple(sorted(set(campaigns)))


def parse_id(name: str, text: str) -> int:
    """The number of an advertiser, campaign, ad or publisher. Raises BadQuestion."""
    if not re.fullmatch(r"[0-9]{1,19}", text, re.ASCII) or int(text) > MAX_INT:
        raise BadQuestion(name, f"{name} must be an integer from 0 to 2^63 - 1, not {text[:40]!r}")
    return int(text)


def parse_limit(values: Mapping[str, str], name: str = "limit") -> int:
    """Rows, or groups, at most. Raises BadQuestion."""
    text = values.get(name, str(MAX_LIMIT))
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= MAX_LIMIT:
        raise BadQuestion(name, f"{name} must be a number from 1 to {MAX_LIMIT}, not {text[:40]!r}")
    return int(text)


def parse_date(name: str, text: str) -> dt.date:
    """A day. Raises BadQuestion."""
    try:
        return dt.date.fromisoformat(text if re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII) else "")
    except ValueError:
        raise BadQuestion(name, f"{name} must be a day like 2026-11-20, not {text[:40]!r}") from None
