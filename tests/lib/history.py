"""Records what clients of a black-box test did and saw, and has it judged by duramen-check.

    history = History()
    with history.begin(client, key, "INCR", 1) as op:    # unknown, if nothing is said and it raises or not
        op.ok(connection.incr(key))                      # or op.failed(): certainly without effect
    history.check()                                      # raises Violation with the explanation

The text form is described in sim/history.h. Kinds: GET, SET value, SETNX value, CAS old new, INCR n, APPEND value,
DEL, GETSET value. Recording is safe from many threads.
"""

import os
import subprocess
import tempfile
import threading
import time

PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._:/+@{}[]~,-")


class Violation(Exception):
    pass


class Undecided(Exception):
    pass


def escape(value):
    """A value as a field: None is no value."""
    if value is None:
        return "-"
    if isinstance(value, int):
        value = str(int(value))
    if isinstance(value, str):
        value = value.encode()
    if value == b"":
        return "%"
    if value == b"-":
        return "%2D"
    return "".join(chr(byte) if byte in PLAIN else "%%%02X" % byte for byte in value)


class Operation:
    def __init__(self, history, client, key, kind, arguments):
        self.history = history
        self.fields = [client, escape(key), kind] + [str(a) if kind == "INCR" else escape(a) for a in arguments]
        self.kind = kind
        self.outcome = "unknown"
        self.result = None
        self.returned = None
        self.invoked = time.monotonic_ns()

    def ok(self, result=None):
        """It took effect, with this result (ignored for SET)."""
        self.returned = time.monotonic_ns()
        self.outcome = "ok"
        self.result = result
        return result

    def failed(self):
        self.returned = time.monotonic_ns()
        self.outcome = "failed"

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.history.add(self)
        return False

    def line(self):
        client, key, kind = self.fields[:3]
        words = [self.invoked, "-" if self.returned is None else self.returned, client, self.outcome, key, kind]
        words += self.fields[3:]
        if self.outcome == "ok" and kind != "SET":
            words += ["=", escape(self.result) if kind in ("GET", "GETSET") else int(self.result)]
        return " ".join(map(str, words)) + "\n"


class History:
    def __init__(self):
        self.lock = threading.Lock()
        self.lines = []
        self.counts = {"ok": 0, "failed": 0, "unknown": 0}

    def begin(self, client, key, kind, *arguments):
        return Operation(self, client, key, kind, arguments)

    def add(self, operation):
        line = operation.line()
        with self.lock:
            self.lines.append(line)
            self.counts[operation.outcome] += 1

    def write(self, path):
        with self.lock, open(path, "w", encoding="ascii") as file:
            file.writelines(self.lines)

    def check(self, keep=None, program=None, timeout=300):
        """Returns the checker's summary. `keep`: where a history that is not linearizable is left."""
        program = program or os.path.join(os.environ["BUILD"], "duramen-check")
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "history")
            self.write(path)
            done = subprocess.run([program, path], timeout=timeout, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            said = done.stdout.decode("utf-8", "replace")
            if done.returncode == 0:
                return said.strip()
            if keep:
                self.write(keep)
        if done.returncode == 1:
            raise Violation(said)
        if done.returncode == 3:
            raise Undecided(said)
        raise RuntimeError("duramen-check: exit %d: %s" % (done.returncode, said))
