"""Rebuilds that are killed half-way, and run again."""

from __future__ import annotations

import shutil
import signal
import time

from tests.conftest import adclick
from tests.product import Product
from tests.recovery.scene import Scene, check, rebuild


def _kill(product: Product, point: str, *words: str) -> None:
    result = adclick("rebuild", *words, "--dir", str(product.folder.path), ADCLICK_FAULT=f"kill@{point}")
    assert result.returncode == -signal.SIGKILL, f"{words} was not killed at {point}: {result.stderr}"


def killed_rebuilds(scene: Scene) -> float:
    """Rebuilds of ClickHouse and of the stream, killed after a day and within one; run again, they end exact."""
    with scene.restored("killed") as former:
        shutil.rmtree(former.folder.path / "clickhouse")
        lost_at = time.monotonic()
        former.up()
        for point in ("reconcile.written", "reconcile.published"):
            _kill(former, point, "clickhouse")
            time.sleep(31)  # the lease
        rebuild(former, "clickhouse")
        check(former, scene.reconciled_questions(former))
        adclick("down", "--dir", str(former.folder.path))
        shutil.rmtree(former.folder.path / "kafka")
        product = scene.product("killed-new")
        try:
            product.up()
            words = ("stream", "--archive", str(former.folder.path / "archive"))
            _kill(product, "rebuild.sent", *words)
            _kill(product, "reconcile.counted", *words)
            rebuild(product, *words)
            check(product, scene.reconciled_questions(product))
            return time.monotonic() - lost_at
        finally:
            adclick("down", "--dir", str(product.folder.path))
