"""The one error that a client can mend by asking otherwise."""

from __future__ import annotations


class BadQuestion(Exception):
    """The question cannot be answered as put. `status` is 400, 403, or 422 when the grain is no longer retained."""

    def __init__(self, parameter: str, detail: str, status: int = 400, kind: str = "bad-parameter") -> None:
        super().__init__(detail)
        self.parameter, self.detail, self.status, self.kind = parameter, detail, status, kind
