"""The warnings of an answer: what of it is missing, old, or may still move, and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence

from infra.clock import iso

HOT_AWAY = "tier hot is not available: minutes and the newest hours are missing"
STORED_AWAY = "tiers warm and cold are not available: what is in Redis is shown"
SAMPLED = "some counts are estimates: traffic was sampled under overload"
NO_TRENDING_USERS = "users are not known: scores are without them, and a bot may trend"
MINUTES_OF_A_RECONCILED_DAY = "minutes of a reconciled day are the stream's; hours and days are reconciled"


def old_borders(read_ms: int) -> str:
    """The borders are a cached copy, since ClickHouse does not answer."""
    return f"tiers warm and cold are not available: what they hold is as of {iso(read_ms)}"


def old_rows(tier: str, start_ms: int, end_ms: int, read_ms: int) -> str:
    """Rows are a cached copy, since their tier does not answer."""
    return f"tier {tier} is not available: {iso(start_ms)} to {iso(end_ms)} is as of {iso(read_ms)}"


def unanswered(tier: str, start_ms: int, end_ms: int) -> str:
    """No tier has answered for a range."""
    return f"tier {tier} is not available: {iso(start_ms)} to {iso(end_ms)} is missing"


def table_being_filled(tier: str) -> str:
    """A table was dropped and made again, and has no border yet."""
    return f"tier {tier} is not available: its table was made again, and is being filled"


def table_made_again(tier: str, start_ms: int, end_ms: int) -> str:
    """A table was dropped and made again, and lacks what came before."""
    return (
        f"tier {tier}: {iso(start_ms)} to {iso(end_ms)} may be missing: its table was made again; "
        "adclick reconcile brings its days back"
    )


def lost_run(day_ms: int) -> str:
    """The table of reconciled rows was dropped and made again."""
    return (
        f"the reconciled rows of {iso(day_ms)[:10]} are lost, since their table was made again: the stream's are shown; "
        "adclick reconcile brings them back"
    )


def unknown_range(shards: Sequence[int]) -> str:
    """Redis lost the spans of some shards, and their owners have not written them again yet."""
    return (
        f"tier hot: shard {', '.join(map(str, shards))} has not reported its retained range; its numbers may be missing; "
        "retry in a few seconds"
    )


def before_retained(start_ms: int, end_ms: int) -> str:
    """A range begins before what Redis has of its minutes."""
    return f"tier hot: {iso(start_ms)} to {iso(end_ms)} may be missing"


def may_lack_late_events(start_ms: int, end_ms: int) -> str:
    """Hours that ClickHouse has but for their late events, which Redis no longer has by minute."""
    return f"tier warm: {iso(start_ms)} to {iso(end_ms)} may lack late events: its minutes are no longer in Redis"


def of_earlier_range(warning: str) -> str:
    """A warning about the range that a question is compared with."""
    return f"of the range compared with: {warning}"


def compared_with_shifted_range(start_ms: int) -> str:
    """The earlier range cannot be cut where the question's range is."""
    return f"the range compared with begins at {iso(start_ms)}, since nothing finer is retained there any more"


def compared_with_rounded_part(end_ms: int, counted_ms: int) -> str:
    """The earlier range cannot be cut as finely as the present one is counted."""
    return (
        f"the range compared with ends at {iso(end_ms)}, since nothing finer is retained there any more; this one is counted until "
        f"{iso(counted_ms)}"
    )


def cut_at_hours(zone: str) -> str:
    """Local days that begin within an hour of UTC, and are too old for minutes."""
    return (
        f"days of {zone} are cut at whole hours of UTC: the hour in which a day begins counts for the day "
        "before, since its minutes are no longer retained"
    )


def will_be_cut_at_hours(zone: str) -> str:
    """Local days that begin within an hour of UTC, and are exact as long as their minutes are there."""
    return (
        f"days of {zone} are exact while their minutes are retained, for a day; after that they are cut at whole hours "
        "of UTC, and these numbers may move once"
    )


USERS_OF_SAMPLED = "users are those of the events that were kept while traffic was sampled: they are too few, and frequency is too high"


USERS_OFF = "users are not available: ADCLICK_REACH is off"


def users_away(reason: str) -> str:
    """Rows have no users."""
    return f"users are not available: {reason}"


def old_users(read_ms: int) -> str:
    """Users are a cached copy, since ClickHouse does not answer."""
    return f"users are not available: those shown are as of {iso(read_ms)}"


def users_before_their_tables(since_ms: int) -> str:
    """The tables of users were made, or made again, when events had been counted already."""
    return f"users before {iso(since_ms)} may be too few, since their tables were made then; adclick reconcile counts those of its days"


USERS_UNKNOWN = "users may be too few: how far they are counted is not known; it is once stream workers run with ADCLICK_REACH=on, and Redis answers"


def users_behind(from_ms: int) -> str:
    """The writer of users lags, or does not run. The text stays the same for a while: an export must not warn of something new."""
    return (
        f"users from {iso(from_ms)} on may be too few: counting them lags by more than two minutes, or has stopped; "
        "adclick status says what it waits for"
    )


def users_deleted_unread(start_ms: int, end_ms: int) -> str:
    """Messages were deleted before their users were counted. `start_ms` 0: it is not known since when."""
    range_text = f"from {iso(start_ms)} to {iso(end_ms)}" if start_ms else f"before {iso(end_ms)}"
    return (
        f"users {range_text} may be too few, since events were deleted before their users were counted; "
        "adclick reconcile counts those of its days"
    )


def users_of_whole_hours(start_ms: int, end_ms: int) -> str:
    """The range of a total begins or ends within an hour."""
    return (
        f"users are counted by whole hours, here from {iso(start_ms)} to {iso(end_ms)}: there is no frequency for the range as it was given; "
        "retry with a start and an end at whole hours of UTC"
    )


NAMES_AWAY = "the directory is not available: ids are shown instead of names"


def old_directory(age_s: float) -> str:
    """The directory is a cached copy, since ClickHouse does not answer."""
    return f"the directory is not available: names are as of {max(1, round(age_s)):,} s ago"
