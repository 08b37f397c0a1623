#!/usr/bin/env python3
"""Replies, byte for byte, against tests/golden/resp/*.txt.

A golden file is a script of commands with the replies that Redis 7.0.15 gives to them:

    # a comment
    SET k "two words"        a command; words are quoted as in a shell
      = +OK\\r\\n            its reply in both versions of the protocol, or
      2 $-1\\r\\n            in RESP2 and
      3 _\\r\\n              in RESP3
      ! +OK\\r\\n            (instead of =, 2, 3) ours differs from Redis on purpose; a comment says why
      ~ :[0-9]+\\r\\n        a regular expression: depends on time or machine

"@b GET k" sends the command on a second connection. Each file runs twice, on a node that was emptied,
first with HELLO 2, then with HELLO 3.

RECORD=HOST:PORT goldens.py asks the Redis there instead, and rewrites the files' "=", "2" and "3" lines.
"""

import glob
import os
import re
import shlex
import socket
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402

FOLDER = os.path.join(lib.SOURCE, "tests", "golden", "resp")


class Raw:
    """A connection that hands out whole replies as the bytes they are."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port), timeout=30)
        self.input = self.socket.makefile("rb")

    def close(self):
        self.input.close()
        self.socket.close()

    def ask(self, args):
        self.socket.sendall(lib.encode(args))
        return self.reply()

    def reply(self):
        try:
            line = self.input.readline()
        except ConnectionResetError:
            line = b""
        if not line.endswith(b"\r\n"):
            return b"<closed>"
        kind, rest = line[:1], line[1:-2]
        if kind in b"+-:_,#(":
            return line
        count = int(rest)
        if kind in b"$=!":
            return line + (self.input.read(count + 2) if count >= 0 else b"")
        if kind in b"*~>":
            return line + b"".join(self.reply() for _ in range(max(count, 0)))
        if kind == b"%":
            return line + b"".join(self.reply() for _ in range(2 * count))
        raise ValueError("not RESP: %r" % line)


def shown(data):
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")


def unescaped(word):
    """\\xNN, \\r and \\n stand for bytes; any other backslash is itself."""
    known = {"r": b"\r", "n": b"\n"}
    parts = re.split(r"\\(x[0-9a-f]{2}|r|n)", word)
    return b"".join(part.encode() if place % 2 == 0 else known.get(part) or bytes([int(part[1:], 16)])
                    for place, part in enumerate(parts))


def arguments(text):
    return [unescaped(word) for word in shlex.split(text)]


def parse(path):
    """[[command or comment line, [(mark, reply)]]]"""
    entries = []
    with open(path, encoding="utf-8") as file:
        for line in file.read().split("\n")[:-1]:
            reply = re.match(r"  ([=23!~]) (.*)$", line)
            if reply:
                entries[-1][1].append((reply.group(1), reply.group(2)))
            else:
                entries.append([line, []])
    return entries


def run(entries, host, port, version):
    """The reply to every entry that is a command; None for the others."""
    replies = []
    connections = {}

    def connection(name):
        if name not in connections:
            connections[name] = Raw(host, port)
            connections[name].ask(["HELLO", version])
        return connections[name]

    setup = Raw(host, port)
    setup.ask(["FLUSHALL"])
    setup.close()
    for line, _ in entries:
        if not line.strip() or line.startswith("#"):
            replies.append(None)
            continue
        name, text = ("a", line)
        if line.startswith("@"):
            name, text = line[1:].split(" ", 1)
        replies.append(connection(name).ask(arguments(text)))
        if replies[-1] == b"<closed>":
            del connections[name]
    for open_connection in connections.values():
        open_connection.close()
    return replies


def record(path, host, port):
    entries = parse(path)
    both = [run(entries, host, port, version) for version in (2, 3)]
    with open(path, "w", encoding="utf-8") as file:
        for (line, old), two, three in zip(entries, *both):
            file.write(line + "\n")
            if two is None:
                continue
            kept = [(mark, text) for mark, text in old if mark in "!~"]
            if not kept:
                kept = [("=", shown(two))] if two == three else [("2", shown(two)), ("3", shown(three))]
            for mark, text in kept:
                file.write("  %s %s\n" % (mark, text))


def matches(expected, version, reply):
    for mark, text in expected:
        if mark == "~" and re.fullmatch(text, shown(reply)):
            return True
        if mark in ("=", "!", str(version)) and text == shown(reply):
            return True
    return False


def compare(path, node):
    entries = parse(path)
    lib.check(len(entries) > 0, "empty golden file", path)
    for version in (2, 3):
        wrong = []
        replies = run(entries, "127.0.0.1", node.resp_port, version)
        for number, ((line, expected), reply) in enumerate(zip(entries, replies)):
            if reply is None or matches(expected, version, reply):
                continue
            wrong.append("%d: %s\n  expected %s\n  got      %s" % (number, line, expected, shown(reply)))
        lib.check(not wrong, "RESP%d, %s:\n%s\n" % (version, os.path.basename(path), "\n".join(wrong)))


def test_replies_are_those_of_redis_7_0_15():
    paths = sorted(glob.glob(os.path.join(FOLDER, "*.txt")))
    lib.check(len(paths) >= 5, "golden files are missing in", FOLDER)
    with lib.Node(args=["--http", "off"]) as node:
        for path in paths:
            compare(path, node)


if os.environ.get("RECORD"):
    target, target_port = os.environ["RECORD"].rsplit(":", 1)
    for golden in sorted(glob.glob(os.path.join(FOLDER, "*.txt"))):
        record(golden, target, int(target_port))
else:
    lib.main()
