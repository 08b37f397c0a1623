#!/usr/bin/env python3
"""Random commands to a node and to the installed redis-server (7.0), whose replies must agree.

Keys are few, so that commands meet; arguments are mostly legal and sometimes not. Replies that depend on
time are compared within a second, walks as sets. Skipped (77) where no Redis 7.0 is installed. The seed is
printed; SEED=n repeats a run, COMMANDS=n sets its length.
"""

import os
import random
import re
import shutil
import socket
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import Client, Node, RespError, check, main  # noqa: E402

SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(1 << 32))
COMMANDS = int(os.environ.get("COMMANDS") or 10000)


class Redis:
    """A redis-server on a free port, in a folder of its own."""

    def __enter__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.folder = lib.temp_folder("duramen-redis-")
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--save", "", "--dir", self.folder, "--proto-max-bulk-len", "16777216"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lib.eventually(self.answers, what="redis-server answers")
        return self

    def answers(self):
        try:
            with Client(self.port) as client:
                return client.cmd("PING") == "PONG"
        except OSError:
            return False

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def word(rng):
    return rng.choice(["", "a", "hello", "x" * 50, "0", "10", "-5", "3.25", "9223372036854775807", "-9223372036854775808",
                       "1e3", " 1", "01", "bin\x00\r\n", str(rng.randrange(100))])


def number(rng):
    if rng.random() < 0.08:
        return rng.choice(["", "abc", "1.5", " 1", "+1", "9223372036854775808", "9223372036854775807", "-9223372036854775808",
                           "99999999999999999999", "-0", "01"])
    return str(rng.choice([0, 1, -1, 2, 5, -5, 100, rng.randrange(-1000, 1000), rng.randrange(1 << 40)]))


def small(rng):
    return number(rng) if rng.random() < 0.1 else str(rng.randrange(-12, 30))


def seconds(rng):
    """An amount of seconds that is far from every other in its effect."""
    return rng.choice(["1000", "5000", "100000", "0", "-1", "9223372036854775807", "9223372036854776", "x", "2000000000"])


def milliseconds(rng):
    return rng.choice(["1000000", "5000000", "100000000", "0", "-1", "9223372036854775807", "x"])


def instant(rng, unit):
    when = rng.choice([time.time() + 10000, time.time() + 1e6, 1, 0, -1, 99999999999])
    return str(int(when * unit)) if rng.random() < 0.9 else rng.choice(["x", "9223372036854775807"])


def expiry(rng):
    name = rng.choice(["EX", "PX", "EXAT", "PXAT"])
    amount = {"EX": seconds, "PX": milliseconds, "EXAT": lambda r: instant(r, 1), "PXAT": lambda r: instant(r, 1000)}[name](rng)
    return [name, amount] if rng.random() < 0.97 else [name]


def options(rng, *choices):
    found = []
    while rng.random() < 0.45:
        found += rng.choice(choices)()
    return found


