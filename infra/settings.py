"""Settings, resolved once into a frozen object that says where each value came from.

Order, strongest first: the folder named by `--dir`, `ADCLICK_…` in the environment, the TOML file that
`ADCLICK_CONFIG` names, the embedded stack in `.adclick`, the defaults below.

A value that may hold a secret can stand in a file of its own: `ADCLICK_REDIS_FILE`, or `redis_file` in the TOML file.
"""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from infra import addresses, cron
from infra.addresses import MASK
from infra.errors import UserError
from infra.kafka.connection import NO_OTHER_KAFKA, PARTITIONERS, Connection, Sasl, check_protocol
from infra.kafka.tokens import TokenSource
from infra.redis.access import NO_OTHER_REDIS, RedisAccess, check_tls_file
from infra.setting_sources import PREFIX, read_environment, read_object, read_toml, read_value, setting_of
from infra.setting_types import MOST, Count, Key, Secret, Share, TokenSecret, WebAddress, no_flag
from infra.tls import TlsFiles

DEFAULT_DIR = ".adclick"
ENDPOINTS_FILE = "endpoints.json"
# How settings begin that say how to connect to ClickHouse, and which kind it is.
_CLICKHOUSE_KIND = "clickhouse_"
# What may hold a password. Settings of the type SecretStr are secrets by their type.
_MAY_HOLD_SECRETS = frozenset(
    {"redis", "clickhouse", "archive", "trace_collector", "alert_webhook", "kafka_properties", "spark_properties"}
)
_MASKS = {
    "alert_webhook": addresses.mask_webhook,
    "kafka_properties": addresses.mask_properties,
    "spark_properties": addresses.mask_properties,
}
_ENVIRONMENT = "environment"
_SHOWN_CHARACTERS = 200


