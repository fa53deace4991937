#!/bin/sh
# Make the secrets of compose.yaml: random, in the folder `secrets` beside this file. What is there stays, so it may run again.
#
#   make-secrets.sh                  those that are missing
#   make-secrets.sh renew redis      a new one; also kafka, clickhouse, api_key. Then recreate the containers that it names
set -eu
umask 022
folder=$(dirname "$0")/secrets
mkdir -p -m 0700 "$folder"
cd "$folder"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# Readable within the containers, whose uids are not yours; on this machine the folder lets nobody else in.
make_api_key() { random >api_key; }

make_kafka() {
    password=$(random)
    cat >kafka-jaas.conf <<CONFIG
KafkaServer {
  org.apache.kafka.common.security.plain.PlainLoginModule required
    username="adclick" password="$password" user_adclick="$password";
};
CONFIG
    echo "$password" >kafka
}

make_redis() {
    password=$(random)
    cat >redis.conf <<CONFIG
requirepass $password
dir /data
appendonly yes
appendfsync always
save ""
maxmemory 3gb
maxmemory-policy noeviction
CONFIG
    echo "redis://:$password@redis:6379/0" >redis
}

make_clickhouse() {
    password=$(random)
    digest=$(printf %s "$password" | sha256sum | cut -d' ' -f1)
    cat >clickhouse-users.xml <<CONFIG
<clickhouse>
  <users>
    <default remove="remove"/>
    <adclick>
      <password_sha256_hex>$digest</password_sha256_hex>
      <networks><ip>::/0</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </adclick>
  </users>
</clickhouse>
CONFIG
    echo "http://adclick:$password@clickhouse:8123" >clickhouse
}

case "$*" in
"") ;;
"renew kafka") make_kafka && services="kafka ingest archive stream router notify canary" ;;
"renew redis") make_redis && services="redis ingest archive stream router notify" ;;
"renew clickhouse") make_clickhouse && services="clickhouse stream router notify" ;;
"renew api_key") make_api_key && services="router" ;;
"renew user_secret")
    echo "make-secrets.sh: user_secret stays: counts of users before and after a change of it cannot be compared" >&2
    exit 1
    ;;
*)
    echo "usage: make-secrets.sh [renew kafka|redis|clickhouse|api_key]" >&2
    exit 2
    ;;
esac
if [ $# -gt 0 ]; then
    # A container has the file that was there when it was created, and compose does not look into files.
    echo "renewed; now: docker compose -f infra/deploy/compose.yaml up --detach --no-deps --force-recreate $services" >&2
    exit
fi

[ -e api_key ] || make_api_key
# Counts of users before and after a change of it cannot be compared.
[ -e user_secret ] || random >user_secret
[ -e kafka ] && [ -e kafka-jaas.conf ] || make_kafka
[ -e redis ] && [ -e redis.conf ] || make_redis
[ -e clickhouse ] && [ -e clickhouse-users.xml ] || make_clickhouse
echo "secrets are in $(pwd); the API key is in the file api_key" >&2
