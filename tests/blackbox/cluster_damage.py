#!/usr/bin/env python3
"""One node's files are damaged at random places while it is stopped. After its restart the cluster's answers are right,
through every node, and the node heals from its peers: in place, or by setting its folder aside and coming back as a new
member under its old name.

    CLUSTER_TRIALS=100 CLUSTER_SEED=7 cluster_damage.py
"""

import collections
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, ConnectionLost, NodeExited, RespError, check, eventually, main, number  # noqa: E402

PAGE = 4096
RANGES = 8
KEYS = 4000
MODES = ("bit flip", "random bytes", "zeroed page", "truncation")


class Contents:
    """What is in the cluster, and what it may have been before: local reads may be old."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.now = {}
        self.ever = collections.defaultdict(set)
        self.serial = 0

    def write(self, client, count):
        commands = []
        for _ in range(count):
            key = b"key:%05d" % self.dice.randrange(KEYS)
            self.serial += 1
            if self.dice.random() < 0.15:
                commands.append(("DEL", key))
                self.now.pop(key, None)
                self.ever[key].add(None)
            else:
                value = b"%d:" % self.serial + self.dice.randbytes(self.dice.randrange(400))
                commands.append(("SET", key, value))
                self.now[key] = value
                self.ever[key].add(value)
        for reply in client.pipeline(commands):
            check(not isinstance(reply, RespError), "a write while the others are well", reply)

    def check_all(self, node, who):
        """Every answer is right, and there is one."""
        client = node.client()
        keys = sorted(self.ever)
        for key, reply in zip(keys, client.pipeline([("GET", key) for key in keys])):
            check(reply == self.now.get(key), who, key, reply if isinstance(reply, RespError) else (reply or b"nil")[:20],
                  (self.now.get(key) or b"nil")[:20])
        check(client.must("DBSIZE") == len(self.now), who, "DBSIZE", client.cmd("DBSIZE"), len(self.now))

    def check_local(self, node):
        """What the node itself has: an error, the truth, or what was true once. Returns how much is not the truth."""
        client = node.client()
        client.must("READONLY")
        keys = sorted(self.ever)
        different = 0
        for key, reply in zip(keys, client.pipeline([("GET", key) for key in keys])):
            if isinstance(reply, RespError):
                different += 1
                continue
            check(reply == self.now.get(key) or reply in self.ever[key] or reply is None, "a local read was never true", key)
            different += reply != self.now.get(key)
        return different


def used_pages(path):
    """Places of pages that are not all zero."""
    places = []
    with open(path, "rb") as file:
        at = 0
        while True:
            page = file.read(PAGE)
            if not page:
                return places
            if page.strip(b"\0"):
                places.append(at)
            at += len(page)


def damage(dice, folder):
    """Damages one file; says how."""
    kind = dice.choice(("log", "store"))
    if kind == "store":
        path = os.path.join(folder, "db", "data.mdb")
    else:
        slots = [os.path.join(folder, "wal", name) for name in sorted(os.listdir(os.path.join(folder, "wal")))]
        path = dice.choice([slot for slot in slots if os.path.isfile(slot) and used_pages(slot)])
    places = used_pages(path)
    # more often what is new: the end of the log
    place = dice.choice(places[-20:] if kind == "log" and dice.random() < 0.5 else places)
    mode = dice.choice(MODES)
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        if mode == "truncation":
            file.truncate(place + dice.randrange(PAGE))
        else:
            offset = min(place + dice.randrange(PAGE), size - 16)
            file.seek(offset)
            old = file.read(16)
            if mode == "bit flip":
                new = bytes([old[0] ^ (1 << dice.randrange(8))])
            elif mode == "random bytes":
                new = dice.randbytes(16)
            else:
                new, offset = b"\0" * PAGE, place
            file.seek(offset)
            file.write(new)
    return "%s of %s at page %d of %d" % (mode, os.path.relpath(path, folder), place // PAGE, size // PAGE)


def start_damaged(node):
    """Starts the node; returns what became of it."""
    node.ready_seconds = 30
    for _ in range(3):
        try:
            node.start()
            return "started"
        except NodeExited as exited:
            check(exited.stderr.strip(), "it ends without a word", exited.code)
            if exited.code == 3:
                return "refused"
            check(exited.code in (-6, -7, -11), "how a damaged node ends", exited.code, exited.stderr[-500:])
    return "dies"


def replace(cluster, node):
    """What an operator does with a node that does not start."""
    node.wipe()
    other = next(n for n in cluster if n is not node)
    done = eventually(lambda: (lambda r: r if r.code == 0 else None)(other.run("member", "replace", node.name)), 20,
                      "member replace")
    node.member, node.join = False, [other.peer]
    node.start()
    return done


def one_trial(cluster, contents, dice, trial, tally):
    victim = cluster[trial % 3]
    others = [node for node in cluster if node is not victim]
    contents.write(others[0].client(), 200)
    cluster.caught_up()
    if dice.random() < 0.5:
        check(victim.term() == 0, "stop")
    else:
        victim.kill9()
    cluster.wait_writable(others[0])
    contents.write(others[0].client(), 100)
    what = damage(dice, victim.data)
    outcome = start_damaged(victim)
    began = time.monotonic()
    for node in others:
        contents.check_all(node, "%s, %s; asked %s" % (victim.name, what, node.name))
    contents.write(others[0].client(), 50)
    if outcome == "started":
        try:
            contents.check_local(victim)
            contents.check_all(victim, "%s, %s; asked itself" % (victim.name, what))
        except (ConnectionLost, OSError):
            outcome = "died later"
    if not victim.alive():
        outcome = "died later" if outcome == "started" else outcome
        code = victim.process.returncode
        if outcome == "died later":
            check(code in (3, -6, -7, -11), "how it died", code, victim.stderr()[-500:])
        again = start_damaged(victim) if outcome == "died later" else outcome
        if again == "started":
            outcome = "died once"
        else:
            replace(cluster, victim)
            outcome += ", replaced"
    try:
        cluster.settle(40)
        eventually(lambda: contents.check_local(victim) == 0, 20, "the node has all of it again")
        contents.check_all(victim, what)
    except Exception:
        print("%s: %s, %s\n%s" % (victim.name, what, outcome, victim.stderr()[-3000:]), flush=True)
        raise
    tally[outcome] += 1
    print("%2d %s: %s: %s, whole after %.1f s" % (trial, victim.name, what, outcome, time.monotonic() - began), flush=True)


def test_damaged_node_heals():
    trials = int(number("CLUSTER_TRIALS", 6))
    seed = int(number("CLUSTER_SEED", time.time_ns() % 100000))
    print("CLUSTER_SEED=%d" % seed, flush=True)
    dice = random.Random(seed)
    contents = Contents(seed)
    tally = collections.Counter()
    with Cluster(3, ranges=RANGES, args=["--memory", "64MiB"]) as cluster:
        contents.write(cluster.client(0), 3000)
        for node in cluster:  # a part is in the store, a part is in the log only
            check(node.term() == 0)
            node.start()
            cluster.settle()
        contents.write(cluster.client(1), 1500)
        for trial in range(trials):
            one_trial(cluster, contents, dice, trial, tally)
    print("outcomes: %s" % dict(tally))


main()
