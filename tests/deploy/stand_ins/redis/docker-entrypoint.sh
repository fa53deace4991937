#!/bin/bash
# As that of the official image, for a server that is started as its own user.
set -e
if [ "${1#-}" != "$1" ] || [ "${1%.conf}" != "$1" ]; then
    set -- redis-server "$@"
fi
[ "$(umask)" = 0022 ] && umask 0077
exec "$@"
