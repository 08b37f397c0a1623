#!/usr/bin/env python3
"""Damages files at rest in six ways, starts the node again and asks it everything.

After any damage a node may serve right answers, answer an error, refuse to start (exit 3) or die; what it must
never do is answer as if nothing were wrong and be wrong: a lost key, an old value, a wrong count.

    corruption.py [--trials N] [--seed N] [--kind K] [--mode M] [--verbose]
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib
from lib import ConnectionLost, Node, NodeExited, RespError, check, eventually, run, temp_folder

PAGE = 4096
RANGES = 4
KINDS = ("log", "store", "identity", "backup")
MODES = ("bit flip", "16 random bytes", "zeroed page", "swapped pages", "stale page", "truncation")

ARGS = ["--ranges", str(RANGES), "--memory", "64MiB"]


def copy_tree(source, target):
    """Slots are mostly zeros; keeping them sparse makes a trial fast."""
    subprocess.run(["cp", "-a", "--sparse=always", source, target], check=True)


def wait_for_promise(node):
    """Until the idle node has noted in the log that all of it is durable. Without that note nobody can tell a
    damaged last batch from one that a crash tore."""
    seen = [0, 0]

    def quiet():
        last = json.loads(node.http("GET", "/status")[2])["wal"]["last"]
        seen[0], seen[1] = (seen[0] + 1, last) if last == seen[1] else (0, last)
        time.sleep(0.05)
        return seen[0] >= 10

    eventually(quiet, what="an idle log")


class World:
    """A folder with a checkpointed part, an older copy of its files, and a log that was never checkpointed; a
    backup of it; and what must be in it."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.root = temp_folder("duramen-corruption-")
        self.base = os.path.join(self.root, "base")
        self.old = os.path.join(self.root, "old")
        self.backup = os.path.join(self.root, "backup")
        self.old_backup = os.path.join(self.root, "old-backup")
        self.expected = {}
        self.gone = set()
        with Node(data=self.base, args=ARGS) as node:
            self.write(node, 1500)
            check(run("backup", "--node", node.http_address, "--out", self.old_backup).code == 0)
            node.restart()
            self.write(node, 700)
            check(node.term() == 0)
            copy_tree(self.base, self.old)
            node.start()
            self.write(node, 700)
            node.restart()
            self.write(node, 300)
            check(run("backup", "--node", node.http_address, "--out", self.backup).code == 0)
            self.check_node(node, {})
            wait_for_promise(node)
            node.kill9()

    def write(self, node, count):
        client = node.client()
        commands = []
        for _ in range(count):
            key = b"key:%05d" % self.random.randrange(2500)
            if self.random.random() < 0.15:
                commands.append(("DEL", key))
                self.expected.pop(key, None)
                self.gone.add(key)
            else:
                value = self.random.randbytes(self.random.randrange(400))
                commands.append(("SET", key, value) + (("EX", 10**7) if self.random.random() < 0.3 else ()))
                self.expected[key] = value
                self.gone.discard(key)
        for reply in client.pipeline(commands):
            check(not isinstance(reply, RespError), reply)
        client.close()

    def check_node(self, node, tally):
        """Asks everything; returns the first silently wrong answer, or None. Errors are definite answers."""
        wrong = []
        errors = 0
        client = node.client()
        keys = sorted(self.expected)
        for key, reply in zip(keys, client.pipeline([("GET", key) for key in keys])):
            if isinstance(reply, RespError):
                errors += 1
            elif reply != self.expected[key]:
                wrong.append("GET %r is %r, not %r" % (key, (reply or b"nil")[:20], self.expected[key][:20]))
        gone = sorted(self.gone)
        for key, reply in zip(gone, client.pipeline([("GET", key) for key in gone])):
            if isinstance(reply, RespError):
                errors += 1
            elif reply is not None:
                wrong.append("GET %r is %r, but it was deleted" % (key, reply[:20]))
        count = client.cmd("DBSIZE")
        if isinstance(count, RespError):
            errors += 1
        elif count != len(keys):
            wrong.append("DBSIZE is %d, not %d" % (count, len(keys)))
        found, cursor = set(), "0"
        while cursor is not None:
            page = client.cmd("SCAN", cursor, "COUNT", 500)
            if isinstance(page, RespError):
                errors += 1
                found = None
                break
            found.update(page[1])
            cursor = page[0] if page[0] != b"0" else None
        if found is not None and found != set(keys):
            wrong.append("SCAN misses %d keys and has %d too many" % (len(set(keys) - found), len(found - set(keys))))
        client.close()
        tally["errors"] = errors
        return wrong[0] if wrong else None