class Settings(BaseSettings):
    """The settings of a process. Durations carry their unit in the name."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", str_strip_whitespace=True)

    kafka: Annotated[str, AfterValidator(addresses.check_brokers)] = Field(
        "127.0.0.1:9092", description="Kafka's bootstrap addresses, by comma"
    )
    kafka_ca: str = Field(
        "", description="file of the authorities (PEM) that brokers are trusted by; empty: the system's"
    )
    kafka_certificate: str = Field("", description="file of our certificate (PEM), for brokers that ask for one")
    kafka_key: str = Field("", description="file of that certificate's key")
    kafka_key_password: Secret = Field(SecretStr(""), description="password of that key, where it has one")
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        "SCRAM-SHA-512", description="how a broker is shown who we are"
    )
    kafka_user: str = Field("", description="user, for all mechanisms but OAUTHBEARER")
    kafka_password: Secret = Field(SecretStr(""), description="that user's password")
    kafka_token_command: str = Field("", description="command that prints a token (JWT), for OAUTHBEARER")
    kafka_oidc_endpoint: Annotated[str, AfterValidator(addresses.check_token_endpoint)] = Field(
        "", description="token endpoint of an OIDC provider, for OAUTHBEARER in place of a command"
    )
    kafka_oidc_client_id: str = Field(
        "", description="client that tokens are fetched for, by the grant client_credentials"
    )
    kafka_oidc_client_secret: Secret = Field(SecretStr(""), description="that client's secret")
    kafka_oidc_scope: str = Field("", description="scope to ask for, where the provider wants one")
    kafka_oidc_ca: str = Field(
        "", description="file of the authorities (PEM) of an https endpoint; empty: the system's"
    )
    kafka_properties: Annotated[str, AfterValidator(addresses.check_properties)] = Field(
        "", description="more properties of librdkafka, by comma: NAME=VALUE"
    )
    partitioner: Literal["crc32", "murmur2", "fnv1a"] = Field(
        "crc32", description="how our own senders choose partitions: as the producers do (Java: murmur2)"
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", validate_default=True, description="how brokers are spoken to, as Kafka names it"
    )
    redis: Annotated[str, AfterValidator(addresses.check_redis)] = Field(
        "redis://127.0.0.1:6379/0",
        description="Redis URL, with user and password; redis+cluster:// and redis+sentinel:// take several hosts, by comma",
    )
    redis_ca: str = Field("", description="file of the certificate authority of Redis, for a rediss address")
    redis_certificate: str = Field("", description="file of the certificate that Redis asks clients for")
    redis_key: str = Field("", description="file of that certificate's key")
    redis_wait_replicas: Count = Field(0, ge=0, le=10, description="replicas that confirm ids before a commit; 0: none")
    clickhouse: Annotated[str, AfterValidator(addresses.check_clickhouse)] = Field(
        "http://127.0.0.1:8123", description="ClickHouse HTTP URL, with user and password"
    )
    clickhouse_ca: str = Field(
        "", description="file of authorities that the certificate of an https ClickHouse may be of; empty: the system's"
    )
    clickhouse_certificate: str = Field(
        "", description="file of the client's certificate chain, for an https ClickHouse"
    )
    clickhouse_key: str = Field("", description="file of that certificate's key, without a passphrase")
    clickhouse_cluster: str = Field(
        "",
        pattern=r"^[A-Za-z0-9_.-]*$",
        description="cluster in ClickHouse's remote_servers that tables are on; cloud: ClickHouse Cloud; empty: one server",
    )
    clickhouse_storage_policy: str = Field(
        "tiered", pattern=r"^[A-Za-z0-9_.-]*$", description="storage policy of ClickHouse's large tables; empty: none"
    )
    archive: Annotated[str, AfterValidator(addresses.check_archive)] = Field(
        "archive", min_length=1, description="the Parquet archive: a folder, or s3://BUCKET/PREFIX"
    )
    http: Annotated[str, AfterValidator(addresses.check_listen)] = Field(
        "http://127.0.0.1:8080", description="address the query router listens on"
    )
    api_key: Key = Field(SecretStr(""), description="the key that /v1 asks for")
    token_secret: TokenSecret = Field(
        SecretStr(""), description="secret that tokens are signed with, 32 characters at least; empty: api_key"
    )
    former_token_secret: TokenSecret = Field(
        SecretStr(""), description="the token_secret before, whose tokens are still accepted; or empty"
    )
    user_secret: Secret = Field(SecretStr("adclick"), min_length=1, description="secret that user ids are hashed with")
    namespace: str = Field(
        "", description="prefix of topics, Redis keys and the database", pattern=r"^[a-z0-9_]*$", max_length=64
    )
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="currency of every amount")
    reconcile_at: str = Field(
        "03:00", description="UTC time of the nightly reconciliation (HH:MM), a cron expression, or off"
    )
    other_regions: str = Field(
        "", description="files (TOML) with settings of other regions, by comma, whose events nightly runs bill, too"
    )
    passive: Literal["on", "off"] = Field(
        "off",
        description="this region follows another one: ad-events is a copy, and keeps the times that messages have there",
    )
    shed: Literal["on", "off"] = Field("off", description="drop impressions when hopelessly behind")
    reach: Literal["on", "off"] = Field("on", description="count distinct users by hour")

    event_partitions: Count = Field(4, ge=1, le=512, description="partitions of ad-events and ad-archive")
    block_partitions: Count = Field(4, ge=1, le=512, description="partitions of ad-blocks and what follows it")

    replication_factor: Count = Field(
        0, ge=0, le=32, description="replicas of each topic; 0: three where there are three brokers, else one"
    )
    min_insync_replicas: Count = Field(
        0, ge=0, le=32, description="replicas that must have what is written; 0: all but one, where there are several"
    )
    session_timeout_ms: Count = Field(
        6_000,
        ge=1_000,
        le=3_600_000,
        description="a consumer that sends no heartbeat for this long loses its partitions",
    )
    dedup_horizon_s: Count = Field(3600, ge=60, description="copies within this much log time are caught")
    dedup_segment_ids: Count = Field(
        2_000_000, ge=1, description="ids that are put in order in Redis together, at most"
    )
    events_retention_s: Count = Field(
        7 * 86_400, ge=180, description="how long ad-events are kept: 3 horizons at least"
    )
    blocks_retention_s: Count = Field(3 * 86_400, ge=60, description="how long what passes between stages is kept")
    accept_loss: str = Field("", description="events lost from ad-events to go on without, as ingest workers name them")
    ingest_batch: Count = Field(200_000, ge=1, le=200_000, description="messages an ingest transaction takes at most")
    ingest_linger_ms: Count = Field(150, ge=1, description="how long an ingest batch waits to fill")
    flush_ms: Count = Field(500, ge=50, description="how often the stream flushes partial windows")
    heartbeat_ms: Count = Field(1000, ge=100, description="how often idle ingest workers send heartbeats")
    canary_s: Count = Field(
        0, ge=0, le=30, description="seconds between two canaries to each partition of ad-events; 0: none are sent"
    )
    silent_after_ms: Count = Field(10_000, ge=500, description="a partition at its end this long is silent")
    archive_flush_ms: Count = Field(5_000, ge=100, description="how long archived rows may wait for their file")
    archive_keep_days: Count = Field(0, ge=0, description="days of the archive that are kept; 0: all")
    archive_most_gb: Annotated[float, BeforeValidator(no_flag)] = Field(
        0,
        ge=0,
        le=MOST,
        allow_inf_nan=False,
        description="largest size of the archive; the oldest days are deleted, never the last two; 0: no limit",
    )
    redis_page: Count = Field(20_000, ge=1, description="writes to the hot tier in one call at most")
    hot_hours: Count = Field(24, ge=2, description="hours of minutes that questions may reach back to")
    warm_days: Count = Field(30, ge=2, le=62, description="days of hours that questions may reach back to")
    query_timeout_s: Count = Field(5, ge=1, description="how long the router waits for ClickHouse")
    query_cache: Literal["on", "off"] = Field("on", description="keep what ClickHouse answered, while it cannot change")
    cors_origins: Annotated[str, AfterValidator(addresses.check_origins)] = Field(
        "", description="origins whose pages may call the router, by comma, like https://dash.example.com; * for all"
    )
    access_log: Literal["on", "off"] = Field("on", description="a line of JSON in the log for each HTTP request")
    trace_collector: WebAddress = Field(
        "", description="where spans of answers go (OTLP over HTTP), ending in /v1/traces; or empty"
    )
    tls_certificate: str = Field("", description="file of the certificate chain, for an http address with https")
    tls_key: str = Field("", description="file of the certificate's key")
    drift_share: Share = Field(0.001, description="a number further off than this has drifted")
    alert_share: Share = Field(0.005, description="a run that corrects more of its dimensions raises an alert")
    alert_severity: Literal["warning", "critical"] = Field(
        "critical", description="least severe anomaly that raises an alert"
    )
    alert_cooldown_s: int = Field(1_800, ge=0, le=86_400, description="between two alerts of a campaign and kind")
    alerts_a_day: int = Field(20, ge=1, description="alerts of a campaign on a day of UTC, at most")
    alert_webhook: WebAddress = Field("", description="where alerts of nightly runs are sent to, as JSON")
    notify_every_s: Count = Field(15, ge=1, le=3600, description="how often rules of alerts are evaluated")
    notify_lease_s: Count = Field(
        15,
        ge=2,
        le=600,
        description="a notify worker that was killed is followed by another one after so long, at most",
    )
    budget_pause: Literal["on", "off"] = Field(
        "off",
        description="once its budget is spent, set a campaign to paused in the directory, and announce that on ad-campaign-status",
    )
    dead_letter_share: Share = Field(
        0.01, description="a larger share of rejected messages within five minutes raises an alert"
    )
    silence_alert_s: Count = Field(
        900, ge=0, description="no event for so long, where there usually are some, raises an alert; 0: never"
    )
    webhook_allowed_networks: Annotated[str, AfterValidator(addresses.check_networks)] = Field(
        "", description="networks (CIDR) that webhooks may be sent to although they are not public, by comma"
    )
    webhook_ports: Annotated[str, AfterValidator(addresses.check_ports)] = Field(
        "80,443,8080,8443", description="ports that webhooks may be sent to, by comma; empty: any"
    )
    spark_memory: str = Field("2g", pattern=r"^[1-9]\d*[kmgtKMGT]$", description="heap of the Spark driver")
    spark_properties: Annotated[str, AfterValidator(addresses.check_spark_properties)] = Field(
        "", description="more properties of Spark, by comma: NAME=VALUE"
    )

    @field_validator("min_insync_replicas")
    @classmethod
    def _fewer_than_replicas(cls, value: int, info: ValidationInfo) -> int:
        replicas = int(info.data.get("replication_factor", 0))
        if replicas and value > replicas:
            raise ValueError(f"must not be more than replication_factor, which is {replicas}")
        return value

    @field_validator("events_retention_s")
    @classmethod
    def _outlasts_the_horizon(cls, value: int, info: ValidationInfo) -> int:
        # Lost dedup ids are rebuilt from the events themselves.
        needed = 3 * int(info.data.get("dedup_horizon_s", 0))
        if value < needed:
            raise ValueError(f"must be at least {needed}, three times dedup_horizon_s")
        return value

    @field_validator("kafka_security_protocol")
    @classmethod
    def _has_what_it_needs(cls, value: str, info: ValidationInfo) -> str:
        return check_protocol(value, info.data)

    @field_validator("redis_ca", "redis_certificate", "redis_key")
    @classmethod
    def _for_tls(cls, value: str, info: ValidationInfo) -> str:
        return check_tls_file(str(info.field_name), value, info.data)

    @field_validator("reconcile_at")
    @classmethod
    def _schedule(cls, value: str) -> str:
        if value != "off":
            cron.first_from(value, dt.datetime.now(dt.UTC))
        return value

    @property
    def kafka_connection(self) -> Connection:
        """How to reach Kafka."""
        password = self.kafka_key_password.get_secret_value()
        tls = TlsFiles("kafka", self.kafka_ca, self.kafka_certificate, self.kafka_key, password)
        tokens = TokenSource(
            self.kafka_token_command, self.kafka_oidc_endpoint, self.kafka_oidc_client_id,
            self.kafka_oidc_client_secret.get_secret_value(), self.kafka_oidc_scope, self.kafka_oidc_ca,
        )  # fmt: skip
        sasl = Sasl(self.kafka_sasl_mechanism, self.kafka_user, self.kafka_password.get_secret_value(), tokens)
        return Connection(
            self.kafka,
            tls if self.kafka_security_protocol.endswith("SSL") else None,
            sasl if self.kafka_security_protocol.startswith("SASL") else None,
            (("partitioner", PARTITIONERS[self.partitioner]), *addresses.properties_of(self.kafka_properties).items()),
        )

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins whose pages may call the router, as browsers write them."""
        return tuple(part for part in self.cors_origins.split(",") if part)

    @property
    def redis_access(self) -> RedisAccess:
        """Where Redis is, and how it is reached."""
        tls = TlsFiles("redis", self.redis_ca, self.redis_certificate, self.redis_key)
        return RedisAccess(self.redis, tls, self.redis_wait_replicas)

    @property
    def key_prefix(self) -> str:
        """What every Redis key of this installation begins with."""
        return f"adclick{self.namespace}:"

    @property
    def database(self) -> str:
        """The ClickHouse database of this installation."""
        return f"adclick{self.namespace}"

    def topic(self, name: str) -> str:
        """The real name of one of the topics in `infra.kafka.topics`."""
        return f"{self.namespace}{name}"


