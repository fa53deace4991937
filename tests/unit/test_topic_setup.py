"""What is made and set of topics, and what is left alone."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from infra.errors import Denied, UserError
from infra.kafka import topic_setup, topics
from infra.kafka.topic_state import TopicState
from infra.settings import Settings


class OfOthers:
    """Brokers with topics that others have made, for a user who may not change them."""

    def __init__(self, brokers: int, replicas: int) -> None:
        self._brokers, self._replicas = brokers, replicas
        self.topics = dict[str, tuple[int, dict[str, str]]]()

    def make(self, settings: Settings, in_sync: int) -> None:
        """As Terraform or the like does it, with numbers as Kafka shows them."""
        for t in topics.wanted(settings):
            self.topics[t.name] = (
                t.partitions,
                t.config | {"min.insync.replicas": str(in_sync), "segment.index.bytes": "1"},
            )

    def partitions(self) -> dict[str, int]:
        return {name: count for name, (count, _) in self.topics.items()}

    def describe(self, names: Iterable[str]) -> dict[str, TopicState]:
        return {name: TopicState("id", {}, self.topics[name][0], self._replicas) for name in names}

    def configs(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        return {name: self.topics[name][1] for name in names}

    def brokers(self) -> int:
        return self._brokers

    def configure(self, _changes: dict[str, dict[str, str]]) -> None:
        raise Denied("Kafka: Broker: Topic authorization failed", code="TOPIC_AUTHORIZATION_FAILED")


def test_topics_that_others_made_as_they_should_be_need_no_right_to_change_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings, brokers = Settings.model_validate({}), OfOthers(3, 3)
    brokers.make(settings, in_sync=2)
    monkeypatch.setattr(topic_setup, "Admin", lambda _: brokers)
    assert topic_setup.ensure(settings) == []
    brokers.topics[settings.topic(topics.EVENTS)][1]["message.timestamp.type"] = "CreateTime"
    with pytest.raises(Denied):
        topic_setup.ensure(settings)


def test_a_topic_with_fewer_replicas_than_a_new_one_would_get_is_named() -> None:
    # As brokers make it by themselves for the first producer, where nothing else is set.
    brokers = OfOthers(3, 1)
    brokers.make(Settings.model_validate({}), in_sync=1)
    found = topic_setup.deviations(brokers, Settings.model_validate({}))  # type: ignore[arg-type]
    explanation = "has 1 replica, it should have 3: kafka-reassign-partitions adds some"
    assert {(d.topic, d.explanation) for d in found} == {(name, explanation) for name in brokers.topics}
    on_one = OfOthers(1, 1)
    on_one.make(Settings.model_validate({}), in_sync=1)
    assert topic_setup.deviations(on_one, Settings.model_validate({})) == []  # type: ignore[arg-type]


class MadeMeanwhile(OfOthers):
    """Brokers that make a topic with one partition for a producer, just before somebody else does."""

    def __init__(self, *names: str) -> None:
        super().__init__(1, 1)
        self._wanted_by_producers = names
        self.grown = dict[str, int]()
        self.configured = dict[str, dict[str, str]]()

    def create(self, new: dict[str, tuple[int, dict[str, str]]], _replicas: int) -> set[str]:
        made_by_brokers = dict.fromkeys(self._wanted_by_producers, (1, {"message.timestamp.type": "CreateTime"}))
        self.topics |= new | made_by_brokers
        return set(made_by_brokers)

    def grow(self, counts: dict[str, int]) -> None:
        self.grown |= counts

    def configure(self, changes: dict[str, dict[str, str]]) -> None:
        self.configured |= changes


def test_a_topic_that_brokers_make_meanwhile_gets_partitions_and_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate({})
    events = settings.topic(topics.EVENTS)
    brokers = MadeMeanwhile(events)
    monkeypatch.setattr(topic_setup, "Admin", lambda _: brokers)
    new = topic_setup.ensure(settings)
    (topic,) = (t for t in topics.wanted(settings) if t.name == events)
    assert set(new) == brokers.topics.keys() - {events}
    assert brokers.grown == {events: settings.event_partitions}
    assert brokers.configured == {events: topic.config | {"min.insync.replicas": "1"}}


def test_a_topic_that_brokers_make_meanwhile_and_that_cannot_grow_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate({})
    monkeypatch.setattr(topic_setup, "Admin", lambda _: MadeMeanwhile(settings.topic(topics.BLOCKS)))
    with pytest.raises(UserError, match="ad-blocks has 1 partitions, the setting says 4"):
        topic_setup.ensure(settings)
