"""What to do about Redis' errors, by their codes."""

from __future__ import annotations

import re

from infra.errors import AdclickError, BadStatement, Denied, Refused, Unavailable

# Redis' error codes, and what ends each refusal. Any other code is waited out as well, without a hint.
_REFUSED = {
    "OOM": "raise maxmemory or free memory, and keep maxmemory-policy noeviction",
    "MISCONF": "its disk is full or cannot be written: free space there",
    "READONLY": "it is a replica: ADCLICK_REDIS must name the primary, or Sentinels or a cluster that know it",
    "NOREPLICAS": "fewer replicas are connected than min-replicas-to-write",
    "LOADING": "it reads its file, and answers when that is done",
    "BUSY": "a script runs for too long: SCRIPT KILL ends it",
    "UNKILLABLE": "a script has written and runs for too long: it must end, or Redis be restarted",
    "MASTERDOWN": "it is a replica that lost its primary: ADCLICK_REDIS must name the primary",
    "CLUSTERDOWN": "slots of the cluster are not served: bring back its nodes",
    "MOVED": "the slot of the key has moved; if ADCLICK_REDIS names one node of a cluster: begin it with redis+cluster://",
    "ASK": "the slot of the key is being moved; if ADCLICK_REDIS names one node of a cluster: begin it with redis+cluster://",
    "TRYAGAIN": "the slot of the keys is being moved: this ends with the move",
    "MAXCLIENTS": "raise maxclients, or close connections",
}
DENIED = {
    "NOAUTH": "put user and password into ADCLICK_REDIS",
    "WRONGPASS": "correct user and password in ADCLICK_REDIS",
    "NOPERM": "allow this user all commands on keys that begin with adclick",
    "DENIED": "Redis is in protected mode: set a password, or bind it to an address",
}
# Wrong in themselves, whatever state Redis is in. Redis has no codes for most: they begin with ERR.
_BAD_CODES = {"WRONGTYPE", "CROSSSLOT", "NOPROTO"}
_BAD_ERR = re.compile(
    r"unknown (command|subcommand)|wrong number of arguments|syntax error|is not an integer|is not a valid float|out of range"
    r"|compiling script|Error running script|user_script|Protocol error|no such key",
    re.IGNORECASE,
)


class Redirected(Refused):
    """A node of a cluster answered that another one has the slot; nothing was executed. `host`: empty where it is the same host.
    `asking`: for this command alone (ASK)."""

    def __init__(self, text: str, *, code: str, host: str, port: int) -> None:
        super().__init__(f"Redis: {text}", hint=_REFUSED[code], backend="redis", code=code)
        self.host, self.port, self.asking = host, port, code == "ASK"


def decide(code: str, text: str) -> AdclickError:
    """What to do about an error by its code, empty where a connection failed. A reply that is not known to be wrong in itself is waited
    out."""
    if code in DENIED:
        return Denied(f"Redis: {text}", hint=DENIED[code], backend="redis", code=code)
    if code in _BAD_CODES or (code == "ERR" and _BAD_ERR.search(text)):
        return BadStatement(f"Redis: {text}")
    if code:
        return Refused(f"Redis: {text}", hint=_REFUSED.get(code, ""), backend="redis", code=code)
    return Unavailable(f"Redis: {text}", backend="redis")
