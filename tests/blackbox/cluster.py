"""Clusters of real processes for black-box tests: start, kill, freeze, wipe, damage and cut apart.

    from cluster import Cluster, main

    def test_write_here_read_there():
        with Cluster(3) as cluster:
            cluster.client(0).must("SET", "k", "v")
            check(cluster.client(1).cmd("GET", "k") == b"v")

    main()

The test program moves into a network namespace (and mount namespace) of its own, if it may, so that no port can be
taken by another test and nothing outlives it. With links=True every node gets a further namespace, an address on a
bridge (10.99.0.N) and a secret; then cut(a, b) drops whatever goes from a to b, in this direction only. Clients always
reach a node over the node's own loopback, which no cut touches.
"""

import contextlib
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import (  # noqa: E402
    DURAMEN, CheckFailed, Client, ConnectionLost, Node, NodeExited, RespError, Result, check, eventually, main,
    temp_folder)

__all__ = [
    "Cluster", "Client", "ConnectionLost", "NodeExited", "RespError", "Result", "check", "eventually", "main",
    "temp_folder", "number", "key_of_range", "range_of", "can_cut", "private", "Prober", "KNOWN_ERRORS"]

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
SUBNET = "10.99.0."

# what a client may be told when nodes fail; anything else is a finding
KNOWN_ERRORS = ("UNKNOWN", "CLUSTERDOWN", "TRYAGAIN")

_libc = ctypes.CDLL(None, use_errno=True)


def number(name, fallback):
    """A setting of the test's size, from the environment."""
    return float(os.environ.get(name) or fallback)


def _call(result):
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _ip(*arguments):
    subprocess.run(("ip",) + arguments, check=True, stdout=subprocess.DEVNULL)


class _Network:
    """The namespaces of this process; made once."""

    def __init__(self):
        self.private = False
        self.home = None
        self.bridge = False
        if os.geteuid() != 0 or not shutil.which("ip"):
            return
        try:
            _call(_libc.unshare(CLONE_NEWNET | CLONE_NEWNS))
        except OSError as error:
            print("no namespaces of our own (%s): free ports instead" % error)
            return
        _libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None)
        _ip("link", "set", "lo", "up")
        self.home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.private = True

    def can_cut(self):
        if not self.private or not shutil.which("nft") or not shutil.which("nsenter"):
            return False
        if not self.bridge:
            try:
                _ip("link", "add", "bridge", "type", "bridge")
                _ip("link", "set", "bridge", "up")
            except subprocess.CalledProcessError:
                return False
            self.bridge = True
        return True


_network = None
_made = 0


def _get_network():
    global _network
    if _network is None:
        _network = _Network()
    return _network


def private():
    """The test has namespaces of its own: mounts and addresses are nobody else's."""
    return _get_network().private


def can_cut():
    """links=True is possible here: root, nftables, namespaces."""
    return _get_network().can_cut()


class Place:
    """A network namespace of one node, on the bridge."""

    def __init__(self):
        global _made
        _made += 1
        self.index = _made
        self.address = SUBNET + str(_made)
        home = _get_network().home
        _call(_libc.unshare(CLONE_NEWNET))
        try:
            self.handle = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            _ip("link", "set", "lo", "up")
        finally:
            _call(_libc.setns(home, CLONE_NEWNET))
        self.path = "/proc/%d/fd/%d" % (os.getpid(), self.handle)
        self.wrapper = ["nsenter", "--net=" + self.path]
        outer = "v%d" % self.index
        _ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", self.path)
        _ip("link", "set", outer, "master", "bridge", "up")
        with self.inside():
            _ip("addr", "add", self.address + "/24", "dev", "eth0")
            _ip("link", "set", "eth0", "up")
        self.nft("add table inet cut; add chain inet cut out { type filter hook output priority 0; }")

    def nft(self, script):
        with self.inside():
            subprocess.run(["nft", script], check=True)

    @contextlib.contextmanager
    def inside(self):
        """Sockets made by this thread in here, and processes, belong to the namespace."""
        _call(_libc.setns(self.handle, CLONE_NEWNET))
        try:
            yield
        finally:
            _call(_libc.setns(_get_network().home, CLONE_NEWNET))

    def close(self):
        os.close(self.handle)


