"""The whole stack on one machine: real Kafka, Redis and ClickHouse, without Docker and without root."""
