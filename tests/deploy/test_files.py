"""The Containerfile, the compose file, and the secrets that it is given."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from infra.settings import Settings
from tests.deploy import tools
from tests.deploy.compose import compose_command

DEPLOY = Path(__file__).parents[2] / "infra" / "deploy"
COMPOSE = DEPLOY / "compose.yaml"


def test_hadolint_finds_no_fault() -> None:
    result = subprocess.run(
        [tools.path_of("hadolint"), str(DEPLOY / "Containerfile")], capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_lint_finds_nothing_of_high_severity() -> None:
    result = subprocess.run([tools.path_of("compose-lint"), str(COMPOSE)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_takes_its_file(secrets: Path) -> None:
    """By compose itself, where there is one; no engine is needed."""
    compose = compose_command()
    if compose is None:
        pytest.skip("neither `docker compose` nor docker-compose 2 is here")
    file = secrets.parent.parent / "compose.yaml"
    result = subprocess.run([*compose, "-f", str(file), "config", "-q"], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "warn" not in result.stderr.lower()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """The folder that make-secrets.sh fills, in a copy of the deploy files."""
    shutil.copy(COMPOSE, tmp_path)
    shutil.copytree(DEPLOY / "compose", tmp_path / "compose", ignore=shutil.ignore_patterns("secrets"))
    subprocess.run([tmp_path / "compose" / "make-secrets.sh"], check=True, capture_output=True, timeout=60)
    return tmp_path / "compose" / "secrets"


def test_secrets_are_made_once_and_servers_and_workers_have_the_same(secrets: Path) -> None:
    contents = {file.name: file.read_text() for file in secrets.iterdir()}
    names = {"kafka": "kafka_password"} | {name: name for name in ("redis", "clickhouse", "api_key", "user_secret")}
    values = {setting: contents[name].strip() for name, setting in names.items()}
    settings = Settings.model_validate(values)
    kafka_password = settings.kafka_password.get_secret_value()
    assert contents["kafka-jaas.conf"].count(f'"{kafka_password}"') == 2
    redis_password = settings.redis.split(":")[2].split("@")[0]
    assert f"requirepass {redis_password}\n" in contents["redis.conf"]
    clickhouse_password = settings.clickhouse.split(":")[2].split("@")[0]
    assert hashlib.sha256(clickhouse_password.encode()).hexdigest() in contents["clickhouse-users.xml"]
    secret = [kafka_password, redis_password, clickhouse_password, values["api_key"], values["user_secret"]]
    assert len(set(secret)) == len(secret)
    assert min(map(len, secret)) >= 32
    assert secrets.stat().st_mode & 0o077 == 0
    subprocess.run([secrets.parent / "make-secrets.sh"], check=True, capture_output=True, timeout=60)
    assert {file.name: file.read_text() for file in secrets.iterdir()} == contents


def _run_script(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([script, *words], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("redis", {"redis", "redis.conf"}),
        ("clickhouse", {"clickhouse", "clickhouse-users.xml"}),
        ("api_key", {"api_key"}),
    ],
)
def test_a_renewed_secret_names_the_services_that_have_it(secrets: Path, name: str, changed: set[str]) -> None:
    before = {file.name: file.read_text() for file in secrets.iterdir()}
    result = _run_script(secrets.parent / "make-secrets.sh", "renew", name)
    assert result.returncode == 0, result.stderr
    after = {file.name: file.read_text() for file in secrets.iterdir()}
    assert {file for file in after if after[file] != before[file]} == changed
    document = yaml.safe_load(COMPOSE.read_text())
    files = {secret: Path(entry["file"]).name for secret, entry in document["secrets"].items()}
    users = {
        service
        for service, entry in document["services"].items()
        for secret in entry.get("secrets", [])
        if files[secret if isinstance(secret, str) else secret["source"]] in changed
    }
    # Those that are started for each run read the new one.
    assert set(result.stderr.rpartition("--force-recreate ")[2].split()) == users - {"migrate", "reconcile"}


def test_the_secret_of_user_ids_is_not_renewed(secrets: Path) -> None:
    before = (secrets / "user_secret").read_text()
    result = _run_script(secrets.parent / "make-secrets.sh", "renew", "user_secret")
    assert (result.returncode, (secrets / "user_secret").read_text()) == (1, before)
    assert "cannot be compared" in result.stderr


def test_every_secret_of_compose_is_made_and_used(secrets: Path) -> None:
    document = yaml.safe_load(COMPOSE.read_text())
    files = {name: Path(secret["file"]).name for name, secret in document["secrets"].items()}
    assert set(files.values()) == {file.name for file in secrets.iterdir()}
    used = set()
    for name, service in document["services"].items():
        mounted = {entry if isinstance(entry, str) else entry["source"] for entry in service.get("secrets", [])}
        wanted = set(re.findall(r"/run/secrets/(\w+)", str(service.get("environment", ""))))
        assert mounted <= set(files), name
        used |= mounted
        # A file that is not there fails a start.
        assert wanted <= mounted, name
    assert used == set(files)
