"""The real Redis, and a bucket in a store that speaks S3, pass the suites that their stand-ins pass."""

from __future__ import annotations

import uuid

import pytest

from infra.file_store import FileStore
from infra.redis.client import Redis
from infra.settings import Settings
from tests.clusters.s3_server import S3Server
from tests.contracts import FileStoreContract, RedisContract


class TestRedis(RedisContract):
    """The stack's own."""

    @pytest.fixture
    def redis(self, settings: Settings) -> Redis:
        return Redis(settings.redis)

    @pytest.fixture
    def redis_away(self) -> Redis:
        return Redis("redis://127.0.0.1:1")

    @pytest.fixture
    def prefix(self, settings: Settings) -> str:
        return settings.key_prefix


class TestBucket(FileStoreContract):
    """A prefix of a bucket."""

    @pytest.fixture
    def store(self, s3_server: S3Server) -> FileStore:
        bucket = f"t{uuid.uuid4().hex[:8]}"
        s3_server.make_bucket(bucket)
        return FileStore(f"s3://{bucket}/all/of/it")

    @pytest.fixture
    def unusable(self, s3_server: S3Server) -> FileStore:
        return FileStore("s3://no-such-bucket/all/of/it")
