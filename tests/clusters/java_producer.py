"""Java's own Kafka producer, as other teams run it: a JVM with Kafka's client, driven from here."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from py4j.java_gateway import JavaGateway

from infra.embedded import jars, java

_PACKAGE = "org.apache.kafka.common.serialization"


class JavaProducer:
    """`org.apache.kafka.clients.producer.KafkaProducer` for bytes."""

    def __init__(self, servers: str, **config: str) -> None:
        """`config`: Kafka's names with underscores, like `compression_type`."""
        classes = f"{jars.fetch(jars.KAFKA)}/*"
        self._gateway = JavaGateway.launch_gateway(
            classpath=classes, java_path=str(java.find()), javaopts=["-Xmx128m", "-XX:+UseSerialGC"], die_on_exit=True
        )
        jvm: Any = self._gateway.jvm
        properties = jvm.java.util.Properties()
        serializer = f"{_PACKAGE}.ByteArraySerializer"
        names = {"bootstrap.servers": servers, "key.serializer": serializer, "value.serializer": serializer}
        for name, value in (names | {name.replace("_", "."): value for name, value in config.items()}).items():
            properties.setProperty(name, value)
        self._record = jvm.org.apache.kafka.clients.producer.ProducerRecord
        self._producer = jvm.org.apache.kafka.clients.producer.KafkaProducer(properties)
        self._in_transactions = "transactional_id" in config
        if self._in_transactions:
            self._producer.initTransactions()

    def __enter__(self) -> JavaProducer:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._producer.close()
        self._gateway.shutdown()

    def send(self, topic: str, messages: list[tuple[bytes | None, bytes]], *, commit: bool = True) -> None:
        """Send all, each with a header, and wait until brokers have them; one transaction if it has an id, which is rolled back unless
        it is to `commit`."""
        if self._in_transactions:
            self._producer.beginTransaction()
        for key, value in messages:
            record = self._record(topic, key, value)
            record.headers().add("sent-by", b"java")
            self._producer.send(record)
        self._producer.flush()
        if self._in_transactions:
            (self._producer.commitTransaction if commit else self._producer.abortTransaction)()
