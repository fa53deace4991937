"""Fault points: places where a test may end or halt this process, to see that nothing is lost or counted twice.

`ADCLICK_FAULT=kill@POINT` ends it with SIGKILL there, `stop@POINT` halts it with SIGSTOP, `lose@POINT` loses the answer of the
call in hand, as a broker does that fences its client; `:N` waits for the N-th time that the point is passed. Without the
variable a point is a call of an empty function.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable

from infra.errors import OutcomeUnknown, UserError

Prepare = Callable[[], object]
_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}


def _nothing(name: str, prepare: Prepare | None = None) -> None:
    pass


def armed(text: str) -> Callable[[str, Prepare | None], None]:
    """What `point` does under a value of ADCLICK_FAULT. Raises UserError when it means nothing."""
    found = re.fullmatch(r"(kill|stop|lose)@([a-z.-]+)(?::([1-9]\d*))?", text)
    if found is None:
        raise UserError(f"ADCLICK_FAULT={text} means nothing", hint="like kill@ingest.recorded:2")
    number, wanted, left = _SIGNALS.get(found[1]), found[2], int(found[3] or 1)

    def strike(name: str, prepare: Prepare | None = None) -> None:
        nonlocal left
        if name != wanted:
            return
        left -= 1
        if left != 0:
            return
        if prepare is not None:
            prepare()
        if number is None:
            raise OutcomeUnknown(f"the answer was lost at {name}")
        os.kill(os.getpid(), number)

    return strike


point: Callable[..., None] = armed(os.environ["ADCLICK_FAULT"]) if os.environ.get("ADCLICK_FAULT") else _nothing
"""point(name, prepare): `prepare` brings about what must have happened when the process ends here."""
