"""Backends that only some integration tests need, beside the stack of the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import drop_database, make_settings

if TYPE_CHECKING:
    from tests.clusters.s3_server import S3Server
    from tests.installation import Installation


@pytest.fixture(scope="session")
def running_s3_server() -> Iterator[S3Server]:
    """An S3-compatible store, which takes two seconds to start."""
    from tests.clusters.s3_server import S3Server

    with S3Server() as server:
        yield server


@pytest.fixture
def s3_server(running_s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The store, standing in for AWS in this process and its children. Its buckets are the tests' own."""
    for name, value in running_s3_server.environment.items():
        monkeypatch.setenv(name, value)
    yield running_s3_server
    running_s3_server.network.restore()


@pytest.fixture(scope="module")
def shared_installation(backends: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """A router that the tests of a file share."""
    from tests.installation import open_installation

    settings = make_settings(backends, tmp_path_factory.mktemp("installation"))
    with open_installation(settings) as opened:
        yield opened
    drop_database(settings)


@pytest.fixture
def installation(shared_installation: Installation) -> Iterator[Installation]:
    """The router of the file, with an advertiser of the test's own."""
    yield shared_installation.with_advertiser()
    shared_installation.delete_webhooks()