STORES = ("kafka", "redis", "clickhouse")
BY_FILE = {
    f"{name}_file": name
    for name, field in Settings.model_fields.items()
    if field.annotation is SecretStr or name in _MAY_HOLD_SECRETS
}
"""The names by which a file is named that a setting's value stands in → the setting."""


@dataclass(frozen=True)
class Resolved:
    """Settings together with the origin of each: `default`, a file, a variable."""

    settings: Settings
    origins: dict[str, str]
    directory: Path
    unused: tuple[str, ...] = ()
    """Variables whose settings are others in the folder of `--dir`, which is stronger."""

    @property
    def names_stores(self) -> bool:
        """Whether anything says where the stores are; otherwise their usual addresses on this machine are tried."""
        return any(name in self.origins for name in STORES)

    def masked(self) -> dict[str, tuple[str, str]]:
        """name → (printable value with secrets masked, origin)."""
        return {
            name: (_masked(name, getattr(self.settings, name)), self.origins.get(name, "default"))
            for name in Settings.model_fields
        }


def _default_secret(name: str) -> str:
    default = Settings.model_fields[name].default
    return default.get_secret_value() if isinstance(default, SecretStr) else ""


def _masked(name: str, value: Any) -> str:
    """A setting's value, right or wrong, as it may be printed."""
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if Settings.model_fields[name].annotation is SecretStr:
        # What everybody knows is shown: that it is the default must be seen.
        return MASK if value and value != _default_secret(name) else str(value)
    text = str(value)
    return _MASKS.get(name, addresses.mask)(text)


