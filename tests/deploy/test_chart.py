"""The chart: valid objects, settings that the product takes, secrets only where they are used, and mistakes refused by name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.settings import resolve
from tests.deploy import tools
from tests.deploy.chart import CHART, EXAMPLES, KUBERNETES, Manifest, render

MINIMAL = EXAMPLES / "minimal.yaml"
OPERATORS = [EXAMPLES / f"{name}.yaml" for name in ("strimzi", "redis-operator", "clickhouse-operator")]
EVERYTHING: dict[str, Any] = {
    "ingest": {"autoscaling": {"enabled": True}},
    "stream": {"autoscaling": {"enabled": True}},
    "router": {"autoscaling": {"enabled": True}, "tls": {"secret": "adclick-tls"}, "service": {"annotations": {"a": "b"}}},
    "reconcile": {"days": 3, "extraArgs": ["--wait", "600"]},
    "prometheus": {"address": "http://prometheus:9090", "serviceMonitor": {"enabled": True, "labels": {"release": "p"}}},
    "image": {"digest": f"sha256:{'0' * 64}", "pullSecrets": [{"name": "registry"}]},
    "files": [{"name": "kafka", "secret": "ca"}, {"name": "more", "configMap": "more"}],
    "networkPolicies": {
        "routerFrom": [{"podSelector": {}}],
        "extraEgress": [{"ports": [{"protocol": "TCP", "port": 4318}]}],
    },
    "podAnnotations": {"a": "b"}, "podLabels": {"team": "billing"}, "nodeSelector": {"pool": "spot"},
    "tolerations": [{"operator": "Exists"}], "serviceAccount": {"name": "adclick"},
    "affinity": {"nodeAffinity": {}}, "podSecurityContext": {"fsGroup": 65532, "runAsNonRoot": True},
}  # fmt: skip
# Helm lets no later file remove a value.
BASE: dict[str, Any] = yaml.safe_load(MINIMAL.read_text())
WITHOUT_ARCHIVE = BASE | {"settings": {"kafka": "kafka:9092"}}
ARCHIVE_IN_A_FOLDER = WITHOUT_ARCHIVE | {"archiveVolume": {"claim": "clicks"}}
WITHOUT_USER_SECRET = BASE | {"secrets": {n: s for n, s in BASE["secrets"].items() if n != "user_secret"}}
# Of custom resources there are no schemas.
CUSTOM = ("ScaledObject", "ServiceMonitor")
SECRETS = {"redis": "redis://redis/0", "clickhouse": "http://clickhouse:8123", "archive": "s3://bucket/prefix"}


@pytest.mark.parametrize("kubernetes", ["1.29", "1.32", "1.36"])
@pytest.mark.parametrize(
    ("files", "values"),
    [
        ([MINIMAL], {}),
        ([MINIMAL, *OPERATORS], {}),
        ([MINIMAL], EVERYTHING),
        ([], EVERYTHING | ARCHIVE_IN_A_FOLDER),
    ],
    ids=["minimal", "operators", "everything", "archive-in-a-folder"],
)
def test_objects_are_valid(files: list[Path], values: dict[str, Any], kubernetes: str, tmp_path: Path) -> None:
    rendering = render(*files, **values)
    manifests = tmp_path / "manifests.yaml"
    manifests.write_text(rendering.text)
    words = [tools.path_of("kubernetes-validate"), "-k", kubernetes, "--strict", str(manifests)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    output = result.stdout + result.stderr
    assert result.returncode == 0, output
    checked = sum(manifest["kind"] not in CUSTOM for manifest in rendering.objects)
    assert output.count(" passed for resource ") == checked


def test_helm_finds_no_fault() -> None:
    words = [tools.path_of("helm"), "lint", "--strict", str(CHART), "--values", str(MINIMAL), *KUBERNETES]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"settings": {"kafak": "kafka:9092"}}, "'kafak' not allowed"),
        ({"settings": {"shed": True}}, "/settings/shed': got boolean"),
        ({"settings": {"api_key": "secret"}}, "'api_key' not allowed"),
        ({"settings": {"kafka": ""}}, "/settings/kafka': minLength"),
        ({"secrets": {"redis": {"name": "adclick", "key": ""}}}, "/secrets/redis/key': minLength"),
        ({"ingest": {"replica": 2}}, "'replica' not allowed"),
        ({"stream": {"settings": {"flush": 1}}}, "'flush' not allowed"),
        ({"router": {"readinessPath": "/"}}, "/router/readinessPath': value must be one of"),
        ({"env": [{"name": "ADCLICK_REDIS", "value": "redis://secret@redis"}]}, "/env/0/name': 'not' failed"),
        ({"settings": {"archive": "/data"}}, "settings.archive names a folder"),
        ({"archiveVolume": {"claim": "clicks"}}, "both set; remove one"),
        ({"secrets": {"archive": {"name": "a", "key": "b"}}}, "settings.archive and secrets.archive are both set"),
        ({"ingest": {"autoscaling": {"enabled": True}}}, "set prometheus.address"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_a_mistake_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    assert message in render(MINIMAL, **values).refusal


def test_what_is_missing_is_named() -> None:
    assert "/secrets': missing property 'user_secret'" in render(**WITHOUT_USER_SECRET).refusal
    assert "no archive: set settings.archive" in render(**WITHOUT_ARCHIVE).refusal


def test_without_values_it_says_what_is_missing() -> None:
    refusal = render().refusal
    assert all(name in refusal for name in ("/settings/kafka", "redis", "clickhouse", "api_key", "user_secret"))


@pytest.mark.parametrize("files", [[MINIMAL], [MINIMAL, *OPERATORS]], ids=["minimal", "operators"])
def test_the_product_takes_the_settings_of_each_pod(
    files: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """By its own reader of settings: each variable is known, and each file of a secret is where its variable says."""
    pods = render(
        *files, settings={"events_retention_s": 2_000_000, "hot_hours": 48, "drift_share": 0.002, "shed": "on"}
    ).pods()
    assert len(pods) == 9
    for name, pod in pods.items():
        if name == "adclick-test":
            continue
        for variable in [variable for variable in os.environ if variable.startswith("ADCLICK_")]:
            monkeypatch.delenv(variable)
        for variable, value in _environment(pod, tmp_path / name).items():
            monkeypatch.setenv(variable, value)
        settings = resolve(None, stack=False).settings
        assert (settings.events_retention_s, settings.hot_hours, settings.drift_share) == (2_000_000, 48, 0.002)
        assert settings.redis == SECRETS["redis"]


def _environment(pod: Manifest, folder: Path) -> dict[str, str]:
    """A pod's ADCLICK_ variables, its secrets laid out below a folder as the kubelet would."""
    container = pod["containers"][0]
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for volume in pod["volumes"]:
        for source in volume.get("projected", {}).get("sources", []):
            for item in source["secret"]["items"]:
                file = folder / mounts[volume["name"]].lstrip("/") / item["path"]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(SECRETS.get(item["path"], "a-long-and-random-secret-for-tests") + "\n")
    variables = {
        variable["name"]: variable["value"]
        for variable in container["env"]
        if variable["name"].startswith("ADCLICK_") and "value" in variable
    }
    return {name: f"{folder}{value}" if name.endswith("_FILE") else value for name, value in variables.items()}


