"""Which questions can have users: they are counted by whole hours of UTC, by campaign and advertiser. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from query.bad_question import BadQuestion
from query.buckets import Buckets


def refuse_unless_counted(
    buckets: Buckets, group_by: Sequence[str], filtered: Sequence[str], *, compares: bool
) -> None:
    """Raise BadQuestion where users are not counted in these buckets, by these dimensions, or of rows with these filters."""
    if buckets.grain == "minute":
        detail = "users are counted by whole hours, so granularity=minute has none; retry with hour, day or total"
        raise BadQuestion("granularity", detail)
    if buckets.only_minutes or buckets.cuts_hours:
        detail = (
            f"users are counted by whole hours of UTC, within which a {buckets.grain} of {buckets.zone.key} begins; "
            "retry with granularity=total, or with timezone=UTC"
        )
        raise BadQuestion("timezone", detail)
    for parameter, dimensions in (("group_by", group_by), ("filter", filtered)):
        for dimension in dimensions:
            if dimension != "campaign_id":
                detail = (
                    f"users are not counted by {dimension}; with users=true, {parameter} may name campaign_id alone"
                )
                raise BadQuestion(parameter, detail)
    if compares:
        detail = "users are not compared with an earlier range; retry without compare, and ask for that range by itself"
        raise BadQuestion("compare", detail)
