"""A stack on an unusual machine: odd folder names, foreign variables, a terminal that closes, a clock that is set."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from infra.embedded.stack_folder import Folder
from tests.conftest import ADCLICK, NO_WORKERS, adclick, product_environment
from tests.ports import unused_port
from tests.product import wait_until

ODD = {"ADCLICK_KAFKA": "nowhere:1", "JAVA_HOME": "/nowhere", "LC_ALL": "C", "TZ": "America/New_York"}
# In a process of its own: Spark's Java stays until that ends.
SPARK_OF_A_USER_WITHOUT_A_NAME = """
import os, pwd
from batch import spark_job
from infra.settings import Settings
def no_name(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = no_name
with spark_job.open_session(Settings(spark_memory="512m"), "local[1]") as spark:
    login = spark._jvm.org.apache.hadoop.security.UserGroupInformation.getLoginUser().getShortUserName()
    print(spark.range(3).count(), login, f"uid-{os.getuid()}")
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose name means something to each of the servers' configurations, with modules in it that shadow ours."""
    place = tmp_path_factory.mktemp("hosts") / "größe a,b & <c> 'd' \"e\" $HOME 100% [f]*"
    for package in ("infra", "redis"):
        (place / package).mkdir(parents=True)
        (place / package / "__init__.py").write_text("raise AssertionError('not this one')")
    return place


@contextmanager
def up(place: Path, *, ignore_hangup: bool, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A stack in the foreground, in the folder `s` of its working directory, once it is ready."""
    environment = product_environment() | {"ADCLICK_RECONCILE_AT": "off"} | ODD | variables
    with (place / "output").open("w") as output:
        process = subprocess.Popen(
            [*ADCLICK, "up", "--dir", "s", *NO_WORKERS], cwd=place, env=environment,
            stdout=output, stderr=output, text=True, start_new_session=True,
            # Under nohup it is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignore_hangup else signal.SIG_DFL),
        )  # fmt: skip
    try:
        wait_until(lambda: Folder(place / "s").ready() or process.poll() is not None, 60, "the stack is ready")
        assert process.poll() is None, (place / "output").read_text()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(300)


def test_a_stack_stays_in_its_folder_and_survives_a_hangup_and_changed_clocks(place: Path) -> None:
    port, key = unused_port(), "key-of-a-mounted-file"
    (place / "mounted").write_text(f"{key}\n")
    variables = {"ADCLICK_HTTP": f"http://0.0.0.0:{port}", "ADCLICK_API_KEY_FILE": "mounted"}
    with up(place, ignore_hangup=True, **variables) as process:
        endpoints = json.loads((place / "s" / "endpoints.json").read_text())
        assert endpoints["user_secret"] == json.loads((place / "s" / "state.json").read_text())["user_secret"]
        assert endpoints["http"] == f"http://127.0.0.1:{port}"
        assert httpx.get(f"{endpoints['http']}/healthz").status_code == 200
        for sent, status_code in ((key, 200), ("mounted", 401)):
            access = httpx.get(f"{endpoints['http']}/v1/access", headers={"Authorization": f"Bearer {sent}"})
            assert access.status_code == status_code
        assert Path(endpoints["archive"]).is_dir()
        assert "ADCLICK_KAFKA is not used" in (place / "output").read_text()
        process.send_signal(signal.SIGHUP)
        # A clock that was set, and files that something else wrote.
        for file in (place / "s" / "run").glob("*.pid"):
            os.utime(file, (0, 0))
        (place / "s" / "run" / "kafka.pid").write_text("")
        status = json.loads(adclick("status", "--json", "--dir", "s", cwd=place).stdout)
        assert {"supervisor", "kafka", "redis", "clickhouse", "query-0"} <= set(status["processes"])
        again = adclick("up", "--dir", "s", "--detach", cwd=place)
        assert (again.returncode, again.stderr.count("\n")) == (1, 1)
        assert "already running" in again.stderr
        down = adclick("down", "--dir", "s", cwd=place)
        assert down.returncode == 0
        assert "stopped" in down.stderr
        assert process.wait(300) == 0
    assert {entry.name for entry in place.iterdir()} == {"s", "output", "mounted", "infra", "redis"}, (
        "nothing beside its folder"
    )


def test_a_stack_stops_cleanly_when_its_terminal_closes(place: Path) -> None:
    with up(place, ignore_hangup=False) as process:
        process.send_signal(signal.SIGHUP)
        assert process.wait(300) == 0
    assert Folder(place / "s").pids() == {}
    assert (place / "s" / "kafka" / "data" / ".kafka_cleanshutdown").exists()


def no_append_only_file(folder: Path) -> None:
    (folder / "redis" / "appendonly.aof").write_bytes(b"*3\r\n$3\r\nSET\r\n$1\r\na\r\ngarbage")


def no_node(folder: Path) -> None:
    (folder / "kafka" / "data" / "meta.properties").write_text("garbage")


def no_status_file(folder: Path) -> None:
    status = folder / "clickhouse" / "data" / "status"
    status.unlink(missing_ok=True)
    status.mkdir()


@pytest.mark.parametrize(
    ("damage", "name", "reason"),
    [
        (no_node, "kafka", "node ID not found"),
        (no_status_file, "clickhouse", "Is a directory"),
        (no_append_only_file, "redis", "Bad file format"),
    ],
)
def test_the_reason_why_a_server_does_not_start_is_reported(
    place: Path, damage: Callable[[Path], None], name: str, reason: str
) -> None:
    if not (place / "s" / "kafka").exists():
        with up(place, ignore_hangup=False):
            pass
    damage(place / "s")
    result = adclick("up", "--dir", "s", "--detach", *NO_WORKERS, cwd=place)
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert f"{name} did not start" in result.stderr
    assert reason in result.stderr
    assert str(place / "s" / "logs" / f"{name}.log") in result.stderr


def test_an_explicit_address_that_is_taken_is_refused(place: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = adclick("up", "--dir", "t", cwd=place, ADCLICK_HTTP=f"http://127.0.0.1:{port}")
    assert result.returncode == 1
    assert result.stderr.count("\n") == 1, result.stderr
    assert f"cannot listen at http://127.0.0.1:{port}" in result.stderr


def test_spark_starts_for_a_user_without_a_name() -> None:
    program = [sys.executable, "-P", "-c", SPARK_OF_A_USER_WITHOUT_A_NAME]
    result = subprocess.run(program, env=product_environment(), capture_output=True, text=True, timeout=600)
    count, login, uid = result.stdout.split()
    assert (count, login) == ("3", uid), result.stderr


def test_the_reason_why_spark_does_not_start_is_reported() -> None:
    program = [sys.executable, "-P", "-c", SPARK_OF_A_USER_WITHOUT_A_NAME.replace("512m", "999999g")]
    result = subprocess.run(program, env=product_environment(), capture_output=True, text=True, timeout=600)
    line = next(line for line in result.stderr.splitlines() if "AdclickError: Spark did not start: " in line)
    assert "heap" in line
