"""Where Spark runs, in this process alone or on a cluster, and the file of properties that it reads when it starts. Pure."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping

from infra.embedded import java

_OWN_ADDRESS = frozenset({"SPARK_LOCAL_IP", "SPARK_LOCAL_HOSTNAME"})


def foreign_variables(variables: Iterable[str], master: str) -> list[str]:
    """The variables of a process that would start another Spark, or change how ours starts: the machine may have one.

    A cluster's own, such as Yarn's configuration, are kept for a `master` that is not local, and those that say by which address the
    cluster's workers reach this machine.
    """
    prefixes = ("SPARK_", "PYSPARK_", *(("HADOOP_", "YARN_") if is_local(master) else ()))
    kept = frozenset[str]() if is_local(master) else _OWN_ADDRESS
    foreign = (name for name in variables if name.startswith(prefixes) or name in java.OPTIONS_VARIABLES)
    return [name for name in foreign if name not in kept]


def defaults_file(properties: Mapping[str, str]) -> str:
    """The content of a spark-defaults.conf, which is a file of java.util.Properties."""
    return "".join(f"{name}={_escape(value)}\n" for name, value in properties.items())


def _escape(value: str) -> str:
    """A value of java.util.Properties: a UTF-16 unit that may mean something else in it is written as `\\uXXXX`."""
    encoded = value.encode("utf-16-be", "surrogatepass")
    units = struct.unpack(f">{len(encoded) // 2}H", encoded)
    return "".join(chr(u) if 0x20 < u < 0x7F and u != ord("\\") else f"\\u{u:04x}" for u in units)


def is_local(master: str) -> bool:
    """Whether a Spark master means this process alone."""
    return master.startswith("local")
