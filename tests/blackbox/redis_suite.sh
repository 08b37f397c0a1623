#!/bin/bash
# Runs units of Redis's own Tcl suite against a node: usage redis_suite.sh [unit ...]
#
# The suite is not part of this repository. It is taken from Debian's source package of redis,
# fetched once into $BUILD/redis-suite. Without a network (or apt, or tclsh) the test is skipped.
# Tests of commands that are not ours are skipped by name, each with its reason, in
# redis_suite_skips.txt; docs/COMMANDS.md says the same for people. The run fails if a test fails,
# and also if fewer tests passed than the unit is known to have: a suite that silently
# runs nothing must not look green.
set -u
here=$(cd "$(dirname "$0")" && pwd)
source=${SOURCE:-$(cd "$here/../.." && pwd)}
build=${BUILD:-$source/build/release}
program=${DURAMEN:-$build/duramen}
cache=$build/redis-suite

# unit, and how many of its tests have to pass
units="unit/type/string:53 unit/type/incr:21 unit/expire:55 unit/scan:5 unit/keyspace:33 unit/protocol:15 unit/multi:21"

skip() {
    echo "skipped: $*"
    exit 77
}

fetch() {
    command -v apt-get >/dev/null || skip "the suite comes from Debian's redis source package, and there is no apt-get"
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial" || exit 1
    local release
    release=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
    cat >"$cache/apt/sources.list" <<LIST
deb-src http://deb.debian.org/debian $release main
deb-src http://deb.debian.org/debian-security $release-security main
LIST
    local options=(-o "Dir::Etc::sourcelist=$cache/apt/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$cache/apt/lists" -o "Dir::Cache=$cache/apt" -o Acquire::Retries=2)
    (cd "$cache" && timeout 240 apt-get "${options[@]}" update && timeout 240 apt-get "${options[@]}" source --download-only redis) \
        >"$cache/fetch.log" 2>&1 || skip "the redis source package cannot be fetched (see $cache/fetch.log)"
    rm -rf "$cache/unpacked" "$cache/tree"
    mkdir "$cache/unpacked" && tar -xzf "$cache"/redis_*.orig.tar.gz -C "$cache/unpacked" --strip-components 1 || exit 1
    mv "$cache/unpacked" "$cache/tree"
}

command -v tclsh >/dev/null || skip "tclsh is not installed"
[ -x "$program" ] || { echo "no program at $program: build it first"; exit 1; }
[ -f "$cache/tree/runtest" ] || fetch

data=$(mktemp -d) || exit 1
logs=$(mktemp -d) || exit 1
node=
finish() {
    [ -n "$node" ] && kill "$node" 2>/dev/null && wait "$node" 2>/dev/null
    rm -rf "$data" "$logs"
}
trap finish EXIT
trap 'exit 1' INT TERM

mkfifo "$logs/ready"
"$program" serve --data "$data/node" --listen 127.0.0.1:0 --http off --peer off >"$logs/ready" 2>"$logs/node" &
node=$!
if ! read -r -t 30 line <"$logs/ready"; then
    echo "the node did not start:"
    cat "$logs/node"
    exit 1
fi
port=$(sed -n 's/.*resp=[^ ]*:\([0-9]*\).*/\1/p' <<<"$line")
[ -n "$port" ] || { echo "no RESP address in: $line"; exit 1; }

sed -n 's/^\([^#].*[^ ]\) *| .*$/\1/p' "$here/redis_suite_skips.txt" >"$logs/skips"

# Not ours by nature: access to the server's internals (debug), replication, memory limits.
tags="-needs:debug -needs:repl -needs:config-maxmemory -slow"
failed=0
for entry in $units; do
    unit=${entry%:*} least=${entry#*:}
    [ $# -eq 0 ] || [[ " $* " == *" $unit "* ]] || continue
    log=$logs/${unit//\//_}
    (cd "$cache/tree" && timeout -k 5 200 ./runtest --host 127.0.0.1 --port "$port" --singledb --ignore-encoding \
        --ignore-digest --clients 1 --no-latency --durable --tags "$tags" --skipfile "$logs/skips" --single "$unit") >"$log" 2>&1
    result=$?
    sed -i 's/\x1b\[[0-9;]*m//g' "$log"
    passed=$(grep -c '^\[ok\]' "$log")
    wrong=$(grep -cE '^\[(err|exception)\]' "$log")
    echo "$unit: $passed passed, $wrong failed, $(grep -cE '^\[(skip|ignore)\]' "$log") skipped"
    if [ "$result" -ne 0 ] || [ "$wrong" -gt 0 ] || [ "$passed" -lt "$least" ]; then
        [ "$passed" -ge "$least" ] || echo "$unit: only $passed of at least $least tests passed"
        grep -vE '^\[(ok|skip|ignore)\]' "$log" | tail -60
        failed=1
    fi
done
if ! kill -0 "$node" 2>/dev/null; then
    echo "the node died:"
    tail -20 "$logs/node"
    failed=1
fi
exit $failed
