#!/bin/bash
# Clients as programs use them, against a node: ioredis 6 and 5, node-redis 6 (tests/clients, versions
# pinned by package-lock.json) and hiredis. What is not installed and cannot be fetched is skipped;
# exit 77 only if none could run.
set -u
here=$(cd "$(dirname "$0")" && pwd)
source=${SOURCE:-$(cd "$here/../.." && pwd)}
build=${BUILD:-$source/build/release}
program=${DURAMEN:-$build/duramen}
folder=$build/clients
ran=0 failed=0

[ -x "$program" ] || { echo "no program at $program: build it first"; exit 1; }
mkdir -p "$folder" || exit 1
data=$(mktemp -d) || exit 1
node=
finish() {
    [ -n "$node" ] && kill "$node" 2>/dev/null && wait "$node" 2>/dev/null
    rm -rf "$data"
}
trap finish EXIT
trap 'exit 1' INT TERM

mkfifo "$data/ready"
"$program" serve --data "$data/node" --listen 127.0.0.1:0 --http off >"$data/ready" 2>"$data/log" &
node=$!
if ! read -r -t 30 line <"$data/ready"; then
    echo "the node did not start:"
    cat "$data/log"
    exit 1
fi
port=$(sed -n 's/.*resp=[^ ]*:\([0-9]*\).*/\1/p' <<<"$line")

run() {
    ran=$((ran + 1))
    timeout 120 "$@" || failed=1
}

if command -v node >/dev/null && command -v npm >/dev/null; then
    cp "$source"/tests/clients/{package.json,package-lock.json,smoke.mjs} "$folder"
    if ! cmp -s "$folder/package-lock.json" "$folder/installed-lock.json"; then
        (cd "$folder" && timeout 200 npm ci --no-audit --no-fund --ignore-scripts >npm.log 2>&1) &&
            cp "$folder/package-lock.json" "$folder/installed-lock.json"
    fi
    if cmp -s "$folder/package-lock.json" "$folder/installed-lock.json"; then
        run node "$folder/smoke.mjs" "$port"
    else
        echo "skipped: the Node.js clients cannot be installed (see $folder/npm.log)"
    fi
else
    echo "skipped: the Node.js clients need node and npm"
fi

if printf '#include <hiredis/hiredis.h>\n' | ${CC:-cc} -E - >/dev/null 2>&1; then
    if ${CC:-cc} -std=gnu17 -O1 -o "$folder/hiredis_smoke" "$source/tests/clients/hiredis_smoke.c" -lhiredis; then
        run "$folder/hiredis_smoke" "$port"
    else
        failed=1
    fi
else
    echo "skipped: libhiredis-dev is not installed"
fi

[ "$ran" -gt 0 ] || exit 77
exit $failed
