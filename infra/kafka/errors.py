"""What to do about Kafka's errors, by their names in its protocol; librdkafka's own begin with an underscore."""

from __future__ import annotations

from typing import Protocol

from infra.errors import AdclickError, ClientBroken, Denied, Fenced, Refused, SessionLost, TimedOut, Unavailable

FENCED = {"_FENCED", "INVALID_PRODUCER_EPOCH", "PRODUCER_FENCED", "INVALID_PRODUCER_ID_MAPPING"}
# The answers of a moment: a topic that was just made, a leader that just moved, a broker that is just coming back.
PASSING = {
    "NOT_LEADER_FOR_PARTITION", "LEADER_NOT_AVAILABLE", "OFFSET_NOT_AVAILABLE",
    "NOT_COORDINATOR", "COORDINATOR_NOT_AVAILABLE", "COORDINATOR_LOAD_IN_PROGRESS",
}  # fmt: skip
_MISSING = "adclick migrate makes the topics"
_REPLICAS = "bring back brokers, or lower min.insync.replicas"
# What a broker declines until an operator changes something, and what.
_REFUSED = {
    "NOT_ENOUGH_REPLICAS": _REPLICAS,
    "NOT_ENOUGH_REPLICAS_AFTER_APPEND": _REPLICAS,
    "MSG_SIZE_TOO_LARGE": "raise max.message.bytes of the topic to what `adclick migrate` sets",
    "RECORD_LIST_TOO_LARGE": "raise segment.bytes of the topic",
    "KAFKA_STORAGE_ERROR": "look at the broker's disk",
    "POLICY_VIOLATION": "allow it in the broker's policy",
    "THROTTLING_QUOTA_EXCEEDED": "raise the user's quota",
    "UNKNOWN_TOPIC_OR_PART": _MISSING,
    "_UNKNOWN_TOPIC": _MISSING,
    "_UNKNOWN_PARTITION": "set the partition counts to what the topics have",
}
TLS_REFUSED = "_SSL"
"""The name of an error of librdkafka: a handshake that failed."""
CREDENTIALS = "correct the user's credentials"
OPEN_LISTENER = "set kafka_security_protocol to PLAINTEXT or SSL, or name the address of a listener with SASL"
_NO_SASL = "not valid in current SASL state"
_RIGHTS = "allow this user to use the topic, group and transactional id"
_DENIED = {
    "TOPIC_AUTHORIZATION_FAILED": _RIGHTS,
    "GROUP_AUTHORIZATION_FAILED": _RIGHTS,
    "CLUSTER_AUTHORIZATION_FAILED": _RIGHTS,
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": _RIGHTS,
    "SASL_AUTHENTICATION_FAILED": CREDENTIALS,
    "_AUTHENTICATION": CREDENTIALS,
    TLS_REFUSED: "look at kafka_ca, and at the certificates of brokers",
}
# Errors of a Fetch that pass: the leader moved or is not ready, or does not know the topic yet. The reader looks up the leaders.
_PASSING_OF_A_FETCH = {
    "UNKNOWN_TOPIC_OR_PART", "UNKNOWN_TOPIC_ID", "INCONSISTENT_TOPIC_ID", "LEADER_NOT_AVAILABLE",
    "NOT_LEADER_FOR_PARTITION", "FENCED_LEADER_EPOCH", "UNKNOWN_LEADER_EPOCH", "REPLICA_NOT_AVAILABLE",
    "OFFSET_NOT_AVAILABLE", "REQUEST_TIMED_OUT", "NETWORK_EXCEPTION", "COORDINATOR_LOAD_IN_PROGRESS",
    "KAFKA_STORAGE_ERROR",
}  # fmt: skip
_TIMED_OUT = {"_TIMED_OUT", "_MSG_TIMED_OUT", "_TIMED_OUT_QUEUE", "REQUEST_TIMED_OUT"}


class KafkaError(Protocol):
    """As much of confluent_kafka's errors as is needed here."""

    def name(self) -> str:
        """The name in Kafka's protocol."""

    def str(self) -> str:
        """The description."""

    def fatal(self) -> bool:
        """Whether the client can do nothing more."""


def decision_on(error: KafkaError) -> AdclickError:
    """What to do about an error of a call that can be repeated."""
    if error.name() in FENCED or (error.fatal() and error.name() not in _DENIED):
        return lost(error)
    return declined(error)


def declined(error: KafkaError) -> Unavailable:
    """The decision on an error after which the client goes on."""
    name, message = error.name(), f"Kafka: {error.str()}"
    if name in _DENIED:
        remedy = OPEN_LISTENER if _NO_SASL in message else _DENIED[name]
        return Denied(message, hint=remedy, backend="kafka", code=name)
    if name in _REFUSED:
        return Refused(message, hint=_REFUSED[name], backend="kafka", code=name)
    return (TimedOut if name in _TIMED_OUT else Unavailable)(message, backend="kafka")


def is_passing_fetch_error(error: KafkaError) -> bool:
    """Whether a Fetch that failed for a partition may succeed once its leader is looked up again."""
    return error.name() in _PASSING_OF_A_FETCH


def unreadable_partition(error: KafkaError, where: str) -> Refused:
    """What to do about a partition that a broker does not let us read: wait, whatever the reason."""
    name = error.name()
    kind = Denied if name in _DENIED else Refused
    return kind(f"Kafka: {where} cannot be read: {name}", hint=_DENIED.get(name, ""), backend="kafka", code=name)


def lost(error: KafkaError) -> SessionLost:
    """The decision on an error after which only a new client goes on."""
    kind = Fenced if error.name() in FENCED else ClientBroken
    return kind(f"Kafka: {error.str()}", hint=hint(error))


def hint(error: KafkaError) -> str:
    """What an operator may do about an error; empty where that is not known."""
    return _DENIED.get(error.name()) or _REFUSED.get(error.name(), "")
