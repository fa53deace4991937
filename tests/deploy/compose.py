"""The compose file as an operator runs it: compose itself, over docker or over podman's socket, in a project of its own."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.deploy.image import engine

DEPLOY = Path(__file__).parents[2] / "infra" / "deploy"
_CLICKHOUSE_FILES = 262_144
_PROJECT = "com.docker.compose.project"


def compose_command() -> list[str] | None:
    """`docker compose`, or docker-compose 2; None where neither is here."""
    for words in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(words[0]) is not None:
            result = subprocess.run([*words, "version", "--short"], capture_output=True, text=True, timeout=60)
            if result.returncode == 0 and result.stdout.lstrip("v")[:1] not in ("", "1"):
                return words
    return None


@contextmanager
def engine_socket(folder: Path) -> Iterator[dict[str, str]]:
    """Variables by which compose finds the engine; where that is podman, its service runs meanwhile."""
    if "DOCKER_HOST" in os.environ or engine() == "docker":
        yield {}
        return
    socket = folder / "podman.sock"
    # Nothing but systemd starts podman's health checks; `Deployment.checked` does it where there is none.
    variables = {} if Path("/run/systemd/system").exists() else {"DISABLE_HC_SYSTEMD": "true"}
    command = ["podman", "system", "service", "--time", "0", f"unix://{socket}"]
    with subprocess.Popen(command, env=os.environ | variables, stderr=(folder / "podman.log").open("wb")) as service:
        try:
            while not socket.exists():
                if service.poll() is not None:
                    raise RuntimeError(f"podman's service ended: {(folder / 'podman.log').read_text()[-500:]}")
                time.sleep(0.1)
            yield {"DOCKER_HOST": f"unix://{socket}"} | variables
        finally:
            service.terminate()


@dataclass
class Deployment:
    """A copy of the deploy files, with secrets and a `.env` of its own, under a project's name."""

    folder: Path
    project: str
    environment: dict[str, str]
    """By which the engine is found."""
    variables: dict[str, str] = field(default_factory=dict)
    """What an operator keeps in `.env`."""

    def __post_init__(self) -> None:
        command = compose_command()
        if command is None:
            raise FileNotFoundError("neither `docker compose` nor docker-compose 2 is here")
        shutil.copy(DEPLOY / "compose.yaml", self.folder)
        shutil.copytree(DEPLOY / "compose", self.folder / "compose", ignore=shutil.ignore_patterns("secrets"))
        files = ["-f", str(self.folder / "compose.yaml"), *self._limits()]
        self._command = [*command, "--project-name", self.project, *files]

    def _limits(self) -> list[str]:
        """A file that lowers the open files of ClickHouse, where this machine does not allow as many."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard == resource.RLIM_INFINITY or hard >= _CLICKHOUSE_FILES:
            return []
        limits = {name: {"soft": 4096, "hard": 4096} for name in ("nofile", "nproc")}
        file = self.folder / "limits.yaml"
        file.write_text(json.dumps({"services": {"clickhouse": {"ulimits": limits}}}))
        return ["-f", str(file)]

    def run(self, *words: str, codes: tuple[int, ...] = (0,), timeout: float = 600) -> str:
        """Run compose to its end; returns both outputs. Raises AssertionError for another exit code."""
        lines = [f"{name}={value}\n" for name, value in self.variables.items()]
        (self.folder / ".env").write_text("".join(lines))
        # Variables are stronger than `.env`, and `make` has set IMAGE.
        others = {name: value for name, value in os.environ.items() if name not in self.variables}
        result = subprocess.run(
            [*self._command, *words], capture_output=True, text=True, env=others | self.environment, timeout=timeout,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        output = result.stdout + result.stderr
        assert result.returncode in codes, f"compose {' '.join(words)} ended with {result.returncode}: {output[-3000:]}"
        return output

    def run_once(self, *words: str, codes: tuple[int, ...] = (0,)) -> str:
        """Run a service to its end, as `run --rm` does, whose exit code is always 0 over podman's socket."""
        name = f"{self.project}-once"
        try:
            return self.run("run", "-T", "--name", name, *words, codes=codes)
        finally:
            subprocess.run([engine(), "rm", "--force", name], capture_output=True)

    def make_secrets(self, *words: str) -> str:
        """Run make-secrets.sh; returns what it says."""
        script = self.folder / "compose" / "make-secrets.sh"
        return subprocess.run([script, *words], check=True, capture_output=True, text=True, timeout=60).stderr

    def secret(self, name: str) -> str:
        """The content of a secret's file."""
        return (self.folder / "compose" / "secrets" / name).read_text().strip()

    def states(self) -> dict[str, str]:
        """Container → its state and health, of all that exist."""
        lines = self.run("ps", "--all", "--format", "{{.Name}} {{.Image}} {{.Status}}").splitlines()
        return {line.split(" ")[0]: line.partition(" ")[2] for line in lines if line.startswith(self.project)}

    def containers(self, *services: str) -> set[str]:
        """Ids of the containers of services."""
        return set(self.run("ps", "--quiet", *services).split())

    @contextmanager
    def checked(self) -> Iterator[None]:
        """Run the health checks of containers meanwhile, where podman has no systemd that would."""
        if self.environment.get("DISABLE_HC_SYSTEMD") != "true":
            yield
            return
        ended = threading.Event()
        thread = threading.Thread(target=self._check_health, args=(ended,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _check_health(self, ended: threading.Event) -> None:
        while not ended.wait(2):
            names = ["podman", "ps", "--quiet", "--filter", f"label={_PROJECT}={self.project}"]
            for name in (*("starting", "unhealthy"), *(["healthy"] if int(time.time()) % 20 < 2 else [])):
                listed = subprocess.run([*names, "--filter", f"health={name}"], capture_output=True, text=True)
                for container in listed.stdout.split():
                    subprocess.run(["podman", "healthcheck", "run", container], capture_output=True)
