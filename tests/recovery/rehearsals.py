"""`make rehearse`: the ways back of docs/recovery.md, each on a copy of a stack that has counted and reconciled a day; and the procedures of
docs/runbooks.md, each on a stack of its own.

Each loses something or changes something, takes the steps of its page, and compares every answer with the truth. EVENTS changes how many
there are, ONLY=name takes one rehearsal alone. Exit 1 where an answer differs.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from infra.clock import MINUTE_MS, now_ms
from infra.errors import AdclickError
from ingest.synthetic.generator import Spec, generate_events
from tests.conftest import adclick
from tests.product import COUNTS, SPAN_MS, wait_until
from tests.recovery.backups import backup
from tests.recovery.deployment import deployment
from tests.recovery.disk import archive_disk, disk
from tests.recovery.growth import growth
from tests.recovery.killed_rebuilds import killed_rebuilds
from tests.recovery.poison import poison
from tests.recovery.rotation import rotation
from tests.recovery.scene import Scene, check, check_what_is_missing, must, rebuild, reconcile, send_again
from tests.recovery.upgrade import upgrade
from tests.recovery.wrong_bill import wrong_bill


def whole_stack(scene: Scene) -> float:
    """The folder, from a copy of it that was taken while the stack was down."""
    with scene.restored("whole") as product:
        lost_at = time.monotonic()
        product.up()
        check(product, scene.questions(product) + scene.reconciled_questions(product))
        took_s = time.monotonic() - lost_at
        send_again(product, scene)
        check(product, scene.questions(product))
        return took_s


def redis(scene: Scene) -> float:
    """Redis' data: ids, and the minutes that the stream still has, come back by themselves; answers say which minutes are missing."""
    with scene.restored("redis") as product:
        shutil.rmtree(product.folder.path / "redis")
        lost_at = time.monotonic()
        product.up()
        must(product, "rebuild", "redis")
        by_hour = [q for q in scene.questions(product) if q.grain == "hour"]
        check(product, by_hour + scene.reconciled_questions(product))
        took_s = time.monotonic() - lost_at
        send_again(product, scene)
        check(product, by_hour)
        check_what_is_missing(product, scene.questions(product))
        return took_s


def clickhouse(scene: Scene) -> float:
    """ClickHouse's data: tables are made again, days are recounted from the archive, the newest hours come from the stream's state."""
    with scene.restored("clickhouse") as product:
        shutil.rmtree(product.folder.path / "clickhouse")
        lost_at = time.monotonic()
        product.up()
        rebuild(product, "clickhouse")
        check(product, scene.reconciled_questions(product))
        return time.monotonic() - lost_at


def kafka(scene: Scene) -> float:
    """Kafka's data: a new stack counts what the archive of the former one has, and recounts the days."""
    with scene.restored("kafka-lost") as former:
        shutil.rmtree(former.folder.path / "kafka")
        lost_at = time.monotonic()
        product = scene.product("kafka-new")
        try:
            product.up()
            rebuild(product, "stream", "--archive", str(former.folder.path / "archive"))
            check(product, scene.reconciled_questions(product))
            return time.monotonic() - lost_at
        finally:
            adclick("down", "--dir", str(product.folder.path))


def archive(scene: Scene) -> float:
    """A day of the archive: a run refuses to publish without it; from a copy the day is what it was."""
    with scene.restored("archive") as product:
        product.up()
        for folder in (product.folder.path / "archive").glob(f"*{scene.date}*"):
            shutil.rmtree(folder)
        lost_at = time.monotonic()
        refusal = must(product, "reconcile", "--date", scene.date, "--wait", "1", code=1)
        print(f"  {refusal.strip().splitlines()[-1][:200]}", flush=True)
        check(product, scene.reconciled_questions(product))
        shutil.copytree(scene.backup / "archive", product.folder.path / "archive", dirs_exist_ok=True)
        reconcile(product, scene)
        check(product, scene.reconciled_questions(product))
        return time.monotonic() - lost_at


# Each returns the seconds from the loss until all answers were the truth.
REHEARSALS = (whole_stack, redis, clickhouse, kafka, archive, backup, wrong_bill, killed_rebuilds)
# Those of docs/runbooks.md, in a folder of their own, without the scene.
PROCEDURES = (deployment, growth, upgrade, poison, archive_disk, disk, rotation)


def prepare(work: Path, count: int) -> Scene:
    """Count events, reconcile a day, stop, and copy the folder."""
    end = now_ms() // MINUTE_MS * MINUTE_MS
    spec = Spec(events=count, seed=23, start_ms=end - SPAN_MS, span_ms=SPAN_MS, campaigns=200, late=0.01)
    scene = Scene(work, work / "backup", generate_events(spec), spec.start_ms)
    product, file = scene.product("stack"), work / "events.ndjson"
    file.write_bytes(b"\n".join(scene.events.lines.to_list()) + b"\n")
    try:
        product.up()
        must(product, "replay", str(file), "--rate", "10000")
        wait_until(product.caught_up, 120, "all is ingested")
        counted = int(sum(scene.events.truth.counts.select(f"stream_{c}" for c in COUNTS).sum().row(0)))
        wait_until(lambda: product.shows(counted), 60, f"{counted} events are shown")
        reconcile(product, scene)
        check(product, scene.questions(product) + scene.reconciled_questions(product))
    finally:
        adclick("down", "--dir", str(product.folder.path))
    began = time.monotonic()
    shutil.copytree(product.folder.path, scene.backup, symlinks=True)
    size = sum(file.stat().st_size for file in scene.backup.rglob("*") if file.is_file())
    print(f"backup: {size >> 20} MB copied in {time.monotonic() - began:.1f} s", flush=True)
    shutil.rmtree(product.folder.path)
    return scene


def main() -> None:
    """Rehearse all, or one."""
    only = os.environ.get("ONLY", "")
    names = [rehearsal.__name__ for rehearsal in (*REHEARSALS, *PROCEDURES)]
    if only and only not in names:
        sys.exit(f"ONLY must be one of {', '.join(names)}")
    chosen = [rehearsal for rehearsal in REHEARSALS if only in ("", rehearsal.__name__)]
    procedures = [rehearsal for rehearsal in PROCEDURES if only in ("", rehearsal.__name__)]
    results = list[bool]()
    with tempfile.TemporaryDirectory(prefix="adclick-rehearsal-") as folder:
        for procedure in procedures:
            work = Path(folder) / procedure.__name__
            work.mkdir()
            results.append(_is_exact(procedure.__name__, partial(procedure, work), "from its beginning on"))
        if chosen:
            scene = prepare(Path(folder), int(os.environ.get("EVENTS") or 60_000))
            results += [
                _is_exact(rehearsal.__name__, partial(rehearsal, scene), "after the loss") for rehearsal in chosen
            ]
    sys.exit(not all(results))


def _is_exact(name: str, rehearse: Callable[[], float], since: str) -> bool:
    """Rehearse, and print what came of it."""
    print(name, flush=True)
    try:
        took_s = rehearse()
    except (AssertionError, AdclickError) as error:
        traceback.print_exc()
        print(f"{name:12} FAILED: {error}", flush=True)
        return False
    print(f"{name:12} exact {took_s:.0f} s {since}", flush=True)
    return True


if __name__ == "__main__":
    main()
