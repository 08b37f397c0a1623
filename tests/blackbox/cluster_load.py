"""Clients on all nodes of a cluster whose every operation is recorded and judged afterwards.

Each client stays with its node, waits for each answer, and comes back when its node does. Keys are of three kinds:
registers with unique values, counters and growing strings. They are taken from a pool that is renewed every few
seconds, so that operations whose outcome nobody knows do not pile up on a key.
"""

import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "lib"))
from cluster import KNOWN_ERRORS, ConnectionLost, RespError, check  # noqa: E402
from history import History  # noqa: E402

GENERATION_SECONDS = 3.0
KEYS_OF_A_KIND = 14


class Load:
    """with Load(cluster): ... ; then judge()."""

    def __init__(self, cluster, clients=9, seed=1, name="l"):
        self.cluster = cluster
        self.history = History()
        self.seed = seed
        self.name = name
        self.stopping = False
        self.failures = []
        self.refused = {}  # first words of error replies
        self.began = time.monotonic()
        self.ended = None
        self.used = set()
        self.pairs = []
        self.clients = 0
        self.lock = threading.Lock()
        self.threads = [
            threading.Thread(target=self._client, args=(i, cluster.nodes[i % len(cluster.nodes)]), daemon=True)
            for i in range(clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, value, trace):
        self.stopping = True
        for thread in self.threads:
            thread.join(timeout=60)
        self.ended = time.monotonic()
        check(kind is not None or not any(thread.is_alive() for thread in self.threads), "a client hangs")

    def _name(self):
        """A client that does not know the outcome of an operation goes on as somebody else."""
        with self.lock:
            self.clients += 1
            return self.clients

    def _client(self, number, node):
        try:
            dice = random.Random(self.seed * 1000 + number)
            while not self.stopping:
                client = None
                try:
                    client = node.client(timeout=10.0)
                    client.must("PING")
                    self._talk(node, client, self._name(), dice)
                except (ConnectionLost, OSError, RespError):
                    time.sleep(0.03)
                finally:
                    if client is not None:
                        client.close()
        except Exception as error:  # told by judge()
            self.failures.append(repr(error))

    def _talk(self, node, client, name, dice):
        serial = 0
        while not self.stopping:
            serial += 1
            generation = int((time.monotonic() - self.began) / GENERATION_SECONDS)
            at = "%s:%d:%d" % (self.name, generation, dice.randrange(KEYS_OF_A_KIND))
            value = "%d.%d" % (name, serial)
            kind = dice.random()
            if kind < 0.45:
                done = self._register(client, name, "r" + at, value, dice.random())
            elif kind < 0.65:
                done = self._one(client, name, "c" + at, "INCR", (1,), ("INCR",))
            elif kind < 0.72:
                done = self._one(client, name, "c" + at, "GET", (), ("GET",))
            elif kind < 0.80:
                done = self._one(client, name, "a" + at, "APPEND", (value + ",",), ("APPEND",))
            elif kind < 0.88:
                done = self._one(client, name, "a" + at, "GET", (), ("GET",))
            elif kind < 0.94:
                done = self._swap(client, name, "r" + at, value)
            else:
                done = self._pair(client, at, value, dice.random())
            if not done:
                name = self._name()

    def _register(self, client, name, key, value, kind):
        if kind < 0.5:
            return self._one(client, name, key, "GET", (), ("GET",))
        if kind < 0.85:
            return self._one(client, name, key, "SET", (value,), ("SET",))
        if kind < 0.93:
            return self._one(client, name, key, "GETSET", (value,), ("GETSET",))
        return self._one(client, name, key, "DEL", (), ("DEL",))

    def _refusal(self, reply):
        """True: certainly not applied."""
        word = reply.word
        with self.lock:
            self.refused[word] = self.refused.get(word, 0) + 1
        if word not in KNOWN_ERRORS:
            self.failures.append("an error of no documented kind: %s" % reply)
        return word != "UNKNOWN"

    def _one(self, client, name, key, kind, arguments, command):
        """One operation; False if its outcome is not known."""
        self.used.add(key)
        with self.history.begin(name, key, kind, *arguments) as operation:
            reply = client.cmd(*command, key, *[a for a in arguments if kind != "INCR"])
            if not isinstance(reply, RespError):
                operation.ok(reply)
                return True
            if self._refusal(reply):
                operation.failed()
                return True
            return False

    def _swap(self, client, name, key, value):
        """Compare-and-set by WATCH."""
        self.used.add(key)
        reply = client.cmd("WATCH", key)
        if isinstance(reply, RespError):
            self._refusal(reply)
            client.must("UNWATCH")
            return True
        with self.history.begin(name, key, "GET") as operation:
            old = client.cmd("GET", key)
            if isinstance(old, RespError):
                self._refusal(old)
                operation.failed()
                client.must("UNWATCH")
                return True
            operation.ok(old)
        if old is None:
            client.must("UNWATCH")
            return True
        client.must("MULTI")
        client.must("SET", key, value)
        with self.history.begin(name, key, "CAS", old, value) as operation:
            reply = client.cmd("EXEC")
            if reply is None:
                operation.failed()
            elif not isinstance(reply, RespError):
                check(reply == ["OK"], "EXEC answers", reply)
                operation.ok(1)
            elif self._refusal(reply):
                operation.failed()
            else:
                return False
            return True

    def _pair(self, client, at, value, kind):
        """Two keys that are only ever written together are always equal."""
        keys = "{p%s}:a" % at, "{p%s}:b" % at
        client.must("MULTI")
        for key in keys:
            client.must(*(("SET", key, value) if kind < 0.5 else ("GET", key)))
        reply = client.cmd("EXEC")
        if isinstance(reply, RespError):
            return self._refusal(reply)
        if kind >= 0.5 and reply[0] != reply[1]:
            self.failures.append("half a transaction was seen at %s: %r" % (keys[0], reply))
        return True

    def read_all(self, clients, seconds=60.0):
        """Reads every key at the end, through the given connections in turn."""
        end = time.monotonic() + seconds
        for i, key in enumerate(sorted(self.used)):
            while not self._read(clients[i % len(clients)], key):
                check(time.monotonic() < end, "a key cannot be read", key)

    def _read(self, client, key):
        with self.history.begin(self._name(), key, "GET") as operation:
            reply = client.cmd("GET", key)
            if isinstance(reply, RespError):
                operation.failed()
                return False
            operation.ok(reply)
            return True

    def judge(self, least_per_second=0):
        """Checks the history; returns a sentence."""
        counts = self.history.counts
        seconds = self.ended - self.began
        rate = counts["ok"] / seconds
        told = "%d operations, %.0f/s, %d unknown, %d refused, errors %s" % (
            sum(counts.values()), rate, counts["unknown"], counts["failed"], self.refused)
        check(not self.failures, self.failures[:5], told)
        verdict = self.history.check(keep=os.environ.get("KEEP_HISTORY") or os.path.join(
            os.environ.get("BUILD", "."), "history-%s-%d" % (self.name, self.seed)))
        check(rate >= least_per_second, "an invalid run: too few operations", told)
        return "%s; %s" % (told, verdict.splitlines()[-1] if verdict else "linearizable")
