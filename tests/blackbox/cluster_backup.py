#!/usr/bin/env python3
"""A cluster is backed up under load, through each of its nodes; each backup becomes a new cluster of one, which grows to
three while the old one still runs."""

import os
import random
import shutil
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from cluster import Cluster, RespError, check, eventually, main, temp_folder  # noqa: E402

KEYS = 8000
RANGES = 16


class Writer(threading.Thread):
    """Writes {w}:n = n, {w}:last = n and a pair in one command, for n = 1, 2, ..., all in one range."""

    def __init__(self, node, number):
        super().__init__(daemon=True)
        self.client = node.client()
        self.number = number
        self.done = 0
        self.stopping = False
        self.error = None

    def key(self, name):
        return b"{writer%d}:%s" % (self.number, lib.to_bytes(name))

    def run(self):
        try:
            while not self.stopping:
                n = self.done + 1
                for command in (("SET", self.key(n), n), ("SET", self.key("last"), n),
                                ("MSET", self.key("left"), n, self.key("right"), n), ("DEL", self.key(n - 50))):
                    reply = self.client.cmd(*command)
                    check(not isinstance(reply, RespError), reply)
                self.done = n
        except Exception as error:  # shown by the test
            self.error = error

    def judge(self, found, low, high):
        """What a backup has of it: all that was acknowledged before, nothing twice, no hole."""
        last = int(found.get(self.key("last"), (b"0",))[0])
        check(low <= last <= high, "what was acknowledged before is in, what came later is not", low, last, high)
        left, right = int(found[self.key("left")][0]), int(found[self.key("right")][0])
        check(left == right and left in (last, last - 1), "half a transaction, or out of order", left, right, last)
        start = b"{writer%d}:" % self.number
        numbers = sorted(int(key[len(start):]) for key in found if key.startswith(start) and key[len(start):].isdigit())
        check(numbers == list(range(numbers[0], numbers[-1] + 1)), "a hole", numbers)
        check(numbers[-1] in (last, last + 1) and len(numbers) <= 51, numbers[0], numbers[-1], last)


def test_backup_under_load_and_restore():
    dice = random.Random(5)
    expected = {b"k:%05d" % i: dice.randbytes(dice.randrange(200)) for i in range(KEYS)}
    folder = temp_folder()
    with Cluster(3, ranges=RANGES) as cluster:
        for reply in cluster.client(1).pipeline([("SET", key, value) for key, value in expected.items()]):
            check(reply == "OK", reply)
        writers = [Writer(cluster[i % 3], i) for i in range(6)]
        for writer in writers:
            writer.start()
        eventually(lambda: all(writer.done > 60 or writer.error for writer in writers), 30, "writers at work")
        for i, node in enumerate(cluster):
            file = os.path.join(folder, "backup-%d" % i)
            began = [writer.done for writer in writers]
            done = node.run("backup", "--out", file)
            check(done.code == 0, done)
            ended = [writer.done + 1 for writer in writers]
            check(lib.run("verify", file).code == 0)
            target = os.path.join(folder, "restored-%d" % i)
            done = lib.run("restore", "--in", file, "--data", target)
            check(done.code == 0, done)
            grow(cluster, target, expected, writers, began, ended, 3 if i == 2 else 1)
            shutil.rmtree(target)
        for writer in writers:
            writer.stopping = True
            writer.join(30)
            check(writer.error is None, writer.error)


def grow(old, target, expected, writers, began, ended, nodes):
    """A new cluster out of a restored folder."""
    with Cluster(0, ranges=RANGES) as cluster:
        first = cluster.add(data=target)
        check(first.status()["cluster_id"] != old.status(0)["cluster_id"], "a restored folder is a cluster of its own")
        check([member["name"] for member in first.status()["members"]] == [first.status()["node"]], first.status()["members"])
        found = lib.dump(first.client())
        for writer, low, high in zip(writers, began, ended):
            writer.judge(found, low, high)
        wrong = [key for key, value in expected.items() if found.get(key, (None,))[0] != value]
        check(not wrong, "keys are lost or wrong", len(wrong), wrong[:3])
        if nodes == 1:
            return
        check(first.client().must("SET", "new", "1") == "OK")
        first.name = first.status()["node"]
        for i in range(nodes - 1):
            cluster.add("new%d" % i)
        cluster.settle(60)
        cluster.caught_up()
        first.kill9()
        survivor = cluster[1]
        cluster.wait_writable(survivor)
        client = survivor.client()
        for key, reply in zip(expected, client.pipeline([("GET", key) for key in expected])):
            check(reply == expected[key], "lost on the way to three nodes", key)
        check(client.must("GET", "new") == b"1")
        check(old.client(0).must("GET", "new") is None, "the old cluster knows nothing of it")
        first.start()
        cluster.settle(30)


main()