def read_endpoints(directory: Path) -> dict[str, Any]:
    """The addresses that `up` wrote into the folder; empty when there are none."""
    endpoints = read_object(directory / ENDPOINTS_FILE)
    return {name: value for name, value in endpoints.items() if name in Settings.model_fields}


def clickhouse_kind_defaults() -> dict[str, str]:
    """The settings beside the address of ClickHouse as the embedded one needs them."""
    fields = Settings.model_fields.items()
    return {name: str(field.default) for name, field in fields if name.startswith(_CLICKHOUSE_KIND)}


def stack_directory(directory: str | None) -> Path:
    """The folder of the embedded stack: `--dir`, `ADCLICK_DIR`, or `.adclick`."""
    return Path(directory or os.environ.get("ADCLICK_DIR") or DEFAULT_DIR)


def resolve(directory: str | None = None, *, stack: bool = True) -> Resolved:
    """Settle all settings. `directory` is the value of `--dir`, None when it was not given; `stack`: whether the addresses in it count.

    Raises UserError, naming the setting, when one is wrong, and for a `directory` in which no stack has been ready yet: a client
    that was to talk to it must not talk to another one.
    """
    folder = stack_directory(directory)
    endpoints = read_endpoints(folder) if stack else {}
    if directory is not None and stack and not endpoints:
        raise UserError(f"no stack has been started in {folder}", hint=f"adclick up --dir {folder} starts one")
    known = [*Settings.model_fields, *BY_FILE]
    layers: list[tuple[str, dict[str, Any]]] = []
    if directory is not None:
        layers.append(
            (str(folder / ENDPOINTS_FILE), (NO_OTHER_KAFKA | NO_OTHER_REDIS if endpoints else {}) | endpoints)
        )
    layers.append((_ENVIRONMENT, read_environment(os.environ, known)))
    config = os.environ.get("ADCLICK_CONFIG")
    if config:
        layers.append((config, read_toml(Path(config), known)))
    if directory is None:
        layers.append((str(folder / ENDPOINTS_FILE), endpoints))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    unused = list[str]()
    for origin, layer in layers:
        _refuse_doubles(origin, layer)
        for key, value in layer.items():
            name = BY_FILE.get(key, key)
            if name in values:
                if directory is not None and origin == _ENVIRONMENT and value != values[name]:
                    unused.append(_place(origin, key))
                continue
            if key != name:
                # Only where it counts: another file may be one that this process must not read.
                values[name], origins[name] = read_value(_place(origin, key), value), str(value)
            else:
                values[name] = value
                origins[name] = _place(origin, key) if origin == _ENVIRONMENT else origin
    if origins.get("clickhouse") == str(folder / ENDPOINTS_FILE):
        # They are about the ClickHouse that a variable or a file names, and this is the stack's own.
        values |= clickhouse_kind_defaults()
        origins = {name: origin for name, origin in origins.items() if not name.startswith(_CLICKHOUSE_KIND)}
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise _wrong_setting(error, origins) from error
    return Resolved(settings, origins, folder, tuple(unused))


