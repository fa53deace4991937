"""All that an installation needs, as clusters on this machine, and the settings that name them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from infra.clickhouse.client import ClickHouse
from infra.clickhouse.schema import apply_migrations
from infra.kafka import topic_setup
from infra.settings import Settings
from tests.clusters.clickhouse_cluster import ClickHouseCluster, DdlEverywhere, own_settings
from tests.clusters.kafka_cluster import KafkaCluster
from tests.clusters.kafka_config import PASSWORDS
from tests.clusters.redis_cluster import RedisCluster
from tests.clusters.s3_server import S3Server

BUCKET = "adclick"


class Clusters:
    """Kafka of three brokers by TLS and passwords, Redis of three primaries with a replica each, ClickHouse of two shards with two replicas
    each, and a store that speaks S3; and the networks between them and their clients."""

    def __init__(self, folder: Path) -> None:
        self.kafka = KafkaCluster(folder / "kafka", 3, proxied="SASL_SSL")
        self.redis = RedisCluster(folder / "redis", proxied=True)
        self.clickhouse = ClickHouseCluster(folder / "clickhouse", proxied=True)
        self.s3 = S3Server()

    @contextlib.contextmanager
    def running(self) -> Iterator[Clusters]:
        """Start all of it, and end it behind the block."""
        with contextlib.ExitStack() as parts:
            parts.enter_context(self.kafka)
            for cluster in (self.redis, self.clickhouse):
                parts.callback(cluster.close)
                cluster.start()
            parts.enter_context(self.s3)
            self.s3.make_bucket(BUCKET)
            os.environ.update(self.s3.environment)
            yield self

    def settings(self, **more: Any) -> Settings:
        """Settings of an installation, which has its topics and tables then."""
        own = own_settings(self.clickhouse) | {
            "kafka": self.kafka.addresses("SASL_SSL"),
            "kafka_security_protocol": "SASL_SSL",
            "kafka_ca": str(self.kafka.authority.file),
            "kafka_user": "alice",
            "kafka_password": SecretStr(PASSWORDS["alice"]),
            "redis": self.redis.url,
            "archive": f"s3://{BUCKET}/archive",
        }
        settings = Settings.model_validate(own | more)
        topic_setup.ensure(settings)
        with DdlEverywhere(self.clickhouse.clients).installed():
            apply_migrations(ClickHouse.of(settings))
        return settings
