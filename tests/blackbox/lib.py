"""Helpers for black-box tests: run the built program, talk to it, and leave nothing behind.

Only the standard library. The program's path comes from $DURAMEN (as script_test sets it), else from
build/release. A node started here dies with the test, whatever ends the test.

    from lib import Node, run, check, main

    def test_value_survives_kill9():
        with Node() as node:
            client = node.client()
            check(client.cmd("SET", "k", "v") == "OK")
            node.kill9()
            node.start()
            check(node.client().cmd("GET", "k") == b"v")

    main()          # runs every test_* function of the calling script

Replies: simple strings are str, bulk strings bytes, integers int, nil None, errors RespError objects
(returned, not raised), arrays lists, RESP3 maps dict, sets a SetReply list, pushes a PushReply list.
"""

import atexit
import ctypes
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

SOURCE = os.environ.get("SOURCE") or os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DURAMEN = os.environ.get("DURAMEN") or os.path.join(SOURCE, "build", "release", "duramen")

EXIT_DONE, EXIT_FAILED, EXIT_USAGE, EXIT_DAMAGED, EXIT_DURABILITY = 0, 1, 2, 3, 4

_nodes = []
_folders = []


class RespError(Exception):
    """An error reply. str() is the whole line without the leading '-'; .word is its first word."""

    @property
    def word(self):
        return str(self).split(" ", 1)[0]

    def __eq__(self, other):
        return isinstance(other, RespError) and str(self) == str(other)

    __hash__ = Exception.__hash__


class PushReply(list):
    """A RESP3 push message."""


class SetReply(list):
    """A RESP3 set."""


class ConnectionLost(Exception):
    """The server closed the connection, or died, before a whole reply had come."""


class NodeExited(Exception):
    """The process ended before it was ready. .code and .stderr say how."""

    def __init__(self, code, stderr):
        super().__init__("node exited with %s: %s" % (code, stderr.strip()))
        self.code = code
        self.stderr = stderr


class CheckFailed(Exception):
    pass


def check(condition, message="", *details):
    """Like assert, but never switched off. details are shown with repr()."""
    if not condition:
        raise CheckFailed(" ".join([str(message)] + [repr(detail) for detail in details]).strip() or "check failed")


def eventually(predicate, seconds=10.0, what="condition"):
    """Calls predicate() until it returns something true, which is returned."""
    end = time.monotonic() + seconds
    while True:
        result = predicate()
        if result:
            return result
        if time.monotonic() > end:
            raise CheckFailed("not within %.1f s: %s" % (seconds, what))
        time.sleep(0.005)


def temp_folder(prefix="duramen-test-"):
    """A new folder, removed when the test ends."""
    folder = tempfile.mkdtemp(prefix=prefix)
    _folders.append(folder)
    return folder


def to_bytes(value):
    if isinstance(value, bytes):
        return value
    if isinstance(value, (bytearray, memoryview)):
        return bytes(value)
    return str(value).encode()


def encode(args):
    """One command as RESP bytes."""
    parts = [b"*%d\r\n" % len(args)]
    for arg in args:
        arg = to_bytes(arg)
        parts.append(b"$%d\r\n%b\r\n" % (len(arg), arg))
    return b"".join(parts)


