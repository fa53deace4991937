"""Stand-ins pass the suites of what they stand in for; the archive's folder passes the one that a bucket passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.file_store import FileStore
from infra.redis.client import Redis
from tests.contracts import FileStoreContract, RedisContract
from tests.unit.fakes import FakeRedis


class TestFakeRedis(RedisContract):
    """The fake."""

    @pytest.fixture
    def redis(self) -> Redis:
        return FakeRedis()

    @pytest.fixture
    def redis_away(self) -> Redis:
        fake = FakeRedis()
        fake.away = True
        return fake

    @pytest.fixture
    def prefix(self) -> str:
        return "x:"


class TestFolder(FileStoreContract):
    """A folder of this machine."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> FileStore:
        return FileStore(str(tmp_path / "archive"))

    @pytest.fixture
    def unusable(self, tmp_path: Path) -> FileStore:
        (tmp_path / "volume").write_text("a file where a volume is to be mounted")
        return FileStore(str(tmp_path / "volume" / "archive"))
