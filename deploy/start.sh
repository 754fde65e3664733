#!/bin/sh
# Two workers and nginx before them: a worker that ends is begun again; SIGTERM finishes what was begun.
set -u
here=$(dirname "$0")
ending=

worker() {
    child=
    trap 'trap "" TERM; ending=1; [ -z "$child" ] || kill -TERM "$child"; wait "$child"; exit 0' TERM
    while [ -z "$ending" ]; do
        # shellcheck disable=SC2086  # OPTIONS are several words
        gan-spark serve --lake "${LAKE:-lake}" --model "${MODEL:-default}" --port "$1" ${OPTIONS:-} &
        child=$!
        wait "$child"
        child=
        [ -n "$ending" ] || sleep 1
    done
}

worker 8081 &
first=$!
worker 8082 &
second=$!
nginx -c "${NGINX_CONF:-$(cd "$here" && pwd)/nginx.conf}" -g "daemon off;" &
front=$!
# nginx first: it answers what it has taken, and takes no more; then the workers.
trap 'kill -QUIT "$front"; wait "$front"; kill -TERM "$first" "$second"; wait "$first" "$second"; exit 0' TERM INT
wait "$front"
kill -TERM "$first" "$second"
wait "$first" "$second"
exit 1
