"""Unusual machines: clocks that are set, folders with odd names, foreign variables, proxies, users without a name."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra import http_client, user_cache
from infra.embedded import clickhouse_server, java, ports, supervisor
from infra.embedded.exit_reasons import ending, find_cause
from infra.embedded.stack_folder import Folder, process_start
from infra.errors import AdclickError, UserError

# -- which process a pid means ----------------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "300"]) as process:
        yield process
        process.kill()


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path / "stack")
    folder.make()
    return folder


def test_a_process_is_recognized_after_the_clock_was_set(folder: Folder, sleeper: subprocess.Popen[bytes]) -> None:
    folder.write_pid("supervisor", sleeper.pid)
    for seconds in (0, 4_000_000_000):
        os.utime(folder.run / "supervisor.pid", (seconds, seconds))
        assert folder.supervisor_pid() == sleeper.pid
    assert (folder.run / "supervisor.pid").read_text() == f"{sleeper.pid}\n"


def test_a_reused_pid_is_not_ours(folder: Folder, sleeper: subprocess.Popen[bytes]) -> None:
    folder.write_pid("kafka", sleeper.pid)
    record = folder.run / "processes.json"
    start = process_start(sleeper.pid)
    assert start is not None
    boot, _, ticks = start.rpartition("/")
    for other in (f"{boot}/{int(ticks) - 1}", f"00000000-0000-0000-0000-000000000000/{ticks}"):
        record.write_text(record.read_text().replace(start, other))
        assert folder.processes() == {}, other
        assert folder.pids() == {"kafka": sleeper.pid}
        record.write_text(record.read_text().replace(other, start))
    assert set(folder.processes()) == {"kafka"}


@pytest.mark.parametrize("content", ["", "garbage", "-1\n", "999999999999999999999\n", "1\n"])
def test_a_damaged_pid_file_hides_no_process(folder: Folder, sleeper: subprocess.Popen[bytes], content: str) -> None:
    folder.write_pid("supervisor", sleeper.pid)
    (folder.run / "supervisor.pid").write_text(content)
    assert folder.supervisor_pid() == sleeper.pid


def test_a_copy_of_the_folder_of_a_running_stack_is_not_running(
    folder: Folder, sleeper: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    folder.write_pid("supervisor", sleeper.pid)
    copy = Folder(Path(shutil.copytree(folder.path, tmp_path / "copy")))
    assert copy.stop() is False
    assert sleeper.poll() is None
    moved = Folder(folder.path.rename(tmp_path / "moved"))
    assert moved.supervisor_pid() == sleeper.pid


def test_a_zombie_is_not_running(folder: Folder) -> None:
    process = subprocess.Popen(["true"])
    folder.write_pid("redis", process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert folder.processes() == {}
    process.wait()


@pytest.mark.parametrize(("trap", "patience_s"), [("", 30.0), ("trap '' TERM;", 0.2)])
def test_stop_waits_for_the_end_of_a_process_that_nothing_reaps(folder: Folder, trap: str, patience_s: float) -> None:
    process = subprocess.Popen(["sh", "-c", f"{trap} echo; while :; do sleep 0.05; done"], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    folder.write_pid("supervisor", process.pid)
    assert folder.stop(patience_s) is True
    assert process.wait(0) == (-signal.SIGKILL if trap else -signal.SIGTERM)
    process.stdout.close()


def test_stop_fails_for_a_stack_of_another_container(folder: Folder) -> None:
    with folder.lock():
        assert folder.is_locked()
        with pytest.raises(AdclickError, match=r"is running in .*another container"):
            folder.stop()
    assert not folder.is_locked()
    assert folder.stop() is False


# -- folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "\x7f", os.fsdecode(b"gr\xf6\xdfe"), "x/" * 1_800])
def test_a_folder_whose_name_servers_cannot_take_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="--dir"):
        Folder(tmp_path / name).make()
    assert list(tmp_path.iterdir()) == []


def test_what_a_stack_makes_is_for_its_user_alone_and_a_folder_made_by_hand_is_noted(tmp_path: Path) -> None:
    former = os.umask(0o022)
    try:
        own, by_hand = Folder(tmp_path / "own"), Folder(tmp_path / "by-hand")
        by_hand.path.mkdir()
        own.make()
        by_hand.make()
    finally:
        os.umask(former)
    modes = {folder.name: folder.stat().st_mode & 0o777 for folder in (own.path, *own.path.iterdir())}
    assert modes == dict.fromkeys(("own", "run", "logs", "kafka", "redis", "clickhouse"), 0o700)
    assert not own.is_open_to_others()
    assert by_hand.is_open_to_others()
    assert {folder.stat().st_mode & 0o777 for folder in by_hand.path.iterdir()} == {0o700}


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file, not a folder"):
        Folder(tmp_path / "file").make()


def test_the_configuration_of_clickhouse_escapes_the_name_of_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a,b <größe> & 'x' \"y\" %41"
    clickhouse_server.write_config(folder, tmp_path, 1, "secret")
    config = ElementTree.parse(folder / "config.xml")
    assert config.findtext("path") == f"{folder / 'data'}/"
    assert config.findtext("users_config") == str(folder / "users.xml")
    assert config.findtext("storage_configuration/disks/slow/path") == f"{folder / 'slow'}/"


# -- addresses --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listen", "client"),
    [
        ("http://0.0.0.0:8080", "http://127.0.0.1:8080"),
        ("http://[::]:8080", "http://[::1]:8080"),
        ("https://127.0.0.1:8443", "https://127.0.0.1:8443"),
        ("http://router.example:80", "http://router.example:80"),
    ],
)
def test_clients_reach_a_router_on_all_addresses_by_loopback(listen: str, client: str) -> None:
    assert ports.client_address(listen) == client
    assert set(ports.USUAL_PORTS) - set(supervisor.usual_ports(listen)) == {"http"}


@pytest.mark.parametrize("address", ["0.0.0.0:8080", "http://0.0.0.0", "http://x:99999", "ftp://x:1", "http://:8080"])
def test_an_incomplete_address_to_listen_at_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="setting http"):
        ports.client_address(address)


@pytest.mark.parametrize(
    ("url", "loopback"),
    [
        ("http://127.0.0.1:1/x", True),
        ("http://127.9.9.9/", True),
        ("http://[::1]:1/", True),
        ("http://localhost:1/", True),
        ("http://a.localhost/", True),
        ("http://localhost.example/", False),
        ("http://127.0.0.1.example/", False),
        ("https://hooks.example/x", False),
        ("http://10.0.0.1/", False),
    ],
)
def test_only_addresses_of_this_machine_are_loopback(url: str, loopback: bool) -> None:
    assert http_client.is_loopback(url) is loopback


# -- variables --------------------------------------------------------------------------------------------------


def test_variables_of_another_spark_are_foreign() -> None:
    from batch.spark_master import foreign_variables

    local = [
        "SPARK_HOME",
        "PYSPARK_SUBMIT_ARGS",
        "SPARK_REMOTE",
        "SPARK_LOCAL_DIRS",
        "HADOOP_CONF_DIR",
        "YARN_CONF_DIR",
    ]
    every = [*local, "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "PATH", "HOME", "AWS_REGION", "ADCLICK_KAFKA", "SPARKLE"]
    assert foreign_variables(every, "local[*]") == [*local, "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS"]
    assert "HADOOP_CONF_DIR" not in foreign_variables(every, "yarn")
    assert foreign_variables([*every, "SPARK_LOCAL_IP"], "spark://host:7077") == [
        "SPARK_HOME", "PYSPARK_SUBMIT_ARGS", "SPARK_REMOTE", "SPARK_LOCAL_DIRS", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS",
    ]  # fmt: skip
    assert foreign_variables(["SPARK_LOCAL_IP", "SPARK_LOCAL_HOSTNAME"], "local[*]") == [
        "SPARK_LOCAL_IP",
        "SPARK_LOCAL_HOSTNAME",
    ]


def test_values_in_a_file_of_java_properties_are_escaped() -> None:
    from batch.spark_master import defaults_file

    written = defaults_file({"spark.a": "4g", "spark.b": "a\\t= b#\u00e9\U0001f600", "spark.c": ""})
    assert written == "spark.a=4g\nspark.b=a\\u005ct=\\u0020b#\\u00e9\\ud83d\\ude00\nspark.c=\n"


@pytest.mark.parametrize("home", ["/nowhere", "java8", "not-java"])
def test_an_unsuitable_java_is_skipped(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "bin" / "java"
    binary.parent.mkdir()
    version = "echo 'openjdk version \"1.8.0_402\"' >&2" if home == "java8" else "exit 1"
    binary.write_text(f"#!/bin/sh\n{version}\n")
    binary.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", home if home == "/nowhere" else str(tmp_path))
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-javaagent:/nowhere.jar")
    java.find.cache_clear()
    try:
        assert not java.find().is_relative_to(tmp_path)
    finally:
        java.find.cache_clear()


def test_the_reason_against_each_java_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for home, script in (("old", "echo 'openjdk version \"1.8.0_402\"' >&2"), ("poor", "echo Out of memory; exit 1")):
        binary = tmp_path / home / "bin" / "java"
        binary.parent.mkdir(parents=True)
        binary.write_text(f"#!/bin/sh\n{script}\n")
        binary.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "old"))
    monkeypatch.setattr(java, "_bundled", lambda: None)
    monkeypatch.setattr("shutil.which", lambda _name: str(tmp_path / "poor" / "bin" / "java"))
    java.find.cache_clear()
    with pytest.raises(UserError, match=r"old/bin/java is Java 8; .*poor/bin/java does not start: Out of memory \("):
        java.find()
    java.find.cache_clear()


def test_proxies_are_passed_to_java_as_its_options() -> None:
    variables = {"https_proxy": "http://proxy.example:3128", "NO_PROXY": "localhost, .corp.example"}
    assert list(java.proxy_options(variables)) == [
        "-Dhttps.proxyHost=proxy.example",
        "-Dhttps.proxyPort=3128",
        "-Dhttp.nonProxyHosts=localhost|*.localhost|corp.example|*.corp.example",
    ]
    assert list(java.proxy_options({"HTTP_PROXY": "proxy.example"})) == [
        "-Dhttp.proxyHost=proxy.example",
        "-Dhttp.proxyPort=80",
    ]
    assert list(java.proxy_options({"http_proxy": ""})) == []


# -- a user without a name, and nothing that can be written -----------------------------------------------------


def no_home(*_: object) -> str:
    raise RuntimeError("could not determine the home directory")


@pytest.mark.parametrize("cache_dir", [no_home, lambda _name: "~/.cache/adclick"], ids=["refused", "not replaced"])
def test_without_a_home_the_cache_is_in_the_temporary_folder(
    cache_dir: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("platformdirs.user_cache_dir", cache_dir)
    assert user_cache.user_folder() is None
    cache = user_cache.writable_folder()
    assert cache == tmp_path / f"adclick-cache-{os.getuid()}"
    assert cache.stat().st_mode & 0o777 == 0o700
    cache.chmod(0o777)
    with pytest.raises(PermissionError):
        user_cache.writable_folder()


def test_a_key_made_by_a_user_without_a_name_is_by_the_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    from query import keys

    monkeypatch.setattr("getpass.getuser", lambda: dict[str, str]()["uid not found"])
    assert keys.current_user() == f"uid {os.getuid()}"


def test_java_unpacks_where_files_may_be_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs
    assert java.unpack_folder(Path("/proc/sys")) != Path("/proc/sys")

    class NoExec:
        f_flag = os.ST_NOEXEC

    monkeypatch.setattr("os.statvfs", lambda path: NoExec() if Path(path) == tmp_path else real(path))
    assert java.unpack_folder(tmp_path) != tmp_path
    monkeypatch.setattr("os.statvfs", real)
    assert java.unpack_folder(tmp_path) == tmp_path


def test_without_a_writable_folder_loops_are_compiled_in_memory(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("from infra.columnar.jit import compiled\n\n\n@compiled\ndef twice(x):\n    return 2 * x\n")
    # A file where numba would make its folder, and the same in place of the cache.
    (tmp_path / "__pycache__").write_text("")
    (tmp_path / "cache").write_text("")
    program = "import module; print(module.twice(21), module.twice._cache.__class__.__name__)"
    variables = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(tmp_path / "cache"), "TMPDIR": str(tmp_path / "no")}
    program = f"import tempfile; tempfile.tempdir = {str(tmp_path / 'cache')!r}; {program}"
    result = subprocess.run(
        [sys.executable, "-B", "-c", program], cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=200
    )
    assert result.stdout.split() == ["42", "NullCache"], result.stderr


def test_a_damaged_cache_file_of_a_compiled_loop_is_replaced(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text("from infra.columnar.jit import compiled\n\n\n@compiled\ndef twice(x):\n    return 2 * x\n")

    def run() -> str:
        return subprocess.run(
            [sys.executable, "-c", "import module; print(module.twice(21))"],
            cwd=tmp_path, capture_output=True, text=True, timeout=200,
        ).stdout.strip()  # fmt: skip

    assert run() == "42"
    files = [file for file in (tmp_path / "__pycache__").iterdir() if file.suffix in (".nbi", ".nbc")]
    assert len(files) == 2
    for file in files:
        file.write_bytes(file.read_bytes()[:20])
    assert run() == "42"
    assert all(file.stat().st_size > 20 for file in files)


def test_a_log_that_cannot_be_written_does_not_end_the_process() -> None:
    program = "from infra import logs; logs.configure(); logs.get('x').info('y'); print('alive')"
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=full, text=True, timeout=60
        )
    assert result.stdout == "alive\n"


# -- open files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("soft", "hard", "expected"), [(64, 8_192, "8192"), (64, 64, "only 64 files")])
def test_the_limit_of_open_files_is_raised_to_the_users(soft: int, hard: int, expected: str) -> None:
    program = (
        "import resource; from infra.embedded import supervisor\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "try: supervisor.raise_open_files_limit(); print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "except Exception as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert expected in result.stdout, result.stderr


# -- why a server ended, by what it printed (recorded from the real ones) ------------------------------------------


@pytest.mark.parametrize(
    ("output", "line"),
    [
        (
            "18903:C 28 Nov 2026 21:38:52.265 # Configuration loaded\n"
            "18903:M 28 Nov 2026 21:38:52.267 # Warning: Could not create server TCP listening socket 127.0.0.1:6379: bind: Address already in use\n"
            "18903:M 28 Nov 2026 21:38:52.267 # Failed listening on port 6379 (TCP), aborting.\n",
            "Could not create server TCP listening socket 127.0.0.1:6379: bind: Address already in use",
        ),
        (
            "18905:M 28 Nov 2026 21:38:52.316 # WARNING Memory overcommit must be enabled!\n"
            "18905:M 28 Nov 2026 21:38:52.316 # Bad file format reading the append only file: make a backup\n",
            "Bad file format reading the append only file: make a backup",
        ),
        (
            "2026-11-28T21:39:22,934 ERROR DataPlaneAcceptor: Unable to start acceptor for PLAINTEXT\n"
            "org.apache.kafka.common.KafkaException: Socket server failed to bind to 127.0.0.1:9092: Address already in use.\n"
            "\tat kafka.network.Acceptor.start(SocketServer.scala:511)\n"
            "Caused by: java.net.BindException: Address already in use\n\t... 18 more\n",
            "KafkaException: Socket server failed to bind to 127.0.0.1:9092: Address already in use.",
        ),
        (
            "2026-11-28T21:39:28,010 ERROR Kafka$: Exiting Kafka due to fatal exception\n"
            "java.lang.RuntimeException: Error: node ID not found in /s/kafka/data\n\tat kafka.Kafka.main(Kafka.scala)\n",
            "RuntimeException: Error: node ID not found in /s/kafka/data",
        ),
        (
            "2026-11-28T21:39:36,120 ERROR X: failed\njava.lang.RuntimeException: outer\n\tat a.b(C.java:1)\n"
            "Caused by: java.nio.file.FileSystemException: data/meta.properties: Not a directory\n\t... 5 more\n",
            "FileSystemException: data/meta.properties: Not a directory",
        ),
        (
            "Picked up JAVA_TOOL_OPTIONS: -Dx=y\n#\n"
            "# There is insufficient memory for the Java Runtime Environment to continue.\n# hs_err_pid20844.log\n",
            "There is insufficient memory for the Java Runtime Environment to continue.",
        ),
        (
            "Invalid maximum heap size: -Xmx2x\nError: Could not create the Java Virtual Machine.\n"
            "Error: A fatal exception has occurred. Program will exit.\n",
            "Invalid maximum heap size: -Xmx2x",
        ),
        (
            "Logging trace to /s/logs/clickhouse.server.log\nLogging errors to /s/logs/clickhouse.error.log\n"
            "Code: 76. DB::ErrnoException: Cannot open file /s/clickhouse/data/status: , errno: 21 (CANNOT_OPEN_FILE)\n",
            "Code: 76. DB::ErrnoException: Cannot open file /s/clickhouse/data/status: , errno: 21 (CANNOT_OPEN_FILE)",
        ),
        (
            "2026.11.28 21:26:41.652921 [ 26827 ] {} <Error> Application: Write failed: No space left on device\nlater\n",
            "Application: Write failed: No space left on device",
        ),
        (
            'Traceback (most recent call last):\n  File "x.py", line 1, in <module>\n    main()\nValueError: it is off\n',
            "ValueError: it is off",
        ),
        ("adclick: setting flush_ms is wrong\n", "setting flush_ms is wrong"),
        ("Logging trace to /s/logs/clickhouse.server.log\n\n", ""),
        ("", ""),
    ],
)
def test_the_exit_reason_is_one_line_of_the_servers_output(output: str, line: str) -> None:
    assert find_cause(output) == line


@pytest.mark.parametrize(
    ("code", "expected"), [(-signal.SIGKILL, "memory"), (-signal.SIGSEGV, "signal 11"), (3, "exit code 3")]
)
def test_the_exit_reason_of_a_server_without_output_is_how_it_ended(code: int, expected: str) -> None:
    assert expected in ending(code)
