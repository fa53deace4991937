"""The exceptions that every part shares. Each class names what its catcher does, not what went wrong.

AdclickError                 stop: print one line, exit 1
├── UserError                stop: an operator must change a request, a setting or a file
│   ├── UsageError           stop: wrong command line, exit 2
│   ├── UnreadableFile       stop: a file of the archive must be restored (ingest.archive.files)
│   └── TooManyGroups        stop: a question about users must have fewer rows (query.tiers.reach)
├── ExpiredToken             answer 401: the token was right, and has expired (query.keyring)
├── BadStatement             stop: a backend cannot make sense of a statement of ours; repeating it is pointless
├── CorruptLog               stop: a log has a hole or an overlap; name the place, skip nothing
│   ├── CorruptBatch         stop: a record batch is not what was written; it was fetched again before (infra.kafka.record_batches)
│   ├── InputLost            stop: events that were not read are gone; an operator must accept that by name
│   └── OffsetOutOfRange     stop: the log no longer holds the next offset (ingest starts over, and says what is lost)
├── LeaseLost                stop: another process holds the lease; publish nothing
├── Unavailable              retry, backing off: a backend is away
│   ├── TimedOut             retry later: a second attempt at once would wait just as long
│   ├── Aborted              retry: the transaction was rolled back, nothing of it is visible
│   ├── Refused              slow down: the backend answers, and declines for now (out of memory, read-only, overloaded)
│   │   ├── Denied           slow down, and report it: credentials or permissions must be changed
│   │   └── Redirected       slow down: another node of the cluster has the slot; the client went there already (infra.redis.errors)
│   └── NoTierAnswered       answer 503: no tier that a question needs is available (query.router)
└── SessionLost              start over: drop the client and all state in memory, resume from what is committed
    ├── Fenced               start over: another owner has the partition; write nothing more
    ├── OutcomeUnknown       start over: read the log before writing again, the transaction may have been committed
    ├── TopicChanged         start over: the topic that was read is gone, or was made again; say what is lost
    ├── LogTruncated         start over: the log was cut off behind what was read of it; say what is lost
    ├── ClientBroken         start over: abandon the client, its calls fail or no longer return
    └── RegistryLost           start over: rebuild the dedup ids that Redis lost (ingest.dedup.registry)

A message that is to become a dead letter is no exception: see `ingest.events.Rejection`.
"""

from __future__ import annotations


class AdclickError(Exception):
    """Base of all our own errors. `hint` says what to do about it; `output` is what another program printed, for -v."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", output: str = "") -> None:
        super().__init__(message)
        self.message, self.hint, self.output = message, hint, output

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(AdclickError):
    """A request, a setting or a file is wrong, and an operator can correct it."""


class UsageError(UserError):
    """The command line is wrong."""

    exit_code = 2


class BadStatement(AdclickError):
    """A backend rejects a statement as wrong in itself: a bug here, or a schema of another version."""


class CorruptLog(AdclickError):
    """A log that must be gapless is not."""


class OffsetOutOfRange(CorruptLog):
    """The log no longer holds the offset that must be read next."""


class InputLost(CorruptLog):
    """Events that were not read are gone from the log: stop until an operator has accepted that."""


class LeaseLost(AdclickError):
    """A later holder of the lease has taken over."""


class Unavailable(AdclickError):
    """A backend did not carry out a request; the caller backs off and tries again.

    `backend`: `kafka`, `redis`, `clickhouse` or `archive`; empty where it is none of them.
    """

    def __init__(self, message: str, *, hint: str = "", backend: str = "") -> None:
        super().__init__(message, hint=hint)
        self.backend = backend


class TimedOut(Unavailable):
    """A backend did not answer in time."""


class Aborted(Unavailable):
    """The transaction was rolled back; nothing of it is visible."""


class Refused(Unavailable):
    """A backend answered that it will not do this at the moment. `code` is its own word for why: `OOM`, `TOO_MANY_PARTS`."""

    def __init__(self, message: str, *, hint: str = "", backend: str = "", code: str = "") -> None:
        super().__init__(message, hint=hint, backend=backend)
        self.code = code


def is_away(error: BaseException) -> bool:
    """Whether an error says that a backend did not answer, rather than that it refuses."""
    return isinstance(error, Unavailable) and not isinstance(error, Refused)


class Denied(Refused):
    """Credentials or permissions are not enough."""


class SessionLost(AdclickError):
    """What a client had in hand is void: a new client starts from what is committed. `backend`: whose client."""

    backend = "kafka"


class Fenced(SessionLost):
    """Another owner has registered for what this client writes to."""


class OutcomeUnknown(SessionLost):
    """Whether a transaction was committed is not known; only the log shows it."""


class ClientBroken(SessionLost):
    """A client library cannot go on: a call of it does not return, or every call fails from now on."""


class LogTruncated(SessionLost):
    """The log was truncated below the position that was read to: `end` is the offset where the two diverge."""

    def __init__(self, message: str, *, partition: int, end: int) -> None:
        super().__init__(message)
        self.partition, self.end = partition, end


class TopicChanged(SessionLost):
    """The topic that was read is gone, or was made again."""
