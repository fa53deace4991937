#!/bin/sh
# Make the secrets of compose.yaml: random, in the folder `secrets` beside this file. What is there stays, so it may run again.
set -eu
umask 022
folder=$(dirname "$0")/secrets
mkdir -p -m 0700 "$folder"
cd "$folder"

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

# Readable within the containers, whose uids are not yours; on this machine the folder lets nobody else in.
[ -e api_key ] || random >api_key
# Counts of users before and after a change of it cannot be compared.
[ -e user_secret ] || random >user_secret
if [ ! -e redis ] || [ ! -e redis.conf ]; then
    password=$(random)
    echo "redis://:$password@redis:6379/0" >redis
    cat >redis.conf <<CONFIG
requirepass $password
dir /data
appendonly yes
appendfsync always
save ""
maxmemory 3gb
maxmemory-policy noeviction
CONFIG
fi
if [ ! -e clickhouse ] || [ ! -e clickhouse-users.xml ]; then
    password=$(random)
    echo "http://adclick:$password@clickhouse:8123" >clickhouse
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
fi
echo "secrets are in $(pwd); the API key is in the file api_key" >&2