class Client:
    """A RESP connection. Not thread-safe."""

    def __init__(self, port, host="127.0.0.1", timeout=30.0):
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = bytearray()
        self.at = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def cmd(self, *args):
        """Sends one command and returns its reply."""
        self.send_raw(encode(args))
        return self.read()

    def must(self, *args):
        """cmd(), but an error reply is raised."""
        reply = self.cmd(*args)
        if isinstance(reply, RespError):
            raise reply
        return reply

    def pipeline(self, commands):
        """Sends all commands (each a tuple or list) at once; returns their replies in order. Sends from a
        thread of its own, so that neither side can block the other however much is sent."""
        commands = list(commands)
        data = b"".join(encode(command) for command in commands)
        if len(data) < 32768:
            self.send_raw(data)
            return [self.read() for _ in commands]
        failed = []

        def send():
            try:
                self.socket.sendall(data)
            except OSError as error:
                failed.append(error)

        sender = threading.Thread(target=send, daemon=True)
        sender.start()
        try:
            return [self.read() for _ in commands]
        finally:
            sender.join(timeout=60)

    def send(self, *args):
        """Sends one command without waiting for its reply."""
        self.send_raw(encode(args))

    def send_raw(self, data):
        try:
            self.socket.sendall(data)
        except (BrokenPipeError, ConnectionResetError) as error:
            raise ConnectionLost(str(error))

    def _fill(self):
        if self.at > 0:
            del self.buffer[: self.at]
            self.at = 0
        try:
            data = self.socket.recv(1 << 18)
        except ConnectionResetError as error:
            raise ConnectionLost(str(error))
        if not data:
            raise ConnectionLost("closed by the server")
        self.buffer += data

    def _line(self):
        while True:
            end = self.buffer.find(b"\r\n", self.at)
            if end >= 0:
                line = bytes(self.buffer[self.at : end])
                self.at = end + 2
                return line
            self._fill()

    def _exactly(self, size):
        while len(self.buffer) - self.at < size + 2:
            self._fill()
        data = bytes(self.buffer[self.at : self.at + size])
        if bytes(self.buffer[self.at + size : self.at + size + 2]) != b"\r\n":
            raise ValueError("reply is not RESP: no line end after %d bytes" % size)
        self.at += size + 2
        return data

    def closed_by_server(self):
        """Waits until the server closes the connection; False if it sends something instead."""
        try:
            self._fill()
            return False
        except ConnectionLost:
            return True

    def read(self):
        """Reads one reply."""
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode("latin-1")
        if kind == b"-":
            return RespError(rest.decode("latin-1"))
        if kind == b":":
            return int(rest)
        if kind == b"$":
            size = int(rest)
            return None if size < 0 else self._exactly(size)
        if kind == b"!":
            return RespError(self._exactly(int(rest)).decode("latin-1"))
        if kind == b"=":
            return self._exactly(int(rest))[4:]
        if kind == b"_":
            return None
        if kind == b"#":
            return rest == b"t"
        if kind == b",":
            return float(rest)
        if kind == b"(":
            return int(rest)
        if kind in (b"*", b"~", b">"):
            size = int(rest)
            if size < 0:
                return None
            items = [self.read() for _ in range(size)]
            return items if kind == b"*" else SetReply(items) if kind == b"~" else PushReply(items)
        if kind == b"%":
            reply = {}
            for _ in range(int(rest)):
                key = self.read()
                reply[key if not isinstance(key, list) else tuple(key)] = self.read()
            return reply
        if kind == b"|":
            for _ in range(2 * int(rest)):
                self.read()
            return self.read()
        raise ValueError("reply is not RESP: %r" % line[:80])


_libc = ctypes.CDLL(None)


def _ask_for_death_signal():
    _libc.prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


def _die_with_parent():
    """What to run in a child. The kernel ties it to the starting thread, so only the main one asks for it."""
    return _ask_for_death_signal if threading.current_thread() is threading.main_thread() else None


class Node:
    """A running `duramen serve` on free ports. data=None: a temporary folder of its own.

    args are added to the command line, env to the environment; wrapper is put before the program
    (["strace", ...]). start=False only prepares. A with block ends the process and removes what is
    temporary."""

    def __init__(self, data=None, args=(), env=None, start=True, wrapper=(), ready_seconds=60.0):
        self.own_folder = data is None
        self.data = data if data is not None else os.path.join(temp_folder(), "data")
        self.args = list(args)
        self.env = dict(env or {})
        self.wrapper = list(wrapper)
        self.ready_seconds = ready_seconds
        self.process = None
        self.ready = {}
        self.resp_port = self.http_port = self.peer_port = None
        self.log_path = os.path.join(temp_folder("duramen-log-"), "stderr")
        _nodes.append(self)
        if start:
            self.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def command(self):
        command = self.wrapper + [DURAMEN, "serve", "--data", self.data]
        for flag in ("--listen", "--http", "--peer"):
            if flag not in self.args:
                command += [flag, "127.0.0.1:0"]
        return command + [str(arg) for arg in self.args]

    def start(self):
        """Starts (again) on the same data and waits for the ready line. NodeExited if it ends first."""
        check(self.process is None or self.process.poll() is not None, "the node runs already")
        environment = {name: value for name, value in os.environ.items() if name == "DURAMEN_BUG" or not name.startswith("DURAMEN_")}
        environment.update({name: str(value) for name, value in self.env.items()})
        with open(self.log_path, "ab") as log:
            self.log_start = log.tell()
            self.process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                env=environment, start_new_session=True, preexec_fn=_die_with_parent())
        line = self._ready_line()
        self.ready = dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)

        def port(name):
            text = self.ready.get(name, "off")
            return int(text.rsplit(":", 1)[1]) if ":" in text else None

        self.resp_port, self.http_port, self.peer_port = port("resp"), port("http"), port("peer")
        return self

    def _ready_line(self):
        timer = threading.Timer(self.ready_seconds, self.process.kill)
        timer.start()
        try:
            for line in self.process.stdout:
                line = line.decode("utf-8", "replace").strip()
                if line.startswith("ready "):
                    threading.Thread(target=self._drain, args=(self.process.stdout,), daemon=True).start()
                    return line
        finally:
            timer.cancel()
        code = self.process.wait()
        raise NodeExited(code, self.stderr())

    @staticmethod
    def _drain(stream):
        try:
            while stream.read(65536):
                pass
        except (OSError, ValueError):
            pass

    @property
    def pid(self):
        return self.process.pid

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def stderr(self):
        """What this run has written to stderr so far."""
        with open(self.log_path, "rb") as log:
            log.seek(self.log_start)
            return log.read().decode("utf-8", "replace")

    def signal(self, number):
        os.kill(self.process.pid, number)

    def wait(self, seconds=60.0):
        """Waits for the process to end by itself; returns its exit code (negative: killed by that signal)."""
        return self.process.wait(timeout=seconds)

    def kill9(self):
        """Kills the process at once, and whatever it started; returns when it is gone."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        return self.process.wait(timeout=60)

    def term(self, seconds=60.0):
        """SIGTERM, as an operator stops a node; returns the exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(timeout=seconds)

    def restart(self):
        check(self.term() == 0, "clean stop failed:", self.process.returncode, self.stderr()[-2000:])
        return self.start()

    def close(self):
        """Ends the process and removes a temporary data folder."""
        if self.process is not None:
            self.kill9()
            self.process.stdout.close()
        if self in _nodes:
            _nodes.remove(self)
        if self.own_folder:
            _remove(os.path.dirname(self.data))
        _remove(os.path.dirname(self.log_path))

    def client(self, timeout=30.0):
        return Client(self.resp_port, timeout=timeout)

    def http(self, method, path, body=None, headers=None, timeout=30.0):
        """One request; returns (status, headers as a dict with lower-case names, body bytes)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            response = connection.getresponse()
            return response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def http_connection(self, timeout=30.0):
        return http.client.HTTPConnection("127.0.0.1", self.http_port, timeout=timeout)

    @property
    def http_address(self):
        return "127.0.0.1:%d" % self.http_port


class Result:
    """What a finished command left: .code, .out, .err (text)."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def __repr__(self):
        return "exit %s, out %r, err %r" % (self.code, self.out[-800:], self.err[-800:])