def test_a_secret_reaches_only_the_pods_that_use_it() -> None:
    secrets = {name: {"name": "s", "key": name} for name in ("token_secret", "alert_webhook", "kafka_password")}
    pods = render(MINIMAL, secrets=secrets).pods()
    holders = {
        secret: {
            name.removeprefix("adclick-")
            for name, pod in pods.items()
            for variable in pod["containers"][0].get("env", [])
            if variable["name"] == f"ADCLICK_{secret.upper()}_FILE"
        }
        for secret in (
            "api_key",
            "token_secret",
            "user_secret",
            "clickhouse",
            "alert_webhook",
            "kafka_password",
            "redis",
        )
    }
    every = {"migrate", "ingest", "archive", "stream", "notify", "canary", "router", "reconcile"}
    assert holders == {
        "api_key": {"router"}, "token_secret": {"router"}, "user_secret": {"ingest", "router"}, "alert_webhook": {"reconcile"},
        "clickhouse": every - {"ingest", "archive", "canary"}, "kafka_password": every, "redis": every - {"canary"},
    }  # fmt: skip


def test_settings_and_secrets_of_a_kind_are_stronger() -> None:
    pods = render(
        MINIMAL, settings={"kafka_user": "all", "flush_ms": 500},
        ingest={"settings": {"kafka_user": "ingest"}, "secrets": {"redis": {"name": "own", "key": "url"}}},
    ).pods()  # fmt: skip

    def shown(pod: str) -> tuple[str, str, list[str]]:
        variables = {variable["name"]: variable.get("value") for variable in pods[pod]["containers"][0]["env"]}
        sources = pods[pod]["volumes"][1]["projected"]["sources"]
        return variables["ADCLICK_KAFKA_USER"], variables["ADCLICK_FLUSH_MS"], [s["secret"]["name"] for s in sources]

    assert shown("adclick-ingest") == ("ingest", "500", ["own", "adclick-secrets"])
    assert shown("adclick-archive") == ("all", "500", ["adclick-secrets"])


