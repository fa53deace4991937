"""Backends that only some integration tests need, beside the stack of the session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import drop_database, make_settings

if TYPE_CHECKING:
    from tests.bucket import BucketServer
    from tests.installation import Installation


@pytest.fixture
def bucket_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[BucketServer]:
    """An S3-compatible store, that stands in for AWS in this process and its children."""
    from tests.bucket import BucketServer  # which takes a second, and most tests do without it

    server = BucketServer()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    yield server
    server.stop()


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
