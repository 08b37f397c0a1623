"""The ledger behind the crash tests: writers that know what a store may hold after a crash.

Every connection writes its own keys, in order: SET, DEL, INCR, APPEND, and EXEC over keys of several
ranges. After a crash the state of a connection's keys must be exactly the state after some number
P of its commands, with acknowledged <= P <= sent: nothing acknowledged is lost, nothing unsent
appears, nothing is applied twice, and no transaction is there in part.
"""

import os
import random
import sys
import threading

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "blackbox"))
from lib import ConnectionLost, RespError, check, to_bytes  # noqa: E402

KEYS = 120


class Writer:
    """One connection's ledger. `state` is what the keys hold after `base` commands."""

    def __init__(self, number, seed):
        self.number = number
        self.random = random.Random(seed)
        self.state = {}
        self.pending = []  # commands since `state`, each a list of (key, function of the old value)
        self.acknowledged = 0
        self.failure = None
        self.total = 0

    def key(self, i):
        return b"w%d:%d" % (self.number, i)

    def command(self):
        """Returns (wire commands, replies expected, effects)."""
        key = self.key(self.random.randrange(KEYS))
        kind = self.random.random()
        self.total += 1
        value = b"%d-%s" % (self.total, b"x" * self.random.randrange(100))
        if kind < 0.5:
            return [("SET", key, value)], [(key, lambda old: value)]
        if kind < 0.6:
            return [("DEL", key)], [(key, lambda old: None)]
        if kind < 0.75:
            counter = key + b":n"
            return [("INCR", counter)], [(counter, lambda old: b"%d" % (int(old or 0) + 1))]
        if kind < 0.85:
            log = key + b":log"
            return [("APPEND", log, b"%d," % self.total)], [(log, lambda old, n=self.total: (old or b"") + b"%d," % n)]
        keys = [self.key(self.random.randrange(KEYS)) for _ in range(4)]
        wire = [("MULTI",)] + [("SET", k, value) for k in keys] + [("INCR", b"w%d:tx" % self.number), ("EXEC",)]
        effects = [(k, lambda old: value) for k in keys]
        effects.append((b"w%d:tx" % self.number, lambda old: b"%d" % (int(old or 0) + 1)))
        return wire, effects

    def run(self, node):
        try:
            client = node.client()
            while True:
                wire, sizes = [], []
                for _ in range(self.random.randrange(1, 48)):
                    commands, effects = self.command()
                    self.pending.append(effects)
                    wire.extend(commands)
                    sizes.append(len(commands))
                client.send_raw(b"".join(encode_all(wire)))
                for size in sizes:
                    for _ in range(size):
                        reply = client.read()
                        if isinstance(reply, RespError) and "log failed" in str(reply):
                            return  # the node is on its way out, as it must be: nothing more is acknowledged
                        if isinstance(reply, RespError):
                            self.failure = "unexpected reply %s" % reply
                            return
                    self.acknowledged += 1
        except (ConnectionLost, OSError):
            pass

    def settle(self, node):
        """Finds how many commands survived and takes their result over as the new state."""
        names = [self.key(i) for i in range(KEYS)]
        names += [k + b":n" for k in names] + [k + b":log" for k in names] + [b"w%d:tx" % self.number]
        found = dict(zip(names, node.client().must("MGET", *names)))
        state = dict(self.state)
        survived = None
        for index in range(len(self.pending) + 1):
            if index >= self.acknowledged and all(found[k] == state.get(k) for k in names):
                survived = index
            if index < len(self.pending):
                for key, effect in self.pending[index]:
                    state[key] = effect(state.get(key))
        if survived is None:
            state = dict(self.state)
            for effects in self.pending[: self.acknowledged]:
                for key, effect in effects:
                    state[key] = effect(state.get(key))
            wrong = [k for k in names if found[k] != state.get(k)][:5]
            check(False, "no prefix of the commands explains what is there", self.number, "acknowledged",
                  self.acknowledged, "sent", len(self.pending), [(k, found[k], state.get(k)) for k in wrong])
        kept = self.pending[:survived]
        for effects in kept:
            for key, effect in effects:
                self.state[key] = effect(self.state.get(key))
        done = self.acknowledged
        self.pending, self.acknowledged = [], 0
        return done, survived


def encode_all(commands):
    for command in commands:
        arguments = [to_bytes(a) for a in command]
        yield b"*%d\r\n" % len(arguments)
        for argument in arguments:
            yield b"$%d\r\n%s\r\n" % (len(argument), argument)


class Load:
    """Some writers at once; start() and join() around the crash, settle() after the restart."""

    def __init__(self, count, seed):
        self.writers = [Writer(i, seed + i) for i in range(count)]
        self.acknowledged = self.survived = 0
        self.threads = []

    def start(self, node):
        self.threads = [threading.Thread(target=w.run, args=(node,)) for w in self.writers]
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join()

    def settle(self, node):
        for writer in self.writers:
            check(writer.failure is None, writer.failure)
            done, kept = writer.settle(node)
            self.acknowledged += done
            self.survived += kept
