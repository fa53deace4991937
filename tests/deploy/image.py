"""The image that `make deploy-test IMAGE=…` names, run as a cluster runs it: any uid, a read-only root, no capability."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SecretStr

from infra.settings import BY_FILE, Settings
from tests.product import PATIENCE

UID = "54321:0"
"""Of no user that the image or the machine knows."""
_RESTRICTED = (
    "--no-healthcheck", "--read-only", "--user", UID, "--cap-drop", "all", "--security-opt", "no-new-privileges",
)  # fmt: skip
_NOEXEC, _EXEC = (("--tmpfs", f"/tmp:rw,{option},nosuid,size=2g") for option in ("noexec", "exec"))


def engine() -> str:
    """podman or docker. Raises FileNotFoundError."""
    found = next((name for name in ("podman", "docker") if shutil.which(name)), None)
    if found is None:
        raise FileNotFoundError("podman or docker is needed to run an image")
    return found


def run(
    image: str, *words: str, options: tuple[str, ...] = (), tmp: tuple[str, ...] = _NOEXEC
) -> subprocess.CompletedProcess[str]:
    """Run a command of the image to its end, without a network unless the options have one."""
    network = () if "--network" in options else ("--network", "none")
    command = [engine(), "run", "--rm", *network, *_RESTRICTED, *tmp, *options, image, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300 * PATIENCE)


@dataclass
class Containers:
    """Workers in containers on this machine's backends, with their secrets in files."""

    image: str
    settings: Settings
    folder: Path
    """Where secrets and the archive are."""
    names: list[str] = field(default_factory=list)

    def options(self) -> tuple[str, ...]:
        """Options of a container: its settings, a folder of secrets, and the archive."""
        secrets = self.folder / "secrets"
        secrets.mkdir(exist_ok=True)
        words: list[str] = ["--network", "host"]
        for name, value in self.settings.model_dump().items():
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            variable = f"ADCLICK_{name.upper()}"
            if name in BY_FILE.values() and name != "archive" and text:
                (secrets / name).write_text(f"{text}\n")
                words += ["--env", f"{variable}_FILE=/etc/adclick/secrets/{name}"]
            else:
                words += ["--env", f"{variable}={text}"]
        archive = Path(self.settings.archive)
        archive.chmod(0o777)
        mounts = {secrets: "/etc/adclick/secrets:ro", archive: str(archive)}
        return (*words, *(word for here, there in mounts.items() for word in ("--volume", f"{here}:{there}")))

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        return run(self.image, *words, options=self.options())

    def run_spark(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command that starts Spark, whose Java unpacks libraries into the temporary folder and loads them."""
        return run(self.image, *words, options=self.options(), tmp=_EXEC)

    def start(self, kind: str) -> None:
        """Start a worker in the background."""
        name = f"{self.settings.namespace}{kind}"
        command = [
            engine(),
            "run",
            "--detach",
            "--name",
            name,
            *_RESTRICTED,
            *_NOEXEC,
            *self.options(),
            self.image,
            kind,
        ]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=60 * PATIENCE)
        self.names.append(name)

    def inside(self, kind: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a worker's container."""
        command = [engine(), "exec", f"{self.settings.namespace}{kind}", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60 * PATIENCE)

    def stop(self, kind: str) -> int:
        """End a worker by SIGTERM, and return its exit code: 137 where it had to be killed after the time that the chart gives it."""
        name = f"{self.settings.namespace}{kind}"
        subprocess.run([engine(), "stop", "--time", "30", name], check=True, capture_output=True, timeout=60 * PATIENCE)
        shown = subprocess.run(
            [engine(), "inspect", "--format", "{{.State.ExitCode}}", name], check=True, capture_output=True, text=True
        )
        return int(shown.stdout)

    def logs(self) -> str:
        """The last lines of every worker, for a failure's message."""
        return "\n".join(
            f"{name}: {result.stdout[-1500:]}{result.stderr[-1500:]}"
            for name in self.names
            for result in [subprocess.run([engine(), "logs", "--tail", "20", name], capture_output=True, text=True)]
        )

    def close(self) -> None:
        """Remove all containers."""
        for name in self.names:
            subprocess.run([engine(), "rm", "--force", "--time", "0", name], capture_output=True)


def named_image() -> str:
    """The image to test; empty where none is named."""
    return os.environ.get("IMAGE", "")
