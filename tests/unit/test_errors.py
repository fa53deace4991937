"""Each error of a backend leads to one decision: retry, slow down, start over, or stop."""

from __future__ import annotations

import errno
import importlib
import inspect
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import confluent_kafka
import pyarrow as pa
import pytest
import redis as client
from clickhouse_connect.driver.exceptions import (
    DatabaseError,
    DataError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
    StreamClosedError,
    StreamFailureError,
)
from redis._parsers.base import BaseParser

import infra.clickhouse.client as clickhouse
from infra import errors, file_store
from infra.clickhouse.deployment import Deployment
from infra.errors import (
    AdclickError,
    BadStatement,
    ClientBroken,
    Denied,
    Fenced,
    Refused,
    TimedOut,
    Unavailable,
    UserError,
)
from infra.kafka import errors as kafka_errors
from infra.redis import client as redis_client
from infra.redis import connections as redis
from infra.redis.errors import Redirected


def _classes(base: type[AdclickError]) -> dict[str, str]:
    """Every subclass → its parent, by name."""
    tree = {}
    for sub in base.__subclasses__():
        if not sub.__module__.startswith("tests"):
            tree[sub.__name__] = base.__name__
            tree |= _classes(sub)
    return tree


def test_the_tree_of_errors_in_the_docstring_is_that_of_the_classes() -> None:
    for package in ("infra", "ingest", "stream", "batch", "query"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    drawn, above = {}, dict[int, str]()
    for line in inspect.getdoc(errors).splitlines():  # type: ignore[union-attr]
        if (entry := re.fullmatch(r"((?:[│├└─ ]{4})*)([A-Z]\w+) {2,}([a-z]\w+.*)", line)) is not None:
            depth = len(entry[1]) // 4
            above[depth] = entry[2]
            if depth:
                drawn[entry[2]] = above[depth - 1]
            assert re.match(r"(stop|retry|retry later|slow down|start over|answer 401|answer 503)\b", entry[3]), line
    assert drawn == _classes(AdclickError)


@pytest.mark.parametrize(
    ("reply", "decision", "code"),
    [
        # Public reports of ioredis, Sidekiq, Celery, redisson and BullMQ, as their servers sent them.
        ("OOM command not allowed when used memory > 'maxmemory'.", Refused, "OOM"),
        (
            "ERR Error running script (call to f_6b): @user_script:40: @user_script: 40: -OOM command not allowed when used"
            " memory > 'maxmemory'.",
            Refused,
            "OOM",
        ),
        ("OOM command not allowed when used memory > 'maxmemory'. script: 6b, on @user_script:40.", Refused, "OOM"),
        ("READONLY You can't write against a read only replica.", Refused, "READONLY"),
        (
            "ERR Error running script (call to f_6b): @user_script:3: @user_script: 3: -READONLY You can't write against a"
            " read only replica.",
            Refused,
            "READONLY",
        ),
        ("READONLY You can't write against a read only replica. script: 6b, on @user_script:3.", Refused, "READONLY"),
        ("MISCONF Redis is configured to save RDB snapshots, but it is unable to persist on disk.", Refused, "MISCONF"),
        ("MISCONF Errors writing to the AOF file: No space left on device", Refused, "MISCONF"),
        ("NOREPLICAS Not enough good replicas to write.", Refused, "NOREPLICAS"),
        ("LOADING Redis is loading the dataset in memory", Refused, "LOADING"),
        ("BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.", Refused, "BUSY"),
        ("UNKILLABLE Sorry the script already executed write commands against the dataset.", Refused, "UNKILLABLE"),
        ("EXECABORT Transaction discarded because of previous errors.", Refused, "EXECABORT"),
        ("NOSCRIPT No matching script. Please use EVAL.", Refused, "NOSCRIPT"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", Refused, "MASTERDOWN"),
        ("CLUSTERDOWN Hash slot not served", Refused, "CLUSTERDOWN"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", Refused, "TRYAGAIN"),
        ("MOVED 3999 127.0.0.1:6381", Redirected, "MOVED"),
        ("ASK 3999 127.0.0.1:6381", Redirected, "ASK"),
        ("ERR max number of clients reached", Refused, "MAXCLIENTS"),
        ("ERR max number of clients + cluster connections reached", Refused, "MAXCLIENTS"),
        ("ERR upstream failure", Refused, "ERR"),
        ("IOERR error or timeout writing to target instance", Refused, "IOERR"),
        ("NOAUTH Authentication required.", Denied, "NOAUTH"),
        ("WRONGPASS invalid username-password pair or user is disabled.", Denied, "WRONGPASS"),
        ("ERR invalid password", Denied, "WRONGPASS"),
        ("ERR Client sent AUTH, but no password is set", Denied, "WRONGPASS"),
        ("NOPERM this user has no permissions to run the 'evalsha' command", Denied, "NOPERM"),
        (
            "ERR Error running script (call to f_76): @user_script:11: @user_script: 11: The user executing the script can't run"
            " this command or subcommand",
            Denied,
            "NOPERM",
        ),
        (
            "ERR ACL failure in script: User default has no permissions to run the 'hset' command script: 76, on @user_script:1.",
            Denied,
            "NOPERM",
        ),
        (
            "ERR Error running script (call to f_76): @user_script:1: @user_script: 1: Script attempted to execute a write command"
            " while the cluster is down and readonly",
            Refused,
            "CLUSTERDOWN",
        ),
        ("DENIED Redis is running in protected mode because protected mode is enabled", Denied, "DENIED"),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", BadStatement, ""),
        ("CROSSSLOT Keys in request don't hash to the same slot", BadStatement, ""),
        ("ERR unknown command `EVALSHA`, with args beginning with: ", BadStatement, ""),
        ("ERR wrong number of arguments for 'hset' command", BadStatement, ""),
        ("ERR value is not an integer or out of range", BadStatement, ""),
        (
            "ERR Error running script (call to f_6b): @user_script:3: user_script:3: attempt to index a nil value",
            BadStatement,
            "",
        ),
    ],
)
def test_a_reply_of_redis_becomes_the_right_error(reply: str, decision: type[AdclickError], code: str) -> None:
    translated = redis.decision_on(BaseParser.parse_error(reply))  # type: ignore[no-untyped-call]
    assert type(translated) is decision
    assert getattr(translated, "code", "") == code
    assert getattr(translated, "backend", "redis") == "redis"
    # What a person reads has Redis' own word for it, and what to do where that is known.
    assert code in str(translated) or code == "ERR"
    assert "\n" not in str(translated)
    assert translated.hint or code in ("", "ERR", "IOERR", "EXECABORT", "NOSCRIPT", "TRYAGAIN")


def test_a_redis_connection_that_fails_or_times_out_is_an_outage() -> None:
    assert type(redis.decision_on(client.ConnectionError("Connection closed by server."))) is Unavailable
    assert type(redis.decision_on(client.TimeoutError("Timeout reading from socket"))) is TimedOut


def test_an_invalid_redis_url_is_a_user_error() -> None:
    with pytest.raises(UserError, match="ADCLICK_REDIS"):
        redis_client.Redis("localhost:6379")


@pytest.mark.parametrize(
    ("name", "decision"),
    [
        *((name, Refused) for name in (
            "TOO_MANY_PARTS", "MEMORY_LIMIT_EXCEEDED", "NOT_ENOUGH_SPACE", "TABLE_IS_READ_ONLY", "UNKNOWN_TABLE",
            "UNKNOWN_DATABASE", "TOO_MANY_SIMULTANEOUS_QUERIES", "QUOTA_EXCEEDED", "KEEPER_EXCEPTION", "NO_ZOOKEEPER",
            "ABORTED", "UNKNOWN_STATUS_OF_INSERT", "SERVER_OVERLOADED", "CANNOT_ALLOCATE_MEMORY", "S3_ERROR", "STD_EXCEPTION",
            "UNSATISFIED_QUORUM_FOR_PREVIOUS_WRITE", "TABLE_IS_DROPPED", "LOGICAL_ERROR", "QUERY_WAS_CANCELLED", "A_NEW_ONE",
        )),
        *((name, TimedOut) for name in ("TIMEOUT_EXCEEDED", "SOCKET_TIMEOUT", "TOO_SLOW")),
        *((name, Denied) for name in (
            "AUTHENTICATION_FAILED", "UNKNOWN_USER", "WRONG_PASSWORD", "REQUIRED_PASSWORD", "IP_ADDRESS_NOT_ALLOWED",
            "ACCESS_DENIED", "READONLY",
        )),
        *((name, BadStatement) for name in (
            "SYNTAX_ERROR", "UNKNOWN_IDENTIFIER", "UNKNOWN_FUNCTION", "TYPE_MISMATCH", "ILLEGAL_TYPE_OF_ARGUMENT",
            "NO_SUCH_COLUMN_IN_TABLE", "CANNOT_PARSE_INPUT_ASSERTION_FAILED", "BAD_ARGUMENTS", "NOT_AN_AGGREGATE",
        )),
    ],
)  # fmt: skip
def test_an_error_of_clickhouse_becomes_the_right_error(name: str, decision: type[AdclickError]) -> None:
    text = (
        f"Received ClickHouse exception, code: 1, server response: Code: 1. DB::Exception: What it says, (in brackets) too."
        f" ({name}) (version 26.9.2.1) (for url http://user:secret@127.0.0.1:8123)"
    )
    translated = clickhouse.decision_on(DatabaseError(text, code=1, name=name))
    assert type(translated) is decision
    assert translated.message == f"ClickHouse: What it says, (in brackets) too. ({name})"
    assert getattr(translated, "backend", "clickhouse") == "clickhouse"


def test_a_full_disk_of_clickhouse_is_a_refusal_by_each_of_its_codes() -> None:
    text = (
        "Code: 1001. DB::Exception: std::exception: filesystem error: No space left on device [/data]. (STD_EXCEPTION)"
    )
    assert "free space" in str(clickhouse.decision_on(DatabaseError(text, code=1001, name="STD_EXCEPTION")))


def test_a_reply_of_another_server_than_clickhouse_is_an_outage() -> None:
    for error in (
        OperationalError("HTTP driver received HTTP status 502"),
        DatabaseError("404"),
        StreamFailureError("Stream ended unexpectedly (connection closed by server)"),
        InternalError("Can not parse ClickHouse data type: <html>"),
        ConnectionRefusedError(),
    ):
        assert type(clickhouse.decision_on(error)) is Unavailable


@pytest.mark.parametrize(
    "error",
    [
        ProgrammingError("Insert data column count does not match column names"),
        DataError("Unable to create native array"),
        NotSupportedError("UInt64 serialization  not supported"),
        InterfaceError("no such method"),
        StreamClosedError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_of_the_client_itself_is_not_waited_out(error: Exception) -> None:
    assert type(clickhouse.decision_on(error)) is BadStatement


class ReadOnly:
    """A client as clickhouse-connect makes it for a user whose profile is read-only; `inserts` is what it let through."""

    def __init__(self, *, readonly: bool) -> None:
        self._readonly, self.inserts = readonly, list[str]()

    def insert_arrow(self, table: str, _data: object, settings: dict[str, int]) -> None:
        if self._readonly:
            raise ProgrammingError(f"Setting {next(iter(settings))} is readonly")
        self.inserts.append(table)


def test_a_clickhouse_user_that_became_read_only_is_waited_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clients = [ReadOnly(readonly=True), ReadOnly(readonly=True), writable := ReadOnly(readonly=False)]
    monkeypatch.setattr("clickhouse_connect.get_client", lambda **_: clients.pop(0))
    client = clickhouse.ClickHouse("http://127.0.0.1:1", "db")
    for _ in range(2):
        with pytest.raises(Denied, match=r"Setting optimize_on_insert is readonly .*profile sets readonly") as denied:
            client.insert("t", None)
        assert (denied.value.code, denied.value.backend) == ("READONLY", "clickhouse")
    # A client learns what its user may change when it connects: after a refusal, the next call connects anew.
    for _ in range(2):
        client.insert("t", None)
    assert writable.inserts == ["db.t", "db.t"]


class OfTwoReplicas:
    """A client of a cluster whose second replica is away, and is taken out of the cluster after the first write."""

    def __init__(self) -> None:
        self.replicas, self.quorums = 2, list[int]()

    def query(self, _sql: str, _parameters: dict[str, str]) -> SimpleNamespace:
        return SimpleNamespace(result_rows=[(self.replicas,)])

    def insert_arrow(self, _table: str, _data: object, settings: dict[str, int]) -> None:
        self.quorums.append(settings["insert_quorum"])
        if settings["insert_quorum"] > 1:
            self.replicas = 1
            raise OperationalError("Number of alive replicas is less than requested")


def test_a_write_waits_for_the_replicas_that_the_cluster_has_by_then(monkeypatch: pytest.MonkeyPatch) -> None:
    server = OfTwoReplicas()
    monkeypatch.setattr("clickhouse_connect.get_client", lambda **_: server)
    client = clickhouse.ClickHouse("http://127.0.0.1:1", "db", deployment=Deployment("blue"))
    with pytest.raises(Unavailable, match="alive replicas"):
        client.insert("t", None)
    for _ in range(2):
        client.insert("t", None)
    assert server.quorums == [2, 1, 1]


@dataclass
class KafkaError:
    """As confluent_kafka's."""

    code: str
    is_fatal: bool = False

    def name(self) -> str:
        return self.code

    def str(self) -> str:
        return f"Broker: {self.code}"

    def fatal(self) -> bool:
        return self.is_fatal


@pytest.mark.parametrize(
    ("name", "fatal", "decision"),
    [
        ("NOT_ENOUGH_REPLICAS", False, Refused),
        ("NOT_ENOUGH_REPLICAS_AFTER_APPEND", False, Refused),
        ("MSG_SIZE_TOO_LARGE", False, Refused),
        ("KAFKA_STORAGE_ERROR", False, Refused),
        ("UNKNOWN_TOPIC_OR_PART", False, Refused),
        ("_UNKNOWN_TOPIC", False, Refused),
        ("TOPIC_AUTHORIZATION_FAILED", False, Denied),
        ("GROUP_AUTHORIZATION_FAILED", False, Denied),
        ("TRANSACTIONAL_ID_AUTHORIZATION_FAILED", True, Denied),
        ("SASL_AUTHENTICATION_FAILED", False, Denied),
        ("_AUTHENTICATION", False, Denied),
        ("_TIMED_OUT", False, TimedOut),
        ("_MSG_TIMED_OUT", False, TimedOut),
        ("_TRANSPORT", False, Unavailable),
        ("_ALL_BROKERS_DOWN", False, Unavailable),
        ("PRODUCER_FENCED", False, Fenced),
        ("INVALID_PRODUCER_EPOCH", True, Fenced),
        ("OUT_OF_ORDER_SEQUENCE_NUMBER", True, ClientBroken),
    ],
)
def test_an_error_of_kafka_becomes_the_right_error(name: str, fatal: bool, decision: type[AdclickError]) -> None:
    translated = kafka_errors.decision_on(KafkaError(name, fatal))
    assert type(translated) is decision
    assert name in translated.message
    assert translated.hint or decision in (TimedOut, Unavailable, Fenced, ClientBroken)


@pytest.mark.parametrize(("number", "decision"), [(29, Denied), (2, Refused), (-1, Refused), (999, Refused)])
def test_an_unreadable_partition_becomes_the_right_error(number: int, decision: type[AdclickError]) -> None:
    error = kafka_errors.unreadable_partition(confluent_kafka.KafkaError(number), "ad-events/3")
    assert type(error) is decision
    assert error.message.startswith("Kafka: ad-events/3 cannot be read: ")


def test_only_moving_leaders_and_unknown_topics_are_transient_fetch_errors() -> None:
    # By their numbers in the protocol: https://kafka.apache.org/protocol#protocol_error_codes
    passing = {n for n in range(-1, 130) if kafka_errors.is_passing_fetch_error(confluent_kafka.KafkaError(n))}
    assert passing == {3, 5, 6, 7, 9, 13, 14, 56, 74, 75, 78, 100, 103}


def _aws(error: str) -> OSError:
    return OSError(f"When completing multiple part upload for key 'a/p0.parquet' in bucket 'b': AWS Error {error}")


@pytest.mark.parametrize(
    ("error", "decision", "code"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/a/.p0000.parquet.1"), Refused, "ENOSPC"),
        (OSError("Cannot create directory '/a': [errno 28] No space left on device"), Refused, "ENOSPC"),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a/.p0000.parquet.1"), Refused, "EDQUOT"),
        (PermissionError(errno.EACCES, "Permission denied", "/a/b"), Denied, "EACCES"),
        (OSError(errno.EROFS, "Read-only file system", "/a/b"), Denied, "EROFS"),
        (OSError(errno.EIO, "Input/output error", "/a/b"), Unavailable, ""),
        (OSError(errno.ESTALE, "Stale file handle", "/a/b"), Unavailable, ""),
        (_aws("ACCESS_DENIED during PutObject operation: No response body."), Denied, "ACCESS_DENIED"),
        (_aws("UNKNOWN (HTTP status 403) during HeadObject operation: No response body."), Denied, "403"),
        (_aws("INVALID_ACCESS_KEY_ID during PutObject operation: The key does not exist"), Denied, "INVALID_ACCESS_KEY_ID"),
        (_aws("NO_SUCH_BUCKET during CreateMultipartUpload operation: no bucket"), Refused, "NO_SUCH_BUCKET"),
        (_aws("SLOW_DOWN during UploadPart operation: Please reduce your request rate."), Refused, "SLOW_DOWN"),
        (_aws("UNKNOWN (HTTP status 503) during PutObject operation: unable to parse"), Refused, "503"),
        (
            _aws("UNKNOWN (HTTP status 400) during PutObject operation: Unable to parse ExceptionName: ExpiredToken Message: old"),
            Denied,
            "ExpiredToken",
        ),
        (_aws("UNKNOWN (HTTP status 400) during ListObjectsV2 operation: Unable to parse ExceptionName: InvalidToken Message: x"), Denied, "InvalidToken"),
        (_aws("UNKNOWN (HTTP status 400) during HeadObject operation: No response body."), Refused, "400"),
        (
            _aws("UNKNOWN (HTTP status 301) during PutObject operation: Unable to parse ExceptionName: PermanentRedirect Message: Use it."),
            Refused,
            "PermanentRedirect",
        ),
        (_aws("UNKNOWN (HTTP status 301) during HeadObject operation: No response body."), Refused, "301"),
        (_aws("REQUEST_TIME_TOO_SKEWED during PutObject operation: no"), Denied, "REQUEST_TIME_TOO_SKEWED"),
        (_aws("NETWORK_CONNECTION during PutObject operation: curlCode: 7, Couldn't connect"), Unavailable, ""),
    ],
)  # fmt: skip
def test_an_error_of_the_archive_becomes_the_right_error(
    error: OSError, decision: type[AdclickError], code: str
) -> None:
    translated = file_store.decision_on(error, "s3://b/a")
    assert type(translated) is decision
    assert getattr(translated, "code", "") == code
    assert translated.backend == "archive"
    assert translated.message.startswith("the archive s3://b/a cannot be used: ")
    # Names of files differ each time, and a log or a page would be flooded with them.
    assert "parquet" not in str(translated)


def test_a_full_disk_leaves_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = file_store.FileStore(str(tmp_path))
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(Refused, match=r"No space left on device.*free space"):
            store.write("a/b.parquet", pa.py_buffer(b"rows"))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    store.write("a/b.parquet", pa.py_buffer(b"rows"))
    assert (tmp_path / "a/b.parquet").read_bytes() == b"rows"


def test_a_missing_folder_is_an_outage_and_a_missing_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file where a folder was")
    store = file_store.FileStore(str(tmp_path))
    with pytest.raises(Unavailable, match=r"Not a directory|File exists"):
        store.write("a/b.parquet", pa.py_buffer(b"rows"))
    with pytest.raises(FileNotFoundError):
        store.open("c.parquet")
    store.remove("c.parquet")