def draw(rng):
    key = "k%d" % rng.randrange(8) if rng.random() < 0.97 else ""
    other = "k%d" % rng.randrange(8)
    kinds = {
        "SET": lambda: ["SET", key, word(rng)] + options(rng, lambda: [rng.choice(["NX", "XX", "GET", "KEEPTTL", "PERSIST", "nx", "foo"])],
                                                         lambda: expiry(rng)),
        "GET": lambda: ["GET", key],
        "GETEX": lambda: ["GETEX", key] + options(rng, lambda: ["PERSIST"], lambda: expiry(rng), lambda: ["KEEPTTL"]),
        "GETDEL": lambda: ["GETDEL", key],
        "GETSET": lambda: ["GETSET", key, word(rng)],
        "SETNX": lambda: ["SETNX", key, word(rng)],
        "SETEX": lambda: ["SETEX", key, seconds(rng), word(rng)],
        "PSETEX": lambda: ["PSETEX", key, milliseconds(rng), word(rng)],
        "MSET": lambda: ["MSET"] + [x for _ in range(rng.randrange(4)) for x in ("k%d" % rng.randrange(8), word(rng))] + ([key] if rng.random() < 0.1 else []),
        "MSETNX": lambda: ["MSETNX"] + [x for _ in range(rng.randrange(3)) for x in ("k%d" % rng.randrange(12), word(rng))],
        "MGET": lambda: ["MGET"] + ["k%d" % rng.randrange(8) for _ in range(rng.randrange(5))],
        "APPEND": lambda: ["APPEND", key, word(rng)],
        "STRLEN": lambda: ["STRLEN", key],
        "GETRANGE": lambda: [rng.choice(["GETRANGE", "SUBSTR"]), key, small(rng), small(rng)],
        "SETRANGE": lambda: ["SETRANGE", key, rng.choice([small(rng), "16777215", "16777216"]) if rng.random() < 0.1 else small(rng), rng.choice(["", "ab", "xyz"])],
        "INCR": lambda: [rng.choice(["INCR", "DECR"]), key],
        "INCRBY": lambda: [rng.choice(["INCRBY", "DECRBY"]), key, number(rng)],
        "INCRBYFLOAT": lambda: ["INCRBYFLOAT", key, rng.choice(["0.1", "-0.1", "1e2", "3", "1.23456789012345678", "-3.0", "1e-10", "nan", "inf", "-inf", "", "x", " 1", "1 ", "0x1p3", "1e400", "1e4000"])],
        "DEL": lambda: [rng.choice(["DEL", "UNLINK", "EXISTS", "TOUCH"]), key] + [other for _ in range(rng.randrange(3))],
        "TYPE": lambda: ["TYPE", key],
        "EXPIRE": lambda: ["EXPIRE", key, seconds(rng)] + options(rng, lambda: [rng.choice(["NX", "XX", "GT", "LT", "gt", "foo"])]),
        "PEXPIRE": lambda: ["PEXPIRE", key, milliseconds(rng)] + options(rng, lambda: [rng.choice(["NX", "XX", "GT", "LT"])]),
        "EXPIREAT": lambda: ["EXPIREAT", key, instant(rng, 1)] + options(rng, lambda: [rng.choice(["NX", "XX", "GT", "LT"])]),
        "PEXPIREAT": lambda: ["PEXPIREAT", key, instant(rng, 1000)] + options(rng, lambda: [rng.choice(["NX", "XX", "GT", "LT"])]),
        "TTL": lambda: [rng.choice(["TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME"]), key],
        "PERSIST": lambda: ["PERSIST", key],
        "RENAME": lambda: [rng.choice(["RENAME", "RENAMENX"]), key, other],
        "COPY": lambda: ["COPY", key, other] + options(rng, lambda: ["REPLACE"], lambda: ["DB", rng.choice(["0", "1", "2", "15", "16", "x"])], lambda: ["foo"]),
        "KEYS": lambda: ["KEYS", rng.choice(["*", "k*", "k[0-3]", "k[^0-3]", "?1", "k\\1", "[a-z]?", "k[", "*[5-2]", "nokey", "k**", "[k-]1", "k[\\]1]"])],
        "SCAN": lambda: ["SCAN", rng.choice(["0"] * 8 + ["x", "-"]), "COUNT", rng.choice(["1000"] * 8 + ["0", "x"])] + options(rng, lambda: ["MATCH", rng.choice(["k*", "*3", "*"])], lambda: ["TYPE", rng.choice(["string", "list"])], lambda: ["foo"]),
        "OBJECT": lambda: ["OBJECT", "FREQ", key],
        "MULTI": lambda: ["MULTI"],
        "EXEC": lambda: ["EXEC"],
        "DISCARD": lambda: ["DISCARD"],
        "WATCH": lambda: ["WATCH", key],
        "UNWATCH": lambda: ["UNWATCH"],
        "SELECT": lambda: ["SELECT", rng.choice(["0", "1", "2"])],
        "WRONG": lambda: rng.choice([["GET"], ["SET", key], ["EXPIRE", key], ["FOO", key], ["PING", "a", "b"], ["CLIENT", "FOO"], ["ECHO", word(rng)], ["PING"],
                                     ["EXEC", "x"], ["MULTI", "x"], ["CONFIG", "GET", "data*ses"], ["COMMAND", "GETKEYS", "SET", key, "v"]]),
        "FLUSHDB": lambda: [rng.choice(["FLUSHDB", "FLUSHALL"])] if rng.random() < 0.15 else ["DBSIZE"],
    }
    name = rng.choice(list(kinds))
    if name == "MULTI" and rng.random() < 0.5:
        name = "EXEC"
    return kinds[name]()