def test_every_pod_is_restricted() -> None:
    """By the Pod Security Standard `restricted`, and beyond: a read-only root, no token, no variables of other Services."""
    pods = render(**EVERYTHING | ARCHIVE_IN_A_FOLDER | {"podSecurityContext": {}}).pods()
    assert len(pods) == 8
    for name, pod in pods.items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["enableServiceLinks"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
            }, name  # fmt: skip
            assert "memory" in container["resources"]["limits"], name


def test_only_the_archive_worker_may_write_the_archive() -> None:
    pods = render(**ARCHIVE_IN_A_FOLDER).pods()
    mounts = {
        name.removeprefix("adclick-"): mount["readOnly"]
        for name, pod in pods.items()
        for mount in pod["containers"][0].get("volumeMounts", [])
        if mount["name"] == "archive"
    }
    assert mounts == {"archive": False, "router": True, "notify": True, "reconcile": True}


def test_replicas_are_left_to_what_scales() -> None:
    fixed, scaled = render(MINIMAL), render(MINIMAL, **EVERYTHING)
    for kind, name in (("StatefulSet", "ingest"), ("Deployment", "stream"), ("Deployment", "router")):
        assert fixed.of_kind(kind)[f"adclick-{name}"]["spec"]["replicas"] == 2
        assert "replicas" not in scaled.of_kind(kind)[f"adclick-{name}"]["spec"]
    assert set(scaled.of_kind("ScaledObject")) == {"adclick-ingest", "adclick-stream"}
    assert set(scaled.of_kind("HorizontalPodAutoscaler")) == {"adclick-router"}


def test_every_policy_and_budget_selects_the_pods_of_its_kind() -> None:
    rendering = render(MINIMAL)
    labels = {
        manifest["metadata"]["name"]: manifest["spec"]["template"]["metadata"]["labels"]
        for kind in ("StatefulSet", "Deployment", "Job")
        for manifest in rendering.of_kind(kind).values()
    }
    selectors = [
        *((name, o["spec"]["podSelector"]) for name, o in rendering.of_kind("NetworkPolicy").items()),
        *((name, o["spec"]["selector"]) for name, o in rendering.of_kind("PodDisruptionBudget").items()),
    ]
    assert len(selectors) == 7 + 5
    for name, selector in selectors:
        if name == "adclick-reconcile":
            continue
        chosen = {owner for owner, own in labels.items() if selector["matchLabels"].items() <= own.items()}
        assert chosen == {name}