def read_other_installation(file: Path, required: Iterable[str], setting: str) -> Settings:
    """The settings of another installation, from a file as ADCLICK_CONFIG names it; what is not in it is the default, and nothing is
    taken from this process. `setting` names the file. Raises UserError, also where one of `required` is missing."""
    origin, known = str(file), [*Settings.model_fields, *BY_FILE]
    layer = read_toml(file, known, setting)
    _refuse_doubles(origin, layer)
    values: dict[str, Any] = {name: field.default for name, field in Settings.model_fields.items()}
    for key, value in layer.items():
        values[BY_FILE.get(key, key)] = read_value(_place(origin, key), value) if key in BY_FILE else value
    if missing := [name for name in required if name not in {BY_FILE.get(key, key) for key in layer}]:
        raise UserError(f"{file} lacks {', '.join(missing)}", hint="the file has the other installation's own settings")
    try:
        return Settings(**values)
    except ValidationError as error:
        raise _wrong_setting(error, dict.fromkeys(values, origin)) from error


def _place(origin: str, key: str) -> str:
    """Where a layer names a setting, or the file of one, as a person finds it."""
    return f"{PREFIX}{key.upper()}" if origin == _ENVIRONMENT else f"{key} in {origin}"


def _refuse_doubles(origin: str, layer: Mapping[str, Any]) -> None:
    for key, name in BY_FILE.items():
        if key in layer and name in layer:
            raise UserError(
                f"{_place(origin, name)} and {_place(origin, key)} are both set", hint="remove one of the two"
            )


def file_variables(environment: Iterable[str]) -> tuple[str, ...]:
    """The variables among these that name files of values. A process that is given the values must not have them, too."""
    return tuple(name for name in environment if setting_of(name) in BY_FILE)


def _wrong_setting(error: ValidationError, origins: Mapping[str, str]) -> UserError:
    first = error.errors()[0]
    name = str(first["loc"][0]) if first["loc"] else "?"
    value = first.get("input")
    if isinstance(value, str | int | float | SecretStr):
        shown = repr(_masked(name, value)[:_SHOWN_CHARACTERS])
    else:  # a table of a TOML file, perhaps with secrets in it
        shown = f"of type {type(value).__name__}"
    reason = str(first["msg"]).removeprefix("Value error, ")
    return UserError(f"setting {name} is wrong: {reason} (it is {shown}, from {origins.get(name, 'default')})")
