"""Where Spark runs: in this process alone, or on a cluster. Pure."""

from __future__ import annotations

from collections.abc import Iterable

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


def is_local(master: str) -> bool:
    """Whether a Spark master means this process alone."""
    return master.startswith("local")
