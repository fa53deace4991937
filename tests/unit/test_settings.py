"""Settings: a wrong one is refused by its name, and no secret of one is ever printed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from redis import connection as redis_connection

from infra.errors import UserError
from infra.file_store import FileStore
from infra.redis.access import RedisAccess
from infra.settings import BY_FILE, Settings, file_variables, resolve
from infra.tls import TlsFiles


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.upper().startswith("ADCLICK_"):
            monkeypatch.delenv(name)


def refusal(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> str:
    """The message about a variable that is not accepted."""
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError) as error:
        resolve()
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("variable", "near"),
    [
        ("ADCLICK_CURENCY", "ADCLICK_CURRENCY"),
        ("adclick_curency", "ADCLICK_CURRENCY"),
        ("ADCLICK_KAFKA_SERVERS", None),
        ("ADCLICK_EVENTS_PARTITIONS", "ADCLICK_EVENT_PARTITIONS"),
        ("ADCLICK_WORKERS", "ADCLICK_WORKER"),
        ("ADCLICK_CONFG", "ADCLICK_CONFIG"),
        ("ADCLICK_CLICK_HOUSE", "ADCLICK_CLICKHOUSE"),
        ("ADCLICK_REDDIS_FILE", "ADCLICK_REDIS_FILE"),
        ("ADCLICK_KAFKA_FILE", None),
        ("ADCLICK_CURRENCY_FILE", None),
        ("ADCLICK_PORT", None),
        ("ADCLICK_KAFKA_PORT", None),
        ("ADCLICK_", None),
        ("ADCLICK_ZZZZ", None),
    ],
)
def test_an_unknown_variable_is_named_with_the_nearest_setting(
    variable: str, near: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, variable, "EUR")
    assert f"no such setting: {variable} (" in message
    if near is not None:
        assert message.endswith(f"(did you mean {near}?)")


def test_variables_that_are_read_elsewhere_are_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text('currency = "EUR"\n')
    values = {"CONFIG": str(tmp_path / "c.toml"), "DIR": "elsewhere", "WORKER": "ingest-7", "FAULT": "kill@nowhere"}
    for name, value in values.items():
        monkeypatch.setenv(f"ADCLICK_{name}", value)
    assert resolve().settings.currency == "EUR"


def test_variables_that_kubernetes_sets_for_a_service_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in ("ADCLICK", "ADCLICK_KAFKA", "ADCLICK_QUERY_ROUTER"):
        for name, value in {
            "SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "8080", "SERVICE_PORT_HTTP": "8080", "PORT": "tcp://10.0.0.1:8080",
            "PORT_8080_TCP": "tcp://10.0.0.1:8080", "PORT_8080_TCP_PROTO": "tcp", "PORT_8080_TCP_PORT": "8080",
            "PORT_8080_TCP_ADDR": "10.0.0.1",
        }.items():  # fmt: skip
            monkeypatch.setenv(f"{service}_{name}", value)
    assert resolve().settings.kafka == "127.0.0.1:9092"
    assert refusal(monkeypatch, "ADCLICK_KAFFKA_PORT_8080_TCP", "x").startswith("no such setting: ADCLICK_KAFFKA_PORT")


def test_two_spellings_of_a_variable_that_differ_are_both_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("adclick_currency", "EUR")
    assert resolve().settings.currency == "EUR"
    assert "ADCLICK_CURRENCY and adclick_currency differ" in refusal(monkeypatch, "ADCLICK_CURRENCY", "GBP")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("KAFKA", "", "names no host"),
        ("KAFKA", "PLAINTEXT://host:9092", "HOST:PORT"),
        ("KAFKA", "host:", "port"),
        ("KAFKA", "host:0", "port"),
        ("KAFKA", "host:65536", "port"),
        ("KAFKA", "host:9092,", "names no host"),
        ("KAFKA", "::1:9092", "names no host"),
        ("KAFKA", "fe80::1:9092", "brackets"),
        ("REDIS", "", "redis://"),
        ("REDIS", "localhost:6379", "redis://"),
        ("REDIS", "http://localhost:6379", "redis://"),
        ("REDIS", "redis://localhost/cache", "database"),
        ("REDIS", "redis://localhost:six", "port"),
        ("REDIS", "redis://one:6379,two:6379/0", "redis+cluster://"),
        ("REDIS", "redis+cluster://one:6379,two:six", "port"),
        ("REDIS", "redis+cluster://one:6379,two:6379/1", "one database"),
        ("REDIS", "redis+sentinel://one:26379", "name of the primary"),
        ("REDIS", "redis://one:6379/0?decode_responses=True", "must not have the option decode_responses"),
        ("REDIS", "redis://one:6379/0?db=1&protocol=3", "must not have the option protocol"),
        ("REDIS", "redis+cluster://one,two?retry_on_timeout=1", "must not have the option retry_on_timeout"),
        ("REDIS", "unix:///run/redis.sock?db=0&encoding=latin-1", "must not have the option encoding"),
        ("REDIS", "rediss://one?no_such_option=1", "must not have the option no_such_option"),
        ("REDIS", "rediss://one/0?ssl_cert_reqs=none", "must not have the option ssl_cert_reqs"),
        ("REDIS", "rediss+cluster://one?ssl_ca_certs=/tmp/ca.pem", "must not have the option ssl_ca_certs"),
        ("REDIS_CA", "ca.pem", "rediss"),
        ("REDIS_WAIT_REPLICAS", "-1", "0"),
        ("CLICKHOUSE", "", "http://"),
        ("CLICKHOUSE", "clickhouse://host:9000", "http://"),
        ("CLICKHOUSE", "http://host:8123/billing", "namespace"),
        ("CLICKHOUSE", "http://host:8123/?database=x", "namespace"),
        ("CLICKHOUSE", "http://:8123", "names no host"),
        ("HTTP", "", "http://"),
        ("HTTP", "0.0.0.0:8080", "http://"),
        ("HTTP", "http://::1:8080", "names no host"),
        ("HTTP", "http://[::1:8080", "brackets"),
        ("HTTP", "http://host:8080/prefix", "after the port"),
        ("HTTP", "http://host:99999", "port"),
        ("HTTP", "http://user:password@host:8080", "user"),
        ("ARCHIVE", "", "at least 1"),
        ("ARCHIVE", "gs://bucket/prefix", "s3://"),
        ("ARCHIVE", "s3:///prefix", "s3://"),
        ("TRACE_COLLECTOR", "collector:4318", "http://"),
        ("ALERT_WEBHOOK", "mailto:me@example.com", "http://"),
        ("API_KEY", "two words", "ASCII"),
        ("API_KEY", "schlüssel", "ASCII"),
        ("USER_SECRET", "", "at least 1"),
        ("NAMESPACE", "My-Space", "match"),
        ("NAMESPACE", "a;DROP DATABASE", "match"),
        ("NAMESPACE", "n" * 65, "64"),
        ("CURRENCY", "", "match"),
        ("RECONCILE_AT", "3 am", "HH:MM"),
        ("RECONCILE_AT", "24:00", "HH:MM"),
        ("SPARK_MEMORY", "plenty", "match"),
        ("EVENT_PARTITIONS", "4.5", "integer"),
        ("DEDUP_HORIZON_S", "1h", "integer"),
        ("FLUSH_MS", "99999999999999999999", "less than"),
        ("SESSION_TIMEOUT_MS", "3600001", "less than"),
        ("HOT_HOURS", "-1", "greater than"),
        ("DRIFT_SHARE", "nan", "DRIFT_SHARE"),
        ("ALERT_SHARE", "5", "less than"),
        ("ARCHIVE_MOST_GB", "inf", "ARCHIVE_MOST_GB"),
    ],
)  # fmt: skip
def test_an_invalid_value_is_refused_by_name(
    variable: str, value: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, f"ADCLICK_{variable}", value)
    assert message.startswith(f"setting {variable.lower()} is wrong: ")
    assert expected in message
    assert f"from ADCLICK_{variable}" in message


@pytest.mark.parametrize(
    ("variable", "value", "settled"),
    [
        ("KAFKA", " one:9092, two:9092 \n", "one:9092,two:9092"),
        ("KAFKA", "[::1]:9092", "[::1]:9092"),
        ("HTTP", "http://[::]:8080/", "http://[::]:8080"),
        ("HTTP", "http://0.0.0.0:8080\n", "http://0.0.0.0:8080"),
        ("REDIS", "rediss://user:pa%2Fss@[fe80::1]:6380/3", "rediss://user:pa%2Fss@[fe80::1]:6380/3"),
        ("REDIS", "unix:///run/redis.sock", "unix:///run/redis.sock"),
        (
            "REDIS",
            "rediss://one/0?ssl_check_hostname=no&socket_timeout=3",
            "rediss://one/0?ssl_check_hostname=no&socket_timeout=3",
        ),
        ("REDIS", "rediss+cluster://u:p@one:7000,[::1]", "rediss+cluster://u:p@one:7000,[::1]"),
        ("REDIS", "redis+sentinel://one,two:26380/main/0", "redis+sentinel://one,two:26380/main/0"),
        ("CLICKHOUSE", "https://me:p@ss@host", "https://me:p@ss@host"),
        ("CURRENCY", "EUR\r\n", "EUR"),
        ("ARCHIVE", "s3://bucket", "s3://bucket"),
        ("NAMESPACE", "", ""),
    ],
)
def test_values_are_normalized(variable: str, value: str, settled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"ADCLICK_{variable}", value)
    assert getattr(resolve().settings, variable.lower()) == settled


@pytest.mark.parametrize("scheme", ["rediss", "rediss+cluster", "redis+sentinel"])
@pytest.mark.parametrize("options", ["", "?ssl_check_hostname=", "?socket_timeout=3"] + [
    f"?ssl_check_hostname={value}" for value in ("no", "False", "0", "n", "yes", "off", "1", "%6eo", "no&ssl_check_hostname=yes")
])  # fmt: skip
def test_a_certificate_for_any_host_is_accepted_where_redis_py_says_so(scheme: str, options: str) -> None:
    parse_url: Callable[[str], dict[str, Any]] = redis_connection.parse_url
    verified = parse_url(f"rediss://one{options}").get("ssl_check_hostname", True)
    is_accepted = RedisAccess(f"{scheme}://one{options}").is_any_host_accepted
    assert is_accepted is (scheme.startswith("rediss") and not verified)


def test_files_for_tls_and_replicas_are_those_of_the_redis_that_the_settings_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("redis", "redis_ca", "redis_certificate", "redis_key", "redis_wait_replicas")
    own = dict(zip(names, ("rediss://host", "ca.pem", "us.pem", "key.pem", "2"), strict=True))
    for name, value in own.items():
        monkeypatch.setenv(f"ADCLICK_{name.upper()}", value)
    assert resolve().settings.redis_access == RedisAccess(
        "rediss://host", TlsFiles("redis", "ca.pem", "us.pem", "key.pem"), 2
    )
    (tmp_path / "endpoints.json").write_text(json.dumps({"redis": "redis://of-the-stack:1"}))
    assert resolve(str(tmp_path)).settings.redis_access == RedisAccess("redis://of-the-stack:1")
    monkeypatch.delenv("ADCLICK_REDIS_CERTIFICATE")
    with pytest.raises(UserError, match="redis_key is wrong: needs the setting redis_certificate"):
        resolve()


def test_a_secret_read_from_a_file_loses_its_line_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADCLICK_API_KEY", "key-of-a-mounted-file\n")
    monkeypatch.setenv("ADCLICK_USER_SECRET", "secret\n")
    settings = resolve().settings
    assert settings.api_key.get_secret_value() == "key-of-a-mounted-file"
    assert settings.user_secret.get_secret_value() == "secret"


_FILES = [
    "redis_file", "clickhouse_file", "archive_file", "api_key_file", "token_secret_file", "former_token_secret_file",
    "user_secret_file", "trace_collector_file", "alert_webhook_file", "kafka_password_file", "kafka_key_password_file",
    "kafka_properties_file",
]  # fmt: skip
_URL = "http://me:HIDDEN@host:8123"
_WEBHOOK = "https://hooks.example/services/HIDDEN"


def test_settings_that_may_hold_a_secret_can_stand_in_files() -> None:
    assert set(_FILES) <= set(BY_FILE)
    secrets = {name for name, field in Settings.model_fields.items() if field.annotation is SecretStr}
    assert secrets <= set(BY_FILE.values()) <= set(Settings.model_fields)
    assert not {"kafka", "http", "currency"} & set(BY_FILE.values())


@pytest.mark.parametrize(
    ("name", "text", "value", "shown"),
    [
        ("api_key", "key\n", "key", "********"),
        ("user_secret", "two words\r\n", "two words", "********"),
        ("token_secret", "\ufeff" + "s" * 32, "s" * 32, "********"),
        ("redis", "redis://:HIDDEN@host:6379/1\n", "redis://:HIDDEN@host:6379/1", "redis://:********@host:6379/1"),
        ("clickhouse", f"{_URL}\n\n", _URL, "http://me:********@host:8123"),
        ("alert_webhook", _WEBHOOK, _WEBHOOK, "https://hooks.example/********"),
    ],
)
@pytest.mark.parametrize("by_toml", [False, True])
def test_a_value_in_a_file_has_the_file_for_its_origin(
    name: str, text: str, value: str, shown: str, by_toml: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mounted"
    file.write_bytes(text.encode())
    if by_toml:
        (tmp_path / "c.toml").write_text(f"{name}_file = '{file}'\n")
        monkeypatch.setenv("ADCLICK_CONFIG", "c.toml")
    else:
        monkeypatch.setenv(f"ADCLICK_{name.upper()}_FILE", str(file))
    resolved = resolve()
    setting = getattr(resolved.settings, name)
    assert (setting.get_secret_value() if isinstance(setting, SecretStr) else setting) == value
    assert resolved.masked()[name] == (shown, str(file))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "which is empty"),
        (b" \n", "which is empty"),
        (b"HIDDEN \xff", "which cannot be read: it is not UTF-8"),
        (None, "which cannot be read: No such file or directory"),
    ],
)
def test_a_file_without_a_value_is_refused_in_one_line(
    content: bytes | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "mounted").write_bytes(content)
    message = refusal(monkeypatch, "ADCLICK_API_KEY_FILE", str(tmp_path / "mounted"))
    assert message == f"ADCLICK_API_KEY_FILE names {tmp_path / 'mounted'}, {expected}"
    message = refusal(monkeypatch, "ADCLICK_API_KEY_FILE", str(tmp_path))
    assert message.endswith("which cannot be read: Is a directory")
    assert refusal(monkeypatch, "ADCLICK_API_KEY_FILE", "") == "ADCLICK_API_KEY_FILE must be the name of a file"


@pytest.mark.parametrize("line", ["redis_file = 1", "redis_file = ['f']", "redis_file = ''", "[redis_file]\nf = 1"])
def test_a_line_that_names_no_file_is_refused(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text(f"{line}\n")
    assert refusal(monkeypatch, "ADCLICK_CONFIG", "c.toml") == "redis_file in c.toml must be the name of a file"


def test_a_wrong_value_in_a_file_is_refused_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted").write_text("redis://:HIDDEN@host/cache\n")
    message = refusal(monkeypatch, "ADCLICK_REDIS_FILE", "mounted")
    assert message.startswith("setting redis is wrong: ")
    assert message.endswith("from mounted)")
    assert "HIDDEN" not in message


def test_a_value_and_its_file_in_one_place_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mounted").write_text("redis://of-the-file:1\n")
    monkeypatch.setenv("ADCLICK_REDIS_FILE", "mounted")
    message = refusal(monkeypatch, "ADCLICK_REDIS", "redis://:HIDDEN@of-the-variable:1")
    assert message == "ADCLICK_REDIS and ADCLICK_REDIS_FILE are both set (remove one of the two)"
    monkeypatch.delenv("ADCLICK_REDIS")
    (tmp_path / "c.toml").write_text("redis = 'redis://of-the-toml:1'\n")
    monkeypatch.setenv("ADCLICK_CONFIG", "c.toml")
    assert resolve().settings.redis == "redis://of-the-file:1"
    (tmp_path / "c.toml").write_text("redis = 'redis://of-the-toml:1'\nredis_file = 'mounted'\n")
    message = refusal(monkeypatch, "ADCLICK_CONFIG", "c.toml")
    assert message == "redis in c.toml and redis_file in c.toml are both set (remove one of the two)"


def test_a_file_is_read_only_where_its_value_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text("redis_file = 'missing'\n")
    monkeypatch.setenv("ADCLICK_CONFIG", "c.toml")
    monkeypatch.setenv("ADCLICK_REDIS", "redis://of-the-variable:1")
    assert resolve().settings.redis == "redis://of-the-variable:1"
    (tmp_path / "endpoints.json").write_text(json.dumps({"redis": "redis://of-the-stack:1", "redis_file": "missing"}))
    assert resolve(str(tmp_path)).settings.redis == "redis://of-the-stack:1"


def test_variables_that_name_files_are_told_from_others() -> None:
    variables = ["ADCLICK_REDIS_FILE", "adclick_api_key_file", "REDIS_FILE", "ADCLICK_REDIS", "ADCLICK_KAFKA_FILE"]
    assert file_variables(variables) == ("ADCLICK_REDIS_FILE", "adclick_api_key_file")


def test_a_tilde_in_the_path_of_the_archive_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ADCLICK_ARCHIVE", "~/archive")
    assert resolve().settings.archive == str(tmp_path / "archive")


# -- secrets --------------------------------------------------------------------------------------------------

_PASSWORDS = ["plain", "p@ss", "@@", "p:ss", "p%40ss", "p%2Fss", "p@s:s@", "%", "ü@ö", "key=x"]


@pytest.mark.parametrize("password", _PASSWORDS)
@pytest.mark.parametrize(
    ("variable", "before", "after"),
    [
        ("CLICKHOUSE", "http://me:", "@host:8123"),
        ("REDIS", "redis://:", "@host:6379/0"),
        ("REDIS", "rediss://user:", "@[::1]:6379/0"),
        ("TRACE_COLLECTOR", "https://me:", "@host:4318/v1/traces"),
    ],
)
def test_no_part_of_a_password_is_shown(
    password: str, variable: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ADCLICK_{variable}", before + password + after)
    assert resolve().masked()[variable.lower()][0] == f"{before}********{after}"


@pytest.mark.parametrize(
    "password", ["HID/DEN", "HID#DEN", "HID?DEN", "HID/D@EN", "1/HIDDEN", "HID?key=D@EN", "HID DEN/"]
)
@pytest.mark.parametrize(
    ("variable", "before", "after"),
    [
        ("CLICKHOUSE", "http://me:", "@host:8123"),
        ("CLICKHOUSE", "me:", "@host:8123"),
        ("REDIS", "redis://:", "@host:6379/0"),
        ("ALERT_WEBHOOK", "https://me:", "@host/hook"),
        ("KAFKA", "sasl://me:", "@host:9092"),
    ],
)  # fmt: skip
def test_a_password_that_must_be_encoded_is_refused_and_not_shown(
    password: str, variable: str, before: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = refusal(monkeypatch, f"ADCLICK_{variable}", before + password + after)
    assert f"setting {variable.lower()} is wrong" in message
    assert "HID" not in message
    assert "EN" not in message.replace(f"ADCLICK_{variable}", "")


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("archive", "s3://b/x?access_key=a&secret_key=b+/c=d&region=r", "s3://b/x?access_key=********&secret_key=********&region=r"),
        ("archive", "s3://b/x?secret_key=a&b@c#d&region=r@s", "s3://b/x?secret_key=********&region=r@s"),
        ("archive", "s3://KEY:a%2Fb@bucket/x?region=r", "s3://KEY:********@bucket/x?region=r"),
        ("archive", "s3://b/x?session_token=a&Signature=b", "s3://b/x?session_token=********&Signature=********"),
        ("archive", "/data/a:b@c", "/data/a:b@c"),
        ("redis", "redis://host/0?username=me&password=a", "redis://host/0?username=me&password=********"),
        ("alert_webhook", "https://hooks.example/services/T0/B0/SECRET", "https://hooks.example/********"),
        ("alert_webhook", "https://me:a@b@hooks.example/x?y=z", "https://me:********@hooks.example/********"),
        ("alert_webhook", "https://hooks.example/", "https://hooks.example/"),
        ("api_key", "a", "********"),
    ],
)  # fmt: skip
def test_secrets_in_options_and_paths_are_masked(
    name: str, value: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"ADCLICK_{name.upper()}", value)
    assert resolve().masked()[name][0] == shown


def test_a_wrong_secret_is_refused_without_being_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "HIDDEN" not in refusal(monkeypatch, "ADCLICK_API_KEY", "HIDDEN ü")
    monkeypatch.delenv("ADCLICK_API_KEY")
    (tmp_path / "c.toml").write_text('[clickhouse]\nurl = "http://me:HIDDEN@host"\n')
    message = refusal(monkeypatch, "ADCLICK_CONFIG", str(tmp_path / "c.toml"))
    assert "clickhouse" in message
    assert "HIDDEN" not in message


def test_a_bucket_is_named_without_the_credentials_in_its_url() -> None:
    assert FileStore("s3://KEY:HID%2FDEN@bucket/prefix?region=r").shown == "s3://KEY:********@bucket/prefix"
    for url in ("s3://KEY:HID/DEN@bucket/x", "s3://bucket/x?secret_key=HIDDEN&nonsense=1", "s3://KEY:HID DEN@b/x"):
        with pytest.raises(UserError) as error:
            FileStore(url)
        assert "HID" not in str(error.value)


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"curency = 'EUR'\n", "no such setting: curency (did you mean currency?)"),
        (b"CURRENCY = 'EUR'\n", "no such setting: CURRENCY (did you mean currency?)"),
        (b"ADCLICK_CURRENCY = 'EUR'\n", "no such setting: ADCLICK_CURRENCY (did you mean currency?)"),
        (b"event-partitions = 3\n", "no such setting: event-partitions (did you mean event_partitions?)"),
        (b"[adclick]\ncurrency = 'EUR'\n", "no such setting: [adclick] (settings stand in no section)"),
        (b"[currency]\nis = 'EUR'\n", "setting currency is wrong"),
        (b"currency = ['EUR']\n", "setting currency is wrong"),
        (b"currency = 1\n", "setting currency is wrong"),
        (b"event_partitions = true\n", "setting event_partitions is wrong"),
        (b"event_partitions = 'many'\n", "setting event_partitions is wrong"),
        (b"drift_share = false\n", "setting drift_share is wrong"),
        (b"shed = true\n", "setting shed is wrong"),
        (b"hot_hours = 2026-11-20\n", "setting hot_hours is wrong"),
        (b"currency = 'EUR'\ncurrency = 'USD'\n", "line 2"),
        (b"currency EUR\n", "line 1"),
        ("currency = 'EUR'\n".encode("utf-16"), "UTF-8"),
        (b"# \xff\n", "UTF-8"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_refused_in_one_line(
    text: bytes, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "c.toml").write_bytes(text)
    message = refusal(monkeypatch, "ADCLICK_CONFIG", str(tmp_path / "c.toml"))
    assert expected in message
    assert "c.toml" in message


def test_a_file_that_begins_with_a_byte_order_mark_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xef\xbb\xbfcurrency = 'EUR'\r\nevent_partitions = 3\r\n")
    monkeypatch.setenv("ADCLICK_CONFIG", str(tmp_path / "c.toml"))
    settings = resolve().settings
    assert (settings.currency, settings.event_partitions) == ("EUR", 3)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(monkeypatch, "ADCLICK_CONFIG", str(tmp_path))
    assert message == f"{tmp_path} cannot be read: Is a directory"


@pytest.mark.parametrize("text", ["[]", "1", "null", '"kafka"', "{", "\udcff"])
def test_a_damaged_file_of_endpoints_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"endpoints.json cannot be read"):
        resolve(str(tmp_path))


def test_an_endpoint_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "endpoints.json").write_text(json.dumps({"kafka": {"host": "x"}}))
    with pytest.raises(UserError, match=r"setting kafka is wrong.*endpoints.json"):
        resolve(str(tmp_path))