def used_pages(path):
    """Pages of a file up to the last that is not all zeros."""
    with open(path, "rb") as file:
        data = file.read()
    return max(1, (len(data.rstrip(b"\0")) + PAGE - 1) // PAGE)


def damage(rng, path, mode, stale):
    """Damages the file; returns what was done, or None if the file is as before."""
    size = os.path.getsize(path)
    pages = used_pages(path)
    extent = min(size, pages * PAGE)
    with open(path, "r+b") as file:

        def page_at(number):
            file.seek(number * PAGE)
            return file.read(PAGE)

        def put(offset, data):
            file.seek(offset)
            before = file.read(len(data))
            file.seek(offset)
            file.write(data[: max(0, size - offset)])
            return before != data[: max(0, size - offset)]

        if mode == "bit flip":
            offset = rng.randrange(extent)
            file.seek(offset)
            byte = file.read(1)[0] ^ (1 << rng.randrange(8))
            return put(offset, bytes([byte])) and "bit at %d" % offset
        if mode == "16 random bytes":
            offset = rng.randrange(max(1, extent - 16))
            return put(offset, rng.randbytes(16)) and "bytes at %d" % offset
        if mode == "zeroed page":
            number = rng.randrange(pages)
            return put(number * PAGE, bytes(PAGE)) and "page %d" % number
        if mode == "swapped pages":
            if pages < 2:
                half = extent // 2
                file.seek(0)
                data = file.read(extent)
                return put(0, data[half : 2 * half] + data[:half] + data[2 * half :]) and "halves"
            first, second = rng.sample(range(pages), 2)
            left, right = page_at(first), page_at(second)
            changed = put(first * PAGE, right[: max(0, size - first * PAGE)])
            changed = put(second * PAGE, left[: max(0, size - second * PAGE)]) or changed
            return changed and "pages %d and %d" % (first, second)
        if mode == "stale page":
            if stale is None or not os.path.exists(stale):
                return None
            with open(stale, "rb") as other:
                old = other.read()
            candidates = [number for number in range(min(pages, (len(old) + PAGE - 1) // PAGE))
                          if old[number * PAGE : (number + 1) * PAGE] != page_at(number)]
            if not candidates:
                return None
            number = rng.choice(candidates)
            return put(number * PAGE, old[number * PAGE : (number + 1) * PAGE]) and "page %d" % number
        if mode == "truncation":
            length = rng.randrange(extent)
            file.truncate(length)
            return "at %d" % length
    raise ValueError(mode)


def pick_file(rng, folder, kind):
    if kind == "store":
        return os.path.join("db", "data.mdb")
    if kind == "identity":
        return "identity"
    slots = [name for name in sorted(os.listdir(os.path.join(folder, "wal"))) if name.startswith("slot-")]
    used = [name for name in slots if used_pages(os.path.join(folder, "wal", name)) > 1]
    return os.path.join("wal", rng.choice(used or slots))


def trial_folder(world, rng, kind, mode, number):
    """Returns (outcome, detail). Outcomes: right, errors, refused, died, no effect; WRONG or EXIT n are failures."""
    folder = os.path.join(world.root, "trial-%d" % number)
    copy_tree(world.base, folder)
    node = None
    try:
        name = pick_file(rng, folder, kind)
        what = damage(rng, os.path.join(folder, name), mode, os.path.join(world.old, name))
        if not what:
            return "no effect", name
        what = "%s: %s" % (name, what)
        node = Node(data=folder, args=ARGS, start=False)
        try:
            node.start()
        except NodeExited as exited:
            if exited.code == 3 and exited.stderr.strip():
                return "refused", what
            if exited.code in (-signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT):
                return "died", what
            return "EXIT %s" % exited.code, "%s, stderr: %s" % (what, exited.stderr.strip()[-400:])
        tally = {}
        try:
            wrong = world.check_node(node, tally)
        except (ConnectionLost, OSError):
            code = node.wait(30)
            if code in (3, -signal.SIGBUS, -signal.SIGSEGV, -signal.SIGABRT):
                return "died", what
            return "EXIT %s" % code, "%s, stderr: %s" % (what, node.stderr()[-400:])
        if wrong:
            return "WRONG", "%s: %s" % (what, wrong)
        return ("errors" if tally["errors"] else "right"), what
    finally:
        if node is not None:
            node.close()
        shutil.rmtree(folder, ignore_errors=True)


def trial_backup(world, rng, mode, number):
    path = os.path.join(world.root, "backup-%d" % number)
    target = os.path.join(world.root, "restored-%d" % number)
    shutil.copy(world.backup, path)
    try:
        what = damage(rng, path, mode, world.old_backup)
        if not what:
            return "no effect", "backup"
        for result in (run("verify", path), run("restore", "--in", path, "--data", target)):
            if result.code != 3 or not result.err.strip():
                return "WRONG" if result.code == 0 else "EXIT %s" % result.code, "backup: %s: %r" % (what, result)
        if os.path.exists(target) or [name for name in os.listdir(world.root) if name.startswith("restored-")]:
            return "WRONG", "backup: %s: a refused restore left a folder" % what
        return "refused", what
    finally:
        os.unlink(path)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=8, help="of each mode on each kind of file")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--verbose", action="store_true")
    options = parser.parse_args()
    if not os.access(lib.DURAMEN, os.X_OK):
        print("no program at %s" % lib.DURAMEN)
        return 77
    print("seed %d" % options.seed, flush=True)
    world = World(options.seed)
    failures, number = [], 0
    for kind in KINDS:
        for mode in MODES:
            if (options.kind or kind) != kind or (options.mode or mode) != mode:
                continue
            outcomes = collections.Counter()
            for trial in range(options.trials):
                number += 1
                rng = random.Random("%d %s %s %d" % (options.seed, kind, mode, trial))
                if kind == "backup":
                    outcome, detail = trial_backup(world, rng, mode, number)
                else:
                    outcome, detail = trial_folder(world, rng, kind, mode, number)
                outcomes[outcome] += 1
                if options.verbose:
                    print("  %s: %s" % (outcome, detail), flush=True)
                if outcome.startswith(("WRONG", "EXIT")):
                    failures.append("%s, %s, trial %d: %s: %s" % (kind, mode, trial, outcome, detail))
            print("%-9s %-16s %s" % (kind, mode, ", ".join("%s %d" % item for item in sorted(outcomes.items()))), flush=True)
    for failure in failures:
        print("FAIL %s" % failure)
    print("%d trials, %d failures" % (number, len(failures)))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
