"""What to do about ClickHouse's errors, by their names."""

from __future__ import annotations

import re

from infra.errors import AdclickError, BadStatement, Denied, Refused, TimedOut, Unavailable
from infra.tls import handshake_failure

# ClickHouse's names of errors, and what ends each refusal. Any other name is waited out as well, without a hint.
_REFUSED = {
    "TOO_MANY_PARTS": "merges lag behind: it takes rows again once they have caught up",
    "MEMORY_LIMIT_EXCEEDED": "give ClickHouse more memory, or wait until other queries have ended",
    "TOO_MANY_SIMULTANEOUS_QUERIES": "raise max_concurrent_queries, or wait until other queries have ended",
    "NOT_ENOUGH_SPACE": "free space on ClickHouse's disk",
    "TABLE_IS_READ_ONLY": "a replicated table has lost its Keeper",
    "TOO_FEW_LIVE_REPLICAS": "start the replica again, or take it out of the cluster: each insert goes to all of them",
    "ALL_CONNECTION_TRIES_FAILED": "start the node of the cluster again: a shard has none that answers",
    "UNKNOWN_TABLE": "adclick migrate makes the tables",
    "UNKNOWN_DATABASE": "adclick migrate makes the database",
    "QUOTA_EXCEEDED": "raise the user's quota, or wait for its next interval",
}
_FULL_DISK = "No space left on device"
_CREDENTIALS = "correct user and password in ADCLICK_CLICKHOUSE"
_DENIED = {
    **dict.fromkeys(("AUTHENTICATION_FAILED", "UNKNOWN_USER", "WRONG_PASSWORD", "REQUIRED_PASSWORD"), _CREDENTIALS),
    "IP_ADDRESS_NOT_ALLOWED": "allow the user to connect from this host",
    "ACCESS_DENIED": "grant it to the user",
    "DATABASE_ACCESS_DENIED": "grant it to the user",
    "READONLY": "the user's profile sets readonly: set it to 0",
}
# What clickhouse-connect itself says, by what a user could change when it connected.
_READONLY = re.compile(r"Setting \w+ is readonly")
_TIMED_OUT = {"TIMEOUT_EXCEEDED", "SOCKET_TIMEOUT", "TOO_SLOW"}
# Statements that are wrong in themselves, whatever state ClickHouse is in.
_BAD = re.compile(
    r"SYNTAX_ERROR|EMPTY_QUERY|UNKNOWN_(IDENTIFIER|FUNCTION|AGGREGATE_FUNCTION|TYPE|SETTING|STORAGE|FORMAT|QUERY_PARAMETER)"
    r"|BAD_(ARGUMENTS|QUERY_PARAMETER)|(TOO_MANY|TOO_FEW)_ARGUMENTS_FOR_FUNCTION|NUMBER_OF_(ARGUMENTS|COLUMNS)_DOESNT_MATCH"
    r"|ILLEGAL_\w+|NOT_AN_AGGREGATE|TYPE_MISMATCH|CANNOT_CONVERT_TYPE|CANNOT_PARSE_\w+|NO_COMMON_TYPE|NOT_IMPLEMENTED"
    r"|NO_SUCH_COLUMN_IN_TABLE|NOT_FOUND_COLUMN_IN_BLOCK|THERE_IS_NO_COLUMN|DUPLICATE_COLUMN|INCORRECT_(DATA|NUMBER_OF_COLUMNS)"
    r"|AMBIGUOUS_\w+|ARGUMENT_OUT_OF_BOUND|VALUE_IS_OUT_OF_RANGE_OF_DATA_TYPE|FUNCTION_THROW_IF_VALUE_IS_NON_ZERO|TOO_(BIG|DEEP)_AST"
)


def decide(error: Exception, *, is_misuse: bool) -> AdclickError:
    """What to do about one of the client's errors; `is_misuse`: of how the client is used. What is not known to be wrong in itself
    is waited out."""
    name = getattr(error, "name", None) or ""
    if is_misuse and _READONLY.fullmatch(str(error)):
        name = "READONLY"
    sentence = _first_line(error)
    message = f"ClickHouse: {sentence} ({name})" if name else f"ClickHouse: {sentence}"
    if (failure := handshake_failure("clickhouse", "ClickHouse", error)) is not None:
        return failure
    if name in _TIMED_OUT or (not name and _timed_out(error)):
        return TimedOut(message, backend="clickhouse")
    if name in _DENIED:
        return Denied(message, hint=_DENIED[name], backend="clickhouse", code=name)
    if _BAD.fullmatch(name) or (not name and is_misuse):
        return BadStatement(message)
    if name:
        hint = _REFUSED["NOT_ENOUGH_SPACE"] if _FULL_DISK in sentence else _REFUSED.get(name, "")
        return Refused(message, hint=hint, backend="clickhouse", code=name)
    return Unavailable(message, backend="clickhouse")


def _timed_out(error: BaseException | None) -> bool:
    while error is not None:
        if "timeout" in type(error).__name__.lower():
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    """What a person needs of an error: of a refused connection, only that."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    text = (str(error).splitlines() or [type(error).__name__])[0]
    # Of the server's answer, its sentence; what is around it names the error's number, the server's version and the URL.
    sentence = re.search(r"DB::Exception: (.*?)(?: \([A-Z][A-Z0-9_]+\))?(?: \(version .*| \(for url .*)?$", text)
    return (sentence[1] if sentence else text)[:300]
