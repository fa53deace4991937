#!/bin/bash
# As that of the image: makes folders and hands them to the user `clickhouse`, then becomes it.
set -eo pipefail
if [ "$(id -u)" = 0 ]; then
    for dir in /var/lib/clickhouse /var/lib/clickhouse/tmp /var/lib/clickhouse/slow /var/log/clickhouse-server; do
        mkdir -p "$dir"
        if [ "$(stat -c %u:%g "$dir")" != 101:101 ]; then
            chown -R 101:101 "$dir"
        fi
    done
    exec setpriv --reuid=101 --regid=101 --clear-groups python3 -P /server.py
fi
exec python3 -P /server.py
