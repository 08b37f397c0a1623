#!/usr/bin/env python3
"""duramen-check and tests/lib/history.py: the verdicts, the exit codes and the recording."""

import os
import subprocess
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import history  # noqa: E402

PROGRAM = os.path.join(os.environ["BUILD"], "duramen-check")


def status(text):
    done = subprocess.run([PROGRAM], input=text.encode(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
    return done.returncode, done.stdout.decode()


def expect(condition, what):
    if not condition:
        sys.exit("failed: %s" % (what,))


def test_exit_codes():
    code, said = status("1 2 1 ok k SET a\n3 4 2 ok k GET = a\n")
    expect(code == 0 and said.startswith("2 operations on 1 keys: 1 by zones"), said)
    code, said = status("1 2 1 ok k SET a\n3 4 2 ok k GET = -\n")
    expect(code == 1 and "line 2" in said, said)
    code, said = status("1 2 1 ok k SET a\nnonsense\n")
    expect(code == 2 and "line 2: fewer than six fields" in said, said)
    hard = "".join("1 - 1 unknown k INCR %d\n" % (1 << i) for i in range(30)) + "2 3 1 ok k GET = 1073741825\n"
    code, said = status(hard)
    expect(code == 3 and "1 not decided" in said, (code, said))
    expect(subprocess.run([PROGRAM, "/nonexistent"], stderr=subprocess.DEVNULL).returncode == 2, "no file")


def record(broken):
    """Eight threads on one dictionary; `broken`: increments are not atomic."""
    recorded = history.History()
    store, lock = {}, threading.Lock()
    barrier = threading.Barrier(2)

    def increments(client):
        for i in range(200):
            with recorded.begin(client, "count er", "INCR", 1) as op:
                with lock:
                    store["n"] = store.get("n", 0) + 1
                    answer = store["n"]
                op.ok(answer)
            with recorded.begin(client, b"key\xff%d" % (i % 5), "SET", "v%d-%d" % (client, i)) as op:
                with lock:
                    store[i % 5] = "v%d-%d" % (client, i)
                if i % 20:
                    op.ok()
            with recorded.begin(client, b"key\xff%d" % (i % 5), "GET") as op:
                with lock:
                    value = store[i % 5]
                op.ok(value)

    def lost_update(client):
        with recorded.begin(client, "lost", "INCR", 1) as op:
            seen = store.get("lost", 0)
            barrier.wait()
            store["lost"] = seen + 1
            barrier.wait()
            op.ok(seen + 1)

    threads = [threading.Thread(target=increments, args=(client,)) for client in range(8)]
    if broken:
        threads += [threading.Thread(target=lost_update, args=(client,)) for client in (8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return recorded


def test_recording():
    recorded = record(False)
    said = recorded.check()
    expect(said.startswith("4800 operations on 6 keys: 5 by zones, 1 by search, 0 not"), said)
    expect(recorded.counts["unknown"] == 80, recorded.counts)
    try:
        record(True).check()
    except history.Violation as violation:
        expect("lost INCR 1 = 1" in str(violation), violation)
    else:
        expect(False, "a lost update was not seen")


test_exit_codes()
test_recording()
print("ok")
