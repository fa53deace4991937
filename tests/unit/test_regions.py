"""Which regions a nightly run bills, what is refused before it begins, and how far a copy of another region reaches."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import SecretStr

from batch.archived_rows import NO_REJECTED_IDS
from batch.coverage import Proof, Stretch, describe_missing
from batch.reconcile import _Job, _refuse_lost_regions
from batch.regions import Region, join_proofs, read_regions
from infra.errors import UserError
from infra.kafka import topics
from infra.settings import Settings
from ingest.replicated import Copy

_OWN = {"kafka": "eu-kafka:9092", "clickhouse": "http://eu-clickhouse:8123", "archive": "s3://eu/clicks"}
_US = 'kafka = "us-kafka:9092"\nclickhouse = "http://us-clickhouse:8123"\narchive = "s3://us/clicks"\n'


def _regions(folder: Path, text: str, **own: str) -> Settings:
    (folder / "us.toml").write_text(text)
    return Settings(**(_OWN | own), other_regions=str(folder / "us.toml"))  # type: ignore[arg-type]


def test_another_region_has_the_settings_of_its_file_and_none_of_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ADCLICK_NAMESPACE", "blue_")
    monkeypatch.setenv("ADCLICK_USER_SECRET", "shared")
    (tmp_path / "secret").write_text("shared\n")
    own, us = read_regions(_regions(tmp_path, f'{_US}user_secret_file = "{tmp_path}/secret"\nevent_partitions = 8\n'))
    assert (own.number, own.name, own.settings.namespace) == (0, "", "blue_")
    assert (us.number, us.name, us.settings.namespace, us.settings.event_partitions) == (1, "us", "", 8)
    assert us.settings.user_secret == SecretStr("shared")
    assert [region.name for region in read_regions(Settings(**_OWN))] == [""]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "own", "said"),
    [
        ('kafka = "us:9092"\n', {}, "us.toml lacks clickhouse, archive"),
        (_US + 'colour = "red"\n', {}, "no such setting: colour"),
        (_US.replace("us-kafka", "eu-kafka"), {}, "has the Kafka or the archive of this region"),
        (_US.replace("s3://us/", "s3://eu/"), {}, "has the Kafka or the archive of this region"),
        (_US + 'currency = "EUR"\n', {}, "region us bills in EUR, this region in USD"),
        (_US, {"user_secret": "theirs"}, "region us hashes user ids with another secret than this region"),
        (_US.replace("http:", "ftp:"), {}, "setting clickhouse is wrong: .*us.toml"),
    ],
)
def test_what_would_make_a_bill_of_two_regions_wrong_is_refused(
    tmp_path: Path, text: str, own: dict[str, str], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        read_regions(_regions(tmp_path, text, **own))


def test_a_region_cannot_be_billed_twice(tmp_path: Path) -> None:
    settings = _regions(tmp_path, _US)
    (tmp_path / "b").mkdir()
    for name, said in (("us.toml", "names us twice"), ("b/again.toml", "has the Kafka or the archive of region us")):
        (tmp_path / name).write_text(_US)
        twice = settings.model_copy(update={"other_regions": f"{tmp_path}/us.toml, {tmp_path}/{name}"})
        with pytest.raises(UserError, match=said):
            read_regions(twice)


def test_a_region_whose_kafka_is_away_is_named(tmp_path: Path) -> None:
    region = read_regions(_regions(tmp_path, _US))[1]
    with pytest.raises(UserError, match=r"^region us: no such day \(pick one\)$"), region.named():
        raise UserError("no such day", hint="pick one")


def test_what_is_missing_is_named_with_its_region(tmp_path: Path) -> None:
    regions = read_regions(_regions(tmp_path, _US))
    own = Proof([], [Stretch(0, 0, 9)], [], NO_REJECTED_IDS, [9])
    other = Proof([], [Stretch(0, 5, 7)], [Stretch(0, 5, 6)], NO_REJECTED_IDS, [7])
    proof = join_proofs(regions, [own, other])
    assert (
        describe_missing(proof.missing) == "1 messages of ad-events are neither archived nor dead letters: us 0/5 to 6"
    )
    assert (proof.ends, proof.other_ends) == ([9], {"us": [7]})
    assert list(map(str, proof.looked_at)) == ["0/0 to 9", "us 0/5 to 7"]


def _job(regions: list[Region], summary: dict[str, Any], *, force: bool = False) -> tuple[_Job, list[str]]:
    """A run of these regions, where the day's current run has this summary; and what it says."""
    lines = list[str]()
    client = SimpleNamespace(database="adclick", rows=lambda *_: [("20261120-a", json.dumps(summary))])
    fields: dict[str, Any] = {"app": SimpleNamespace(say=lines.append), "client": client, "regions": regions}
    return _Job(**fields, master="", force=force, skip_empty=False, dry_run=False, closed_ms=0, began_s=0), lines


def test_a_run_without_a_region_that_the_days_bill_has_is_refused_unless_forced(tmp_path: Path) -> None:
    both, day = read_regions(_regions(tmp_path, _US)), dt.date(2026, 11, 20)
    billed = {"other_ends": {"us": [7]}}
    with pytest.raises(UserError, match=r"run 20261120-a of 2026-11-20 bills events of region us, .*nothing was") as e:
        _refuse_lost_regions(_job(both[:1], billed)[0], day)
    assert "ADCLICK_OTHER_REGIONS" in e.value.hint and "--force" in e.value.hint
    forced, lines = _job(both[:1], billed, force=True)
    _refuse_lost_regions(forced, day)
    assert lines == ["ALERT: run 20261120-a of 2026-11-20 bills events of region us, which this run lacks"]
    for regions, summary in ((both, billed), (both, {}), (both[:1], {}), (both[:1], {"other_ends": {}})):
        job, lines = _job(regions, summary)
        _refuse_lost_regions(job, day)
        assert lines == []


def test_producers_send_again_from_the_partition_on_that_is_furthest_behind() -> None:
    assert Copy([30, 10, 20]).resend_from_ms == 10
    assert Copy([30, None]).resend_from_ms is None


def test_the_log_of_a_passive_region_keeps_the_times_of_the_other_one() -> None:
    def kinds(**changes: str) -> dict[str, str]:
        topics_wanted = topics.wanted(Settings(**changes))  # type: ignore[arg-type]
        return {
            t.name: t.config["message.timestamp.type"] for t in topics_wanted if "message.timestamp.type" in t.config
        }

    assert (kinds(), kinds(passive="on")) == ({"ad-events": "LogAppendTime"}, {"ad-events": "CreateTime"})
