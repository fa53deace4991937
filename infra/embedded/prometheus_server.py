"""Prometheus beside the stack, for `adclick up --observe`: the program that is installed, our rules, and the stack's router as its target."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import urlsplit

from infra import monitoring
from infra.embedded.ports import LOOPBACK
from infra.embedded.stack_folder import Folder
from infra.embedded.start_commands import ProcessCommand
from infra.errors import UserError
from infra.priority import BACKGROUND

NAME, USUAL_PORT = "prometheus", 9090
RULES = Path(monitoring.__file__).parent / "rules"


def find_program() -> str:
    """The program, in `.venv` or on PATH. Raises UserError where it is not installed."""
    beside = Path(sys.executable).parent
    program = shutil.which(NAME, path=f"{beside}{os.pathsep}{os.environ.get('PATH', os.defpath)}")
    if program is None:
        raise UserError(
            "--observe needs the program prometheus, which is not installed",
            hint="apt-get install prometheus, or the archive from its site on PATH; or leave --observe out",
        )
    return program


def prometheus(folder: Path, port: int, router: str, api_key: str) -> ProcessCommand:
    """Write the configuration and the key, and return how to start it. `router`: the URL that it scrapes."""
    folder.mkdir(parents=True, exist_ok=True)
    key, settings = folder / "api_key", folder / "prometheus.yml"
    for path, text in ((key, api_key), (settings, configuration(router, key))):
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(text)
    argv = [
        find_program(), f"--config.file={settings}", f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=15d", "--storage.tsdb.retention.size=1GB",
        f"--web.listen-address={LOOPBACK}:{port}", "--log.level=warn",
    ]  # fmt: skip
    return ProcessCommand(NAME, argv, folder, niceness=BACKGROUND)


def configuration(router: str, key: Path) -> str:
    """`prometheus.yml`, as JSON, which is YAML, too."""
    url = urlsplit(router)
    scrape = {
        "job_name": "adclick",
        "scheme": url.scheme,
        "authorization": {"credentials_file": str(key)},
        # On this machine, where the certificate names it as others call it.
        "tls_config": {"insecure_skip_verify": True},
        "static_configs": [{"targets": [url.netloc]}],
    }
    every = {"scrape_interval": "15s", "scrape_timeout": "10s", "evaluation_interval": "15s"}
    return json.dumps({"global": every, "rule_files": [str(RULES / "*.yml")], "scrape_configs": [scrape]}, indent=1)


def address_of(folder: Folder) -> str | None:
    """Where the Prometheus of a stack listens; None where none runs."""
    if NAME not in folder.processes():
        return None
    return url_at(folder.state()["ports"][NAME])


def url_at(port: int) -> str:
    """Its address on this machine."""
    return f"http://{LOOPBACK}:{port}"