class ClusterNode(Node):
    """A node of a cluster. It keeps its ports over restarts; --join is given until it is a member."""

    def __init__(self, cluster, name, join=(), args=(), env=None, data=None, wrapper=()):
        self.cluster = cluster
        self.name = name
        self.join = list(join)
        self.member = False
        self.place = Place() if cluster.links else None
        self.frozen = False
        self.addresses = {"--listen": "127.0.0.1:0", "--http": "127.0.0.1:0", "--peer": "127.0.0.1:0"}
        if self.place is not None:
            self.addresses["--peer"] = self.place.address + ":7381"
        self.folder = temp_folder("duramen-%s-" % name)
        super().__init__(
            data=data or os.path.join(self.folder, "data"), args=args, env=env, start=False,
            wrapper=(self.place.wrapper if self.place else []) + list(wrapper))

    def command(self):
        command = self.wrapper + [DURAMEN, "serve", "--data", self.data]
        for flag, address in self.addresses.items():
            command += [flag, address]
        if self.place is not None:
            command += ["--cluster-secret-file", self.cluster.secret]
        if not self.member:
            command += ["--name", self.name]
            if self.join:
                command += ["--join", ",".join(self.join)]
        return command + [str(arg) for arg in self.args]

    def start(self):
        super().start()
        self.member = True
        self.frozen = False
        for flag, word in (("--listen", "resp"), ("--http", "http"), ("--peer", "peer")):
            if ":" in self.ready.get(word, ""):
                self.addresses[flag] = self.ready[word]
        return self

    @property
    def peer(self):
        return self.addresses["--peer"]

    def inside(self):
        return self.place.inside() if self.place else contextlib.nullcontext()

    def client(self, timeout=30.0):
        with self.inside():
            return Client(self.resp_port, timeout=timeout)

    def http(self, method, path, body=None, headers=None, timeout=30.0):
        with self.inside():
            return super().http(method, path, body, headers, timeout)

    def http_connection(self, timeout=30.0):
        with self.inside():
            connection = super().http_connection(timeout)
            connection.connect()
            return connection

    def status(self, timeout=10.0):
        code, _, body = self.http("GET", "/status", timeout=timeout)
        check(code == 200, "GET /status", code, body[:200])
        return json.loads(body)

    def metric(self, name):
        """Sum of a metric's samples; 0 if there is none."""
        total = 0.0
        for line in self.http("GET", "/metrics")[2].decode().splitlines():
            if line.startswith(name) and line[len(name) : len(name) + 1] in (" ", "{"):
                total += float(line.rsplit(" ", 1)[1])
        return total

    def run(self, *args, timeout=60.0):
        """`duramen ARGS --node (this node)`."""
        command = (self.place.wrapper if self.place else []) + [DURAMEN] + [str(arg) for arg in args]
        done = subprocess.run(
            command + ["--node", self.http_address], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, timeout=timeout)
        return Result(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

    def freeze(self):
        self.signal(signal.SIGSTOP)
        self.frozen = True

    def thaw(self):
        if self.frozen and self.alive():
            self.signal(signal.SIGCONT)
        self.frozen = False

    def wipe(self):
        """The disk is gone: what comes back has nothing."""
        shutil.rmtree(self.data)

    def close(self):
        super().close()
        if self.place is not None:
            self.place.close()
            self.place = None
        lib._remove(self.folder)


class Cluster:
    """Nodes n1, n2, ... of one cluster; node 0 has founded it.

    links: each on an address of its own, so that cut() works. args and env are given to every node. settle: wait until
    every range has its replicas and a leader."""

    def __init__(self, count=3, links=False, args=(), ranges=16, env=None, settle=True, wrappers=None):
        self.links = links
        if links:
            check(can_cut(), "links need root, namespaces and nftables")
        _get_network()
        self.args = list(args)
        self.ranges = ranges
        self.env = env
        self.nodes = []
        self.secret = None
        if links:
            self.secret = os.path.join(temp_folder("duramen-secret-"), "secret")
            with open(os.open(self.secret, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
                file.write("a secret of this test alone\n")
        self.cuts = set()
        try:
            for i in range(count):
                self.add(wrapper=(wrappers or {}).get(i, ()))
            if settle:
                self.settle()
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __getitem__(self, index):
        return self.nodes[index]

    def __iter__(self):
        return iter(self.nodes)

    def __len__(self):
        return len(self.nodes)

    def close(self):
        for node in list(self.nodes):
            node.close()
        self.nodes = []

    def add(self, name=None, args=(), start=True, data=None, wrapper=(), via=None):
        """A further node, which joins by the address of any one that runs."""
        join = []
        if via is not None:
            join = [via.peer]
        elif self.nodes:
            join = [next(node for node in self.nodes if node.alive() and not node.frozen).peer]
        own = ["--ranges", self.ranges] if not join else []
        node = ClusterNode(
            self, name or "n%d" % (len(self.nodes) + 1), join, self.args + own + list(args), self.env, data, wrapper)
        self.nodes.append(node)
        if start:
            node.start()
        return node

    def node(self, name):
        return next(node for node in self.nodes if node.name == name)

    def running(self):
        return [node for node in self.nodes if node.alive() and not node.frozen]

    def client(self, index=0, timeout=30.0):
        return self.nodes[index].client(timeout)

    def status(self, index=0):
        return self.nodes[index].status()

    def members(self, index=0):
        """name -> state, as one node sees it."""
        return {member["name"]: member["state"] for member in self.status(index)["members"]}

    def unsettled(self, replicas=3, nodes=None):
        """Why the cluster is not in its resting state yet; None if it is."""
        nodes = nodes or self.running()
        wanted = min(replicas, len(nodes))
        for node in nodes:
            status = node.status()
            states = {member["name"]: member["state"] for member in status["members"]}
            for other in nodes:
                if states.get(other.name) != "alive":
                    return "%s sees %s as %s" % (node.name, other.name, states.get(other.name))
            for part in status["ranges"] + [status["meta"]]:
                voters = [r for r in part["replicas"] if r["role"] == "voter"]
                who = "range %d at %s: " % (part["id"], node.name)
                if part["leader"] is None:
                    return who + "no leader"
                # in the meta group those that need not vote are learners for good
                if len(voters) < wanted or (part["id"] != 0 and len(voters) != len(part["replicas"])):
                    return who + "replicas %s" % [(r["name"], r["role"]) for r in part["replicas"]]
                if any(r.get("faulty") for r in part["replicas"]):
                    return who + "faulty replicas"
                if any(r["name"] == node.name for r in part["replicas"]) and part["applied"] < part["committed"]:
                    return who + "applied %d of %d" % (part["applied"], part["committed"])
        return None

    def settle(self, seconds=30.0, replicas=3, nodes=None):
        """Waits until every running node sees the others alive and every range has its voters and a leader."""
        end = time.monotonic() + seconds
        while True:
            why = self.unsettled(replicas, nodes)
            if why is None:
                return
            check(time.monotonic() < end, "not settled within %d s:" % seconds, why)
            time.sleep(0.05)

    def caught_up(self, seconds=30.0):
        """Waits until all replicas of every range have the same applied index."""

        def same():
            seen = {}
            for node in self.running():
                for part in node.status()["ranges"]:
                    if any(r["local"] for r in part["replicas"]):
                        seen.setdefault(part["id"], set()).add(part["applied"])
            return all(len(applied) == 1 for applied in seen.values())

        eventually(same, seconds, "every replica has applied the same")

    def leaders(self, index=0):
        """How many ranges each node leads."""
        counts = {node.name: 0 for node in self.nodes}
        for part in self.status(index)["ranges"]:
            if part["leader"] is not None:
                counts[part["leader"]] = counts.get(part["leader"], 0) + 1
        return counts

    def busiest(self):
        """The node that leads most ranges."""
        counts = self.leaders(self.nodes.index(self.running()[0]))
        return max(self.running(), key=lambda node: counts.get(node.name, 0))

    def wait_writable(self, node, seconds=10.0):
        """Waits until every range takes writes through `node` (into bucket 9, out of the way)."""
        for part in range(1, self.ranges + 1):
            client = node.client()
            client.must("SELECT", 9)
            eventually(lambda: client.cmd("SET", key_of_range(part, self.ranges), "1") == "OK", seconds, "writes to every range")
            client.close()

    # ---- cutting links ----

    def cut(self, source, target):
        """Drops what `source` sends to `target`; the other direction is another cut()."""
        if (source, target) not in self.cuts:
            self.cuts.add((source, target))
            source.place.nft("add rule inet cut out ip daddr %s drop" % target.place.address)

    def isolate(self, node):
        for other in self.nodes:
            if other is not node:
                self.cut(node, other)
                self.cut(other, node)

    def heal(self):
        self.cuts = set()
        for node in self.nodes:
            node.place.nft("flush chain inet cut out")


def _crc16_table():
    table = []
    for byte in range(256):
        crc = byte << 8
        for _ in range(8):
            crc = (crc << 1) ^ 0x1021 if crc & 0x8000 else crc << 1
        table.append(crc & 0xFFFF)
    return table


_TABLE = _crc16_table()


def range_of(key, ranges):
    """Which range (from 1) holds a key: Redis Cluster's slot, cut into equal parts."""
    key = lib.to_bytes(key)
    left = key.find(b"{")
    right = key.find(b"}", left + 1)
    if left >= 0 and right > left + 1:
        key = key[left + 1 : right]
    crc = 0
    for byte in key:
        crc = ((crc << 8) & 0xFFFF) ^ _TABLE[(crc >> 8) ^ byte]
    return (crc % 16384) * ranges // 16384 + 1


def key_of_range(wanted, ranges, prefix="probe"):
    """Some key of a range."""
    for i in range(100000):
        if range_of("%s%d" % (prefix, i), ranges) == wanted:
            return "%s%d" % (prefix, i)
    raise CheckFailed("no key of range %d" % wanted)


class Prober:
    """Writes to every range every `pause` seconds, each write on a connection that waits for nothing else, and notes
    when each was sent and acknowledged. Tells how long a range could not be written."""

    def __init__(self, nodes, ranges, pause=0.02):
        self.nodes = nodes
        self.keys = {part: key_of_range(part, ranges) for part in range(1, ranges + 1)}
        self.pause = pause
        self.acknowledged = {part: [] for part in self.keys}  # (sent, acknowledged)
        self.errors = []
        self.stopping = False
        self.failure = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        self.thread.join(timeout=30)
        if self.failure:
            raise self.failure

    def _run(self):
        try:
            self._probe()
        except Exception as error:  # shown by the test that waits
            self.failure = error

    def _probe(self):
        import selectors
        selector = selectors.DefaultSelector()
        idle = {node: [] for node in self.nodes}
        busy = {}
        due = {part: time.monotonic() + self.pause * i / len(self.keys) for i, part in enumerate(self.keys)}
        turn = 0
        while not self.stopping or busy:
            now = time.monotonic()
            if self.stopping and now > max(sent for _, _, sent in busy.values()) + 5:
                break
            for part, at in due.items():
                if self.stopping or at > now:
                    continue
                due[part] = max(at + self.pause, now - 5 * self.pause)
                turn += 1
                node = self.nodes[turn % len(self.nodes)]
                client = idle[node].pop() if idle[node] else node.client()
                client.send("SET", self.keys[part], "%d" % turn)
                busy[client] = (node, part, time.monotonic())
                selector.register(client.socket, selectors.EVENT_READ, client)
            for event, _ in selector.select(min(self.pause / 4, 0.005)):
                client = event.data
                node, part, sent = busy.pop(client)
                selector.unregister(client.socket)
                try:
                    reply = client.read()
                except (ConnectionLost, OSError) as error:
                    self.errors.append((time.monotonic(), part, str(error)))
                    continue
                if reply == "OK":
                    self.acknowledged[part].append((sent, time.monotonic()))
                else:
                    self.errors.append((time.monotonic(), part, str(reply)))
                idle[node].append(client)
        for clients in idle.values():
            for client in clients:
                client.close()
        for client in busy:
            client.close()

    def wait_all(self, since, seconds=20.0):
        """When, after `since`, the last range first acknowledged a write that was sent after it."""

        def firsts():
            if self.failure:
                raise self.failure
            found = [next((done for sent, done in list(acks) if sent > since), None) for acks in self.acknowledged.values()]
            return None if None in found else max(found)

        return eventually(firsts, seconds, "writes to every range")
