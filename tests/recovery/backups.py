"""ClickHouse from its own backup: what people made comes back, published runs stay what they were, and what changed since is recounted."""

from __future__ import annotations

import json
import shutil
import time

from infra.clickhouse.client import ClickHouse
from query.client import Client
from tests.conftest import adclick
from tests.product import Product, wait_until
from tests.recovery.late_clicks import LateClicks, added
from tests.recovery.scene import Scene, check, must, reconcile

_NAME = "nightly"
# What workers write goes on after the backup.
_MOVES = ("stream_", "tier_borders", "closed_", "reach", "detector_", "key_use", "migrations", "alerts")


def backup(scene: Scene) -> float:
    """ClickHouse's data, with a backup of the night before; a day was restated since."""
    with scene.restored("clickhouse-backup") as product:
        product.up()
        client = ClickHouse.of(product.settings)
        key = json.loads(_output(product, "keys", "create", "--name", "before", "--all-advertisers", "--json"))
        names = scene.work / "names.ndjson"
        names.write_text('{"kind": "advertiser", "id": 1, "name": "Eins"}\n')
        must(product, "directory", "import", str(names))
        made = _contents(client)
        began = time.monotonic()
        client.command(f"BACKUP DATABASE {client.database} TO Disk('backups', '{_NAME}')")
        size = sum(f.stat().st_size for f in (product.folder.path / "backups").rglob("*") if f.is_file())
        print(f"  backup of {size >> 20} MB in {time.monotonic() - began:.1f} s", flush=True)
        clicks = LateClicks.of(scene)
        billed = clicks.read_day(product)
        clicks.reject(product)
        clicks.mend(product)
        reconcile(product, scene)
        wait_until(lambda: added(billed, clicks.read_day(product)) == clicks.expected, 60, "the day is restated")

        adclick("down", "--dir", str(product.folder.path))
        shutil.rmtree(product.folder.path / "clickhouse")
        lost_at = time.monotonic()
        product.up()
        # `up` makes the tables, all empty: a backup is restored in place of them.
        client.command(f"DROP DATABASE {client.database} SYNC")
        client.command(f"RESTORE DATABASE {client.database} FROM Disk('backups', '{_NAME}')")
        print(f"  restored {time.monotonic() - lost_at:.1f} s after the loss", flush=True)
        assert _contents(client) == made
        rebuilt = adclick("rebuild", "clickhouse", "--json", "--dir", str(product.folder.path))
        assert rebuilt.returncode in (0, 3), rebuilt.stderr
        outcomes = {day["date"]: day["outcome"] for day in json.loads(rebuilt.stdout)["days"]}
        print(f"  {outcomes}", flush=True)
        assert outcomes[scene.date] == "published", "the day was restated since: its run of the backup is not its bill"
        wait_until(lambda: added(billed, clicks.read_day(product)) == clicks.expected, 60, "the day is what it was")
        check(product, scene.questions(product))
        took_s = time.monotonic() - lost_at
        with_key = product.settings.model_copy(update={"api_key": type(product.settings.api_key)(key["key"])})
        assert Client(with_key).get("/v1/advertisers/1", [])["name"] == "Eins"
        return took_s


def _output(product: Product, *words: str) -> str:
    result = adclick(*words, "--dir", str(product.folder.path))
    assert result.returncode == 0, result.stderr
    return result.stdout


def _contents(client: ClickHouse) -> dict[str, tuple[int, int]]:
    """Table → rows and their hash, of those that only people and nightly runs write to."""
    tables = client.rows(
        "SELECT name, engine FROM system.tables WHERE database = {database:String} AND engine LIKE '%MergeTree'",
        {"database": client.database},
    )
    contents = dict[str, tuple[int, int]]()
    for name, engine in tables:
        if not name.startswith(_MOVES):
            final = "" if engine == "MergeTree" else " FINAL"
            ((count, digest),) = client.rows(f"SELECT count(), sum(cityHash64(*)) FROM {client.database}.{name}{final}")
            contents[name] = int(count), int(digest or 0)  # none of an empty table
    return contents