def run(*args, timeout=120.0, env=None, stdin=None, text=True):
    """Runs `duramen ARGS` to its end."""
    environment = {name: value for name, value in os.environ.items() if name == "DURAMEN_BUG" or not name.startswith("DURAMEN_")}
    environment.update(env or {})
    done = subprocess.run(
        [DURAMEN] + [str(arg) for arg in args], input=stdin, stdin=None if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=timeout, env=environment, preexec_fn=_die_with_parent())
    error = done.stderr.decode("utf-8", "replace")
    return Result(done.returncode, done.stdout.decode("utf-8", "replace") if text else done.stdout, error)


def dump(client, bucket=0):
    """Every key of a bucket with its value and its expiry time (ms since 1970, -1: never)."""
    client.must("SELECT", bucket)
    keys, cursor = [], "0"
    while True:
        cursor, page = client.must("SCAN", cursor, "COUNT", 1000)
        keys += page
        if cursor == b"0":
            break
    keys = sorted(set(keys))
    found = {}
    for start in range(0, len(keys), 500):
        part = keys[start : start + 500]
        values = client.pipeline([("GET", key) for key in part])
        expires = client.pipeline([("PEXPIRETIME", key) for key in part])
        for key, value, expiry in zip(part, values, expires):
            if value is not None:
                found[key] = (value, expiry)
    return found


def _remove(folder):
    if folder in _folders:
        _folders.remove(folder)
    shutil.rmtree(folder, ignore_errors=True)


@atexit.register
def _cleanup():
    for node in list(_nodes):
        try:
            node.close()
        except Exception as error:  # the others still have to go
            print("cleanup: %s" % error, file=sys.stderr)
    for folder in list(_folders):
        _remove(folder)


def main():
    """Runs the caller's test_* functions in order (or those named on the command line); exit 1 if one fails, 77 if
    there is no program to test."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda received, _frame: sys.exit(128 + received))
    if not os.access(DURAMEN, os.X_OK):
        print("no program at %s: build it, or set DURAMEN" % DURAMEN)
        sys.exit(77)
    module = sys.modules["__main__"]
    tests = [name for name in vars(module) if name.startswith("test_") and callable(getattr(module, name))]
    wanted = [name for name in sys.argv[1:] if name.startswith("test_")]
    failed = 0
    for name in tests:
        if wanted and name not in wanted:
            continue
        began = time.monotonic()
        try:
            getattr(module, name)()
            print("ok   %s (%.1f s)" % (name, time.monotonic() - began), flush=True)
        except Exception as error:
            failed += 1
            import traceback
            traceback.print_exc()
            print("FAIL %s: %s" % (name, error), flush=True)
            for node in list(_nodes):
                if node.process is not None:
                    print("stderr of the node on %s:\n%s" % (node.data, node.stderr()[-2000:]), flush=True)
                node.close()
    if wanted and not set(wanted) <= set(tests):
        print("no such test: %s" % ", ".join(sorted(set(wanted) - set(tests))))
        failed += 1
    sys.exit(1 if failed else 0)
