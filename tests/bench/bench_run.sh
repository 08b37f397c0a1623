#!/bin/sh
# The bench against a running node: loads keys, reads them back, and writes JSON and a picture.
set -eu
[ -x "$DURAMEN" ] || exit 77
folder=$(mktemp -d "${TMPDIR:-/var/tmp}/bench-run.XXXXXX")
server=
finish() {
    [ -z "$server" ] || { kill "$server" 2>/dev/null || true; wait "$server" 2>/dev/null || true; }
    rm -rf "$folder"
}
trap finish EXIT

mkfifo "$folder/ready"
"$DURAMEN" serve --data "$folder/data" --listen 127.0.0.1:0 --http off --peer off \
    >"$folder/ready" 2>"$folder/log" &
server=$!
read -r line <"$folder/ready" || { cat "$folder/log"; exit 1; }
node=${line#*resp=}
node=${node%% *}

"$DURAMEN" bench --node "$node" --no-progress --keys 5000 --load --workload mixed --requests 5000 \
    --json "$folder/out.json" --plot "$folder/out.svg" >"$folder/table"
cat "$folder/table"
grep -q 'duramen_version' "$folder/table"
grep -q '"operations":5000,' "$folder/out.json"
grep -q '"misses":0,' "$folder/out.json"
grep -q '</svg>' "$folder/out.svg"

# an address where nobody listens is a failure, not wrong usage, and says so
code=0
"$DURAMEN" bench --node 127.0.0.1:1 --no-progress --seconds 1 2>"$folder/error" || code=$?
[ "$code" = 1 ]
grep -q 'cannot connect to 127.0.0.1:1' "$folder/error"
code=0
"$DURAMEN" bench --clients none 2>/dev/null || code=$?
[ "$code" = 2 ]
