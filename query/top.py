"""Top lists: the groups of a dimension that have most of a measure, over the last minutes, hours or days. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from query.bad_question import BadQuestion
from query.parameters import collect_parameters, parse_limit
from query.question import ALL_ADVERTISERS, MEASURES, Question, Retention, parse_question
from query.row_scope import RowScope

DIMENSIONS = {
    "campaign": "campaign_id",
    "ad": "ad_id",
    "publisher": "publisher_id",
    "country": "country",
    "device": "device",
}
"""What a list may be of, and the dimension of questions that this is."""
USUAL_RANGE, USUAL_GROUPS, USUAL_MEASURE = "1h", 50, "clicks"


def parse_top_question(
    parameters: Sequence[tuple[str, str]], now_ms: int, retention: Retention, scope: RowScope, *, admin: bool
) -> Question:
    """The question about totals whose rows are the list, the largest first. Raises BadQuestion."""
    values, _ = collect_parameters(parameters, ("dimension", "by", "range", "k", "advertiser_id"))
    dimension, by = values.get("dimension", "campaign"), values.get("by", USUAL_MEASURE)
    if dimension not in DIMENSIONS:
        raise BadQuestion("dimension", f"dimension must be one of {', '.join(DIMENSIONS)}, not {dimension[:40]!r}")
    if by not in MEASURES:
        raise BadQuestion("by", f"by must be one of {', '.join(MEASURES)}, not {by[:40]!r}")
    range_ = values.get("range", USUAL_RANGE)
    if not re.fullmatch(r"[0-9]{1,6}[mhd]", range_, re.ASCII) or int(range_[:-1]) == 0:
        raise BadQuestion("range", f"range must be a number of minutes, hours or days like 1h, not {range_[:40]!r}")
    groups = parse_limit({"k": values.get("k", str(USUAL_GROUPS))}, "k")
    group_by = DIMENSIONS[dimension]
    question = {
        "advertiser_id": parse_subject_or_only(values, scope, admin), "start": f"-{range_}", "end": "now",
        "granularity": "total", "group_by": group_by, "top": f"{groups}", "by": by, "order": f"-{by}", "limit": f"{groups}",
        "names": "true",
    }  # fmt: skip
    return parse_question(list(question.items()), now_ms, retention, scope, admin=admin)


def parse_subject_or_only(values: dict[str, str], scope: RowScope, admin: bool) -> str:
    """Whose rows a list is about: the advertiser that is named, or else the only one that the key may see, or for admin keys all. Raises
    BadQuestion."""
    if values.get("advertiser_id"):
        return values["advertiser_id"]
    if scope.advertisers is not None and len(scope.advertisers) == 1:
        return f"{next(iter(scope.advertisers))}"
    if admin:
        return ALL_ADVERTISERS
    raise BadQuestion("advertiser_id", "advertiser_id is missing: this key may see several advertisers; name one")
