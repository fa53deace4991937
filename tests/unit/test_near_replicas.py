"""Which replica a partition is read from."""

from __future__ import annotations

from infra.kafka.near_replicas import NearReplicas

LEADER, NEAR = ("leader", 9092), ("near", 9092)


def source(replicas: NearReplicas) -> tuple[str, int]:
    return replicas.sources({0: LEADER})[0]


def test_the_replica_that_a_leader_names_is_read_from_until_it_has_no_answer() -> None:
    replicas = NearReplicas("rack-2")
    assert (source(replicas), replicas.rack([0])) == (LEADER, "rack-2")
    replicas.follow(0, NEAR, 100, -1)
    assert source(replicas) == NEAR
    replicas.avoid_address(NEAR)
    assert (source(replicas), replicas.rack([0])) == (LEADER, ""), "or the leader would name it again"
    assert replicas.rack([1]) == "rack-2"


def test_a_replica_that_is_not_known_is_not_asked_for_again() -> None:
    replicas = NearReplicas("rack-2")
    replicas.follow(0, None, 100, -1)
    assert (source(replicas), replicas.rack([0])) == (LEADER, "")


def test_one_that_is_out_of_sync_is_left_once_the_leader_names_it_again() -> None:
    replicas = NearReplicas("rack-2", near_s=0.0)
    for leader_end, last_end in ((100, -1), (200, 100), (300, 250)):
        replicas.follow(0, NEAR, leader_end, last_end)
        assert replicas.rack([0]) == "rack-2"
    # By now it should have 300.
    replicas.follow(0, NEAR, 400, 299)
    assert replicas.rack([0]) == ""
