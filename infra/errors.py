"""The exceptions every part shares. Each names a decision, not a cause.

AdclickError
├── UserError         the person asked for something that cannot be done: one line, exit 1
│   └── UsageError    the words of the command are off: exit 2
├── Unavailable       a backend is away: back off and try again
│   └── TimedOut      it took too long: asking again at once would only wait again
├── Fenced            somebody else owns this partition now: drop what is held, never write
└── CorruptLog        a range overlaps or leaves a hole: stop, name the place, skip nothing
"""

from __future__ import annotations


class AdclickError(Exception):
    """Base of all our own errors. `hint` says what to do about it."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class UserError(AdclickError):
    """A mistake that a person can mend."""


class UsageError(UserError):
    """Wrong words on the command line."""

    exit_code = 2


class Unavailable(AdclickError):
    """A backend did not answer; the caller backs off and tries again."""


class TimedOut(Unavailable):
    """A backend did not answer in time."""


class Fenced(AdclickError):
    """A successor owns what we were writing to."""


class CorruptLog(AdclickError):
    """A log that must be gapless is not."""


class Aborted(Unavailable):
    """The transaction was rolled back; nothing of it is visible."""


class OffsetOutOfRange(CorruptLog):
    """The log no longer holds the offset that must be read next."""
