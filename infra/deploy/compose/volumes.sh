#!/bin/sh
# What the service `backup` of compose.yaml runs: all volumes as files in /backup, or back from there.
set -eu
volumes="kafka redis clickhouse archive"

fail() {
    echo "backup: $1" >&2
    exit 1
}

case "$*" in
save)
    # Kafka leaves it when it has stopped in order, and takes it away when it starts: parts of a running stack are of different moments.
    [ -e /volumes/kafka/.kafka_cleanshutdown ] || fail "Kafka was not shut down in order; \`down\` first, or \`up\`, wait, and \`down\`"
    for name in $volumes; do
        tar -C "/volumes/$name" --numeric-owner -cf "/backup/$name.tar.part" .
        mv "/backup/$name.tar.part" "/backup/$name.tar"
    done
    ;;
restore)
    for name in $volumes; do
        [ -e "/backup/$name.tar" ] || fail "$name.tar is not in the backup"
        [ -z "$(ls -A "/volumes/$name")" ] || fail "the volume $name is not empty; \`down --volumes\` removes what is there"
    done
    for name in $volumes; do
        tar -C "/volumes/$name" --numeric-owner -xpf "/backup/$name.tar"
    done
    ;;
*) fail "save or restore?" ;;
esac
du -sh /backup/*.tar >&2