TIMED = {"TTL": 1, "PTTL": 1000, "EXPIRETIME": 1, "PEXPIRETIME": 1000}
# ours names the limit in bytes, Redis its setting
LIMIT = (re.compile(r"\((16777216 bytes|proto-max-bulk-len)\)"), "")


def same(command, ours, theirs):
    name = command[0].upper()
    if isinstance(ours, RespError) and isinstance(theirs, RespError):
        return LIMIT[0].sub("", str(ours)) == LIMIT[0].sub("", str(theirs))
    if name in TIMED and isinstance(ours, int) and isinstance(theirs, int) and ours > 0:
        return abs(ours - theirs) <= TIMED[name]
    if name in ("KEYS",) and isinstance(ours, list) and isinstance(theirs, list):
        return sorted(ours) == sorted(theirs)
    if name == "DBSIZE":
        return True  # both count keys that have expired until they have removed them; see the end
    if name == "SCAN" and isinstance(ours, list) and isinstance(theirs, list):
        return ours[0] == theirs[0] and sorted(ours[1]) == sorted(theirs[1])
    return ours == theirs


def same_transaction(queued, ours, theirs):
    if not isinstance(ours, list) or not isinstance(theirs, list):
        return ours == theirs
    return len(ours) == len(theirs) == len(queued) and all(same(*each) for each in zip(queued, ours, theirs))


def test_random_commands_are_answered_as_redis_7_0_answers_them():
    rng = random.Random(SEED)
    print("seed %d" % SEED, flush=True)
    with Redis() as redis, Node(args=["--http", "off"]) as node:
        ours, theirs = [node.client(), node.client()], [Client(redis.port), Client(redis.port)]
        version = rng.choice([2, 3])
        for client in ours + theirs:
            client.must("HELLO", version)
        queued = [None, None]
        history = []
        for _ in range(COMMANDS):
            who = rng.randrange(2)
            command = draw(rng)
            mine, their = ours[who].cmd(*command), theirs[who].cmd(*command)
            history = history[-40:] + ["%d %r -> %r | %r" % (who, command, mine, their)]
            name = command[0].upper()
            if name == "EXEC" and queued[who] is not None:
                agree = same_transaction(queued[who], mine, their)
            else:
                agree = same(command, mine, their)
            check(agree, "RESP%d, seed %d: the last reply differs (ours | Redis):\n%s\n" % (version, SEED, "\n".join(history)))
            if name == "MULTI" and mine == "OK":
                queued[who] = []
            elif name in ("EXEC", "DISCARD"):
                queued[who] = None
            elif mine == "QUEUED":
                queued[who].append(command)
        for client in (ours[0], theirs[0]):
            client.cmd("DISCARD")
        for bucket in (0, 1, 2, 15):
            mine, their = lib.dump(ours[0], bucket), lib.dump(theirs[0], bucket)
            check(mine.keys() == their.keys(), "keys at the end differ", bucket, mine.keys() ^ their.keys())
            lib.eventually(lambda: ours[0].must("DBSIZE") == len(mine), what="DBSIZE is the number of keys")
            for key, (value, expires) in mine.items():
                check(value == their[key][0] and abs(expires - their[key][1]) <= 1000, "values at the end differ", key, mine[key], their[key])


if __name__ == "__main__":
    found = shutil.which("redis-server")
    if not found or " v=7.0." not in subprocess.run([found, "--version"], capture_output=True, text=True).stdout:
        print("skipped: no redis-server 7.0 is installed")
        sys.exit(77)
    main()
