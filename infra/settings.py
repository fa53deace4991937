"""Settings, resolved once into a frozen object that says where each value came from.

Order, strongest first: the folder named by `--dir`, `ADCLICK_…` in the environment, the TOML file that
`ADCLICK_CONFIG` names, the embedded stack in `.adclick`, the defaults below.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from infra import cron
from infra.errors import UserError

DEFAULT_DIR = ".adclick"
ENDPOINTS_FILE = "endpoints.json"
_SECRETS_IN_URL = re.compile(r"(://[^:/@]*:)[^@]*(?=@)|(_key=)[^&]+")


class Settings(BaseSettings):
    """What a process may be told. Durations carry their unit in the name."""

    model_config = SettingsConfigDict(env_prefix="ADCLICK_", frozen=True, extra="ignore")

    kafka: str = Field("127.0.0.1:9092", description="Kafka's bootstrap address")
    redis: str = Field("redis://127.0.0.1:6379/0", description="Redis URL")
    clickhouse: str = Field("http://127.0.0.1:8123", description="ClickHouse HTTP URL, with user and password")
    archive: str = Field("archive", description="the Parquet archive: a folder, or s3://BUCKET/PREFIX")
    http: str = Field("http://127.0.0.1:8080", description="address the query router listens on")
    api_key: SecretStr = Field(SecretStr(""), description="the key that /v1 asks for")
    user_secret: SecretStr = Field(SecretStr("adclick"), description="secret that user ids are hashed with")
    namespace: str = Field("", description="prefix of topics, Redis keys and the database", pattern=r"^[a-z0-9_]*$")
    currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="currency of every amount")
    reconcile_at: str = Field(
        "03:00", description="UTC time of the nightly reconciliation (HH:MM), a cron expression, or off"
    )
    shed: Literal["on", "off"] = Field("off", description="drop impressions when hopelessly behind")

    event_partitions: int = Field(4, ge=1, le=512, description="partitions of ad-events and ad-archive")
    block_partitions: int = Field(4, ge=1, le=512, description="partitions of ad-blocks and what follows it")

    session_timeout_ms: int = Field(6_000, ge=1_000, description="a worker unheard of for this long loses its place")
    dedup_horizon_s: int = Field(3600, ge=60, description="copies within this much log time are caught")
    dedup_segment_ids: int = Field(2_000_000, ge=1, description="ids that are put in order in Redis together, at most")
    events_retention_s: int = Field(7 * 86_400, ge=180, description="how long ad-events are kept: 3 horizons at least")
    blocks_retention_s: int = Field(3 * 86_400, ge=60, description="how long what passes between stages is kept")
    ingest_batch: int = Field(100_000, ge=1, le=200_000, description="messages an ingest transaction takes at most")
    ingest_linger_ms: int = Field(150, ge=1, description="how long an ingest batch waits to fill")
    flush_ms: int = Field(500, ge=50, description="how often the stream flushes partial windows")
    heartbeat_ms: int = Field(1000, ge=100, description="how often idle ingest workers send heartbeats")
    silent_after_ms: int = Field(10_000, ge=500, description="a partition at its end this long is silent")
    archive_flush_ms: int = Field(5_000, ge=100, description="how long archived rows may wait for their file")
    archive_keep_days: int = Field(0, ge=0, description="days of the archive that are kept; 0: all")
    archive_most_gb: float = Field(
        0, ge=0, description="beyond this the archive's oldest days go, but for two; 0: never"
    )
    redis_page: int = Field(20_000, ge=1, description="writes to the hot tier in one call at most")
    hot_hours: int = Field(24, ge=2, description="hours of minutes that questions may reach back to")
    warm_days: int = Field(30, ge=2, le=62, description="days of hours that questions may reach back to")
    query_timeout_s: int = Field(5, ge=1, description="how long the router waits for ClickHouse")
    query_cache: Literal["on", "off"] = Field("on", description="keep what ClickHouse answered, while it cannot change")
    access_log: Literal["on", "off"] = Field("on", description="a line of JSON in the log for each HTTP request")
    trace_collector: str = Field(
        "", description="where spans of answers go (OTLP over HTTP), ending in /v1/traces; or empty"
    )
    tls_certificate: str = Field("", description="file of the certificate chain, for an http address with https")
    tls_key: str = Field("", description="file of the certificate's key")
    drift_share: float = Field(0.001, ge=0, le=1, description="a number further off than this has drifted")
    alert_share: float = Field(
        0.005, ge=0, le=1, description="a run that corrects more of its dimensions raises an alert"
    )
    alert_webhook: str = Field(
        "", description="where alerts of nightly runs are sent to, as JSON", pattern=r"^(https?://.*)?$"
    )
    spark_memory: str = Field("2g", description="heap of the Spark driver")

    @field_validator("events_retention_s")
    @classmethod
    def _outlasts_the_horizon(cls, value: int, info: ValidationInfo) -> int:
        # Lost dedup ids are rebuilt from the events themselves.
        needed = 3 * int(info.data.get("dedup_horizon_s", 0))
        if value < needed:
            raise ValueError(f"must be at least {needed}, three times dedup_horizon_s")
        return value

    @field_validator("reconcile_at")
    @classmethod
    def _schedule(cls, value: str) -> str:
        if value != "off":
            cron.first_from(value, dt.datetime.now(dt.UTC))
        return value

    @property
    def key_prefix(self) -> str:
        """What every Redis key of this installation begins with."""
        return f"adclick{self.namespace}:"

    @property
    def database(self) -> str:
        """The ClickHouse database of this installation."""
        return f"adclick{self.namespace}"

    def topic(self, name: str) -> str:
        """The real name of one of the topics in `infra.topics`."""
        return f"{self.namespace}{name}"


@dataclass(frozen=True)
class Resolved:
    """Settings together with the origin of each: `default`, a file, a variable."""

    settings: Settings
    origins: dict[str, str]
    directory: Path

    def masked(self) -> dict[str, tuple[str, str]]:
        """name → (printable value with secrets masked, origin)."""
        shown: dict[str, tuple[str, str]] = {}
        for name in Settings.model_fields:
            value = getattr(self.settings, name)
            if isinstance(value, SecretStr):
                text = "********" if value.get_secret_value() else ""
            else:
                text = _SECRETS_IN_URL.sub(r"\1\2********", str(value))
            shown[name] = (text, self.origins.get(name, "default"))
        return shown


def read_endpoints(directory: Path) -> dict[str, Any]:
    """The addresses that `up` wrote into the folder; empty when there are none."""
    try:
        found = json.loads((directory / ENDPOINTS_FILE).read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{directory / ENDPOINTS_FILE} cannot be read: {error}") from error
    return {k: v for k, v in found.items() if k in Settings.model_fields}


def stack_directory(directory: str | None) -> Path:
    """The folder of the embedded stack: `--dir`, `ADCLICK_DIR`, or `.adclick`."""
    return Path(directory or os.environ.get("ADCLICK_DIR") or DEFAULT_DIR)


def resolve(directory: str | None = None, *, stack: bool = True) -> Resolved:
    """Settle all settings. `directory` is the value of `--dir`, None when it was not given; `stack`: whether the addresses in it count.

    Raises UserError, naming the setting, when one is wrong.
    """
    folder = stack_directory(directory)
    endpoints = read_endpoints(folder) if stack else {}
    layers: list[tuple[str, dict[str, Any]]] = []
    environment = {k: v for k, v in EnvSettingsSource(Settings)().items() if k in Settings.model_fields}
    if directory is not None:
        layers.append((str(folder / ENDPOINTS_FILE), endpoints))
    layers.append(("environment", environment))
    config = os.environ.get("ADCLICK_CONFIG")
    if config:
        layers.append((config, _read_toml(Path(config))))
    if directory is None:
        layers.append((str(folder / ENDPOINTS_FILE), endpoints))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for origin, layer in layers:
        for name, value in layer.items():
            if name not in values:
                values[name] = value
                origins[name] = f"ADCLICK_{name.upper()}" if origin == "environment" else origin
    try:
        settings = Settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else "?"
        raise UserError(
            f"setting {name} is wrong: {first['msg']} (it is {first.get('input')!r}, from {origins.get(name, 'default')})"
        ) from error
    return Resolved(settings, origins, folder)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        found = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"ADCLICK_CONFIG names {path}, which does not exist") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    unknown = sorted(set(found) - set(Settings.model_fields))
    if unknown:
        raise UserError(f"{path}: no such setting: {unknown[0]}", hint="adclick config lists them")
    return found
