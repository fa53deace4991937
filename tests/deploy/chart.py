"""The chart as helm renders it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.deploy import tools

CHART = Path(__file__).parents[2] / "infra" / "deploy" / "chart" / "adclick"
EXAMPLES = CHART / "examples"
Manifest = dict[str, Any]
KUBERNETES = ("--kube-version", "1.32")
"""A helm that `go install` has built takes an old one for the cluster's."""


@dataclass(frozen=True)
class Rendering:
    """What helm printed: objects, or why it refused."""

    text: str
    refusal: str

    @property
    def objects(self) -> list[Manifest]:
        """All objects. Fails where helm refused."""
        assert not self.refusal, self.refusal
        return [manifest for manifest in yaml.safe_load_all(self.text) if manifest]

    def of_kind(self, kind: str) -> dict[str, Manifest]:
        """Name → object."""
        return {o["metadata"]["name"]: o for o in self.objects if o["kind"] == kind}

    def pods(self) -> dict[str, Manifest]:
        """Name of what makes it → spec of the pod."""
        return {manifest["metadata"]["name"]: spec for manifest in self.objects for spec in _pod_specs(manifest)}


def render(*files: Path, **values: Any) -> Rendering:
    """The chart with files of values, the last one strongest, and values of the test above all."""
    words = [tools.path_of("helm"), "template", "adclick", str(CHART), "--namespace", "billing", *KUBERNETES]
    for file in files:
        words += ["--values", str(file)]
    result = subprocess.run(
        [*words, "--values", "-"], input=yaml.safe_dump(values), capture_output=True, text=True, timeout=120
    )
    return Rendering(result.stdout, result.stderr if result.returncode else "")


def _pod_specs(manifest: Manifest) -> Iterator[Manifest]:
    spec = manifest.get("spec", {})
    if manifest["kind"] == "Pod":
        yield spec
    elif manifest["kind"] == "CronJob":
        yield spec["jobTemplate"]["spec"]["template"]["spec"]
    elif "template" in spec:
        yield spec["template"]["spec"]
