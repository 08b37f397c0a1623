#!/usr/bin/env python3
"""A cluster as its users meet it: three commands, any node answers, nodes come and go, and what is refused."""

import json
import os
import shutil
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import (  # noqa: E402
    Cluster, ClusterNode, ConnectionLost, NodeExited, RespError, check, eventually, key_of_range, main, number,
    private, range_of)

GOOD_ROLES = ("voter", "learner")


def writable(node, key="probe", seconds=5.0):
    eventually(lambda: node.client().cmd("SET", key, "1") == "OK", seconds, "writes through %s" % node.name)


def other_than(cluster, *nodes):
    return [node for node in cluster if node not in nodes]


def slots_apart(ranges):
    """Two keys of different ranges."""
    return key_of_range(1, ranges, "apart"), key_of_range(ranges, ranges, "apart")


def test_three_commands():
    """What the README shows, with its ports if they are ours."""
    own = {"--listen": 7410, "--http": 7411, "--peer": 7412}
    with Cluster(0, ranges=64) as cluster:
        for i in range(3):
            node = ClusterNode(cluster, "n%d" % (i + 1), ["127.0.0.1:7412"] if i else [])
            if private():
                node.addresses = {flag: "127.0.0.1:%d" % (port + 10 * i) for flag, port in own.items()}
            elif i:
                node.join = [cluster[0].peer]
            cluster.nodes.append(node)
            node.start()
        check(cluster.client(0).cmd("SET", "greeting", "hello") == "OK")
        check(cluster.client(1).cmd("GET", "greeting") == b"hello", "what was written to one is read from another")
        check(cluster.client(2).cmd("GET", "greeting") == b"hello")
        cluster.settle()
        for victim in list(cluster):
            victim.kill9()
            for node in other_than(cluster, victim):
                writable(node, "while-%s-is-gone" % victim.name)
            victim.start()  # no --join: the folder knows
            cluster.settle()
            check(victim.client().cmd("GET", "while-%s-is-gone" % victim.name) == b"1")
            cluster.caught_up()


def check_status_shape(status, name, members, ranges):
    check(status["node"] == name, status["node"])
    int(status["cluster_id"], 16)
    for member in status["members"]:
        for field in ("name", "peer", "resp", "http", "zone", "state"):
            check(isinstance(member[field], str), "members have", field, member)
        check(member["state"] in ("alive", "suspect", "dead", "left"), member)
    check({member["name"] for member in status["members"]} == set(members), status["members"])
    check(sorted(part["id"] for part in status["ranges"]) == list(range(1, ranges + 1)), "ids of all data ranges, from 1")
    check(status["meta"]["id"] == 0, status["meta"])
    for part in status["ranges"] + [status["meta"]]:
        check(part["leader"] is None or part["leader"] in members, part)
        for field in ("term", "applied", "committed"):
            check(isinstance(part[field], int), field, part)
        for replica in part["replicas"]:
            check(replica["name"] in members and replica["role"] in GOOD_ROLES, replica)
            check(isinstance(replica["match"], int) and isinstance(replica["local"], bool), replica)
            check(replica["local"] == (replica["name"] == name), replica)
    check(status["io"] in ("uring", "posix"), status["io"])
    for field in ("last", "durable", "checkpoint", "bytes"):
        check(isinstance(status["wal"][field], int), field)


def test_any_node_answers():
    with Cluster(3, ranges=16) as cluster:
        names = [node.name for node in cluster]
        for node in cluster:
            check_status_shape(node.status(), node.name, names, 16)
        one, two, three = [node.client() for node in cluster]

        # commands over keys of all ranges, through a node that leads few of them
        few = min(cluster, key=lambda node: cluster.leaders()[node.name]).client()
        expected = {b"k%d" % i: b"v%d" % i for i in range(300)}
        for reply in few.pipeline([("SET", key, value) for key, value in expected.items()]):
            check(reply == "OK", reply)
        for client in (one, two, three):
            found = client.pipeline([("GET", key) for key in expected])
            check(found == list(expected.values()), "what was written through one is read through all")
            check(client.must("DBSIZE") == 300, client.cmd("DBSIZE"))
            seen, cursor = [], "0"
            while True:
                cursor, page = client.must("SCAN", cursor, "COUNT", 50)
                seen += page
                if cursor == b"0":
                    break
            check(sorted(seen) == sorted(expected), "SCAN sees each key once", len(seen), len(set(seen)))
            check(sorted(client.must("KEYS", "k1*")) == sorted(k for k in expected if k.startswith(b"k1")))
            check(client.must("RANDOMKEY") in expected)
        check(two.pipeline([("DEL", key) for key in list(expected)[:10]]) == [1] * 10)
        check(three.pipeline([("EXISTS", key) for key in list(expected)[:20]]) == [0] * 10 + [1] * 10)
        check(two.must("MSET", "{m}1", 1, "{m}2", 2) == "OK" and one.must("MGET", "{m}1", "{m}2") == [b"1", b"2"])
        check(three.must("DEL", "{m}1", "{m}2", "{m}3") == 2)
        check(one.must("INCRBY", "n", 5) == 5 and two.must("INCR", "n") == 6 and three.must("APPEND", "n", "0") == 2)
        check(one.must("GET", "n") == b"60")
        check(one.must("SET", "short", "1", "PX", 60000) == "OK" and 0 < two.must("PTTL", "short") <= 60000)
        check(one.must("SET", "gone", "1", "PX", 80) == "OK")
        eventually(lambda: three.must("GET", "gone") is None, 5, "a key expires on every node")

        # keys of two ranges in one command that is all or nothing
        left, right = slots_apart(16)
        one.must("SET", left, "0")
        for command in (("MSET", left, 1, right, 2), ("RENAME", left, right), ("COPY", left, right), ("MGET", left, right),
                        ("DEL", left, right), ("EXISTS", left, right), ("WATCH", left, right)):
            reply = one.cmd(*command)
            check(isinstance(reply, RespError) and reply.word == "CROSSSLOT", command, reply)
        check(two.must("MULTI") == "OK")
        two.cmd("SET", left, 1), two.cmd("SET", right, 1)
        reply = two.cmd("EXEC")
        check(isinstance(reply, RespError) and reply.word in ("CROSSSLOT", "EXECABORT"), reply)
        check(one.must("GET", left) == b"0" and one.must("GET", right) is None, "none of it was applied")

        # transactions within a hash tag, through every node
        for number_, client in enumerate((one, two, three)):
            check(client.must("MULTI") == "OK")
            check(client.must("SET", "{t}a", number_) == "QUEUED" and client.must("INCR", "{t}n") == "QUEUED")
            check(client.must("GET", "{t}a") == "QUEUED")
            check(client.must("EXEC") == ["OK", number_ + 1, b"%d" % number_])
        for watcher, writer in ((one, two), (two, three), (three, one)):
            check(watcher.must("WATCH", "{t}a", "{t}absent") == "OK")
            check(writer.must("SET", "{t}a", "changed") == "OK")
            watcher.must("MULTI"), watcher.must("SET", "{t}b", "lost update")
            check(watcher.must("EXEC") is None, "a watched key was changed through another node")
            check(watcher.must("WATCH", "{t}a", "{t}absent") == "OK")
            watcher.must("MULTI"), watcher.must("SET", "{t}b", "fine")
            check(watcher.must("EXEC") == ["OK"])
            check(watcher.must("WATCH", "{t}absent") == "OK")
            check(writer.must("SET", "{t}absent", "1") == "OK" and writer.must("DEL", "{t}absent") == 1)
            watcher.must("MULTI"), watcher.must("SET", "{t}b", "lost update")
            check(watcher.must("EXEC") is None, "a watched absent key was made and deleted")

        # local reads are there after a moment, and only where they were asked for
        one.must("SET", "local", "1")
        check(three.must("READONLY") == "OK")
        eventually(lambda: three.must("GET", "local") == b"1", 5, "the local replica has it")
        check(three.must("READWRITE") == "OK" and three.must("GET", "local") == b"1")

        # buckets are the cluster's
        check(one.must("SELECT", 3) == "OK" and one.must("SET", "k", "in three") == "OK")
        check(two.must("GET", "k") is None and two.must("SELECT", 3) == "OK" and two.must("GET", "k") == b"in three")
        check(one.must("SELECT", "named") == "OK" and one.must("SET", "k", "in named") == "OK")
        eventually(lambda: three.cmd("SELECT", "named") == "OK", 5, "a bucket is known everywhere")
        check(three.must("GET", "k") == b"in named" and three.must("SELECT", 0) == "OK")

        check(two.must("SELECT", 3) == "OK" and two.must("FLUSHDB") == "OK" and two.must("DBSIZE") == 0)
        check(three.must("DBSIZE") > 0)
        check(three.must("FLUSHALL") == "OK")
        two.must("SELECT", 0)
        check(one.must("SELECT", 0) == "OK" and one.must("DBSIZE") == 0 and two.must("DBSIZE") == 0)
        check(one.must("KEYS", "*") == [] and two.must("SCAN", 0) == [b"0", []] and three.must("RANDOMKEY") is None)


def test_http_on_every_node():
    with Cluster(3, ranges=16) as cluster:
        for i, node in enumerate(cluster):
            others = other_than(cluster, node)
            for key in ("http%d-%d" % (i, j) for j in range(6)):
                path = "/kv/" + key
                code, headers, _ = node.http("PUT", path, b"one")
                check(code in (200, 201, 204), code)
                code, headers, body = others[0].http("GET", path)
                check(code == 200 and body == b"one" and "etag" in headers, code, body, headers)
                tag = headers["etag"]
                code, headers, _ = others[1].http("PUT", path, b"two", {"If-Match": tag})
                check(code in (200, 201, 204), "compare and set through a third node", code)
                code, _, _ = node.http("PUT", path, b"three", {"If-Match": tag})
                check(code == 412, "an old version is refused", code)
                check(others[0].http("PUT", path, b"four", {"If-None-Match": "*"})[0] == 412)
                check(node.http("GET", path)[2] == b"two")
                check(node.http("GET", path + "?consistency=linearizable")[2] == b"two")
                eventually(lambda: others[1].http("GET", path + "?consistency=local")[2] == b"two", 5, "local read")
                check(others[0].client().must("GET", key) == b"two")
            code, _, body = node.http("GET", "/kv?prefix=http&limit=4")
            check(code == 200 and json.loads(body), code, body)
            check(node.http("DELETE", "/kv/http%d-0" % i)[0] in (200, 204))
            check(others[0].http("GET", "/kv/http%d-0" % i)[0] == 404)
            check(node.http("GET", "/health/live")[0] == 200 and node.http("GET", "/health/ready")[0] == 200)
            check(node.http("GET", "/metrics")[0] == 200 and node.http("GET", "/")[0] == 200)
        # all keys in order, page by page
        listed, cursor = [], ""
        while True:
            code, _, body = cluster[2].http("GET", "/kv?prefix=http&limit=4" + ("&cursor=" + cursor if cursor else ""))
            page = json.loads(body)
            check(code == 200, body)
            listed += [entry["key"] for entry in page["entries"]]
            cursor = page["cursor"]
            if cursor is None:
                break
        wanted = sorted("http%d-%d" % (i, j) for i in range(3) for j in range(1, 6))
        check(listed == wanted, "pages in key order", listed)


def test_without_a_majority():
    with Cluster(3, ranges=16) as cluster:
        cluster[0].client().must("SET", "k", "v")
        survivor = cluster[1]
        cluster.caught_up()
        client = survivor.client()
        cluster[0].kill9()
        cluster[2].kill9()
        for command in (("SET", "k", "w"), ("GET", "k"), ("INCR", "n"), ("DBSIZE",), ("MGET", "{k}1", "{k}2")):
            began = time.monotonic()
            reply = client.cmd(*command)
            took = time.monotonic() - began
            check(isinstance(reply, RespError) and reply.word in ("CLUSTERDOWN", "UNKNOWN"), command, reply)
            check(took < 3.0, "an answer within the deadline of 2 s", command, took)
        eventually(lambda: client.cmd("SET", "k", "w").word == "CLUSTERDOWN", 5, "CLUSTERDOWN once nobody leads")
        check(survivor.http("GET", "/kv/k")[0] in (503, 504), survivor.http("GET", "/kv/k"))
        check_status_shape(survivor.status(), survivor.name, [node.name for node in cluster], 16)
        check(survivor.http("GET", "/health/live")[0] == 200, "it lives")
        check(survivor.http("GET", "/health/ready")[0] == 503, "it is not ready", survivor.http("GET", "/health/ready"))
        client.must("READONLY")
        check(client.cmd("GET", "k") == b"v", "local reads go on", client.cmd("GET", "k"))
        began = time.monotonic()
        cluster[0].start()
        writable(survivor, "back", 10)
        print("writes %.2f s after a second node was started" % (time.monotonic() - began))
        cluster[2].start()
        cluster.settle()
        check(survivor.client().must("GET", "k") in (b"v", b"w"))


class Writing:
    """Somebody who writes all the time, for whom nothing may fail."""

    def __init__(self, node):
        self.node = node
        self.stopping = False
        self.errors = []
        self.worst = 0.0
        self.count = 0
        self.thread = threading.Thread(target=self.run, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        self.thread.join(30)

    def run(self):
        client = self.node.client()
        while not self.stopping:
            began = time.monotonic()
            try:
                reply = client.cmd("SET", "during%d" % (self.count % 500), self.count)
            except (ConnectionLost, OSError) as error:
                reply = error
            self.worst = max(self.worst, time.monotonic() - began)
            if reply != "OK":
                self.errors.append(str(reply))
                if not isinstance(reply, RespError):
                    return
            self.count += 1
            time.sleep(0.001)


def roles_seen(cluster, name, log, stop):
    """Notes which roles a member was seen in."""
    while not stop.is_set():
        for part in cluster.status(0)["ranges"]:
            for replica in part["replicas"]:
                if replica["name"] == name:
                    log.add(replica["role"])
        time.sleep(0.01)


def test_grow_with_data():
    keys = int(number("CLUSTER_KEYS", 50000))
    value = b"v" * 100
    with Cluster(3, ranges=16) as cluster:
        client = cluster.client()
        for start in range(0, keys, 5000):
            replies = client.pipeline([("SET", "key%d" % i, value) for i in range(start, start + 5000)])
            check(all(reply == "OK" for reply in replies), "a write failed")
        with Writing(cluster[0]) as writing:
            for name in ("n4", "n5"):
                roles, stop = set(), threading.Event()
                watch = threading.Thread(target=roles_seen, args=(cluster, name, roles, stop))
                watch.start()
                began = time.monotonic()
                node = cluster.add(name)
                cluster.settle(60)
                stop.set()
                watch.join()
                here = sum(1 for part in node.status()["ranges"] for r in part["replicas"] if r["name"] == name)
                print("%s carries %d of 16 ranges as a voter after %.1f s, seen as %s" % (
                    name, here, time.monotonic() - began, sorted(roles)))
                check(here > 0, "the new node carries ranges")
                check(roles == set(GOOD_ROLES), "a learner first, then a voter", roles)
        check(not writing.errors, "writes failed while nodes joined", writing.errors[:3])
        print("%d writes meanwhile, the slowest %.0f ms" % (writing.count, writing.worst * 1000))
        check(writing.worst < 2.0, writing.worst)
        for node in cluster:
            client = node.client()
            check(client.must("GET", "key%d" % (keys - 1)) == value)
        check(cluster.client(4).must("DBSIZE") == keys + min(500, writing.count))
        # the members are the cluster's: known after a restart of any node
        names = {node.name for node in cluster}
        cluster[4].kill9()
        writable(cluster[3])
        cluster[4].start()
        cluster.settle()
        check(set(cluster.members(4)) == names)

        # two of five are gone: ranges that had both lost their majority say so, the others go on
        cluster[3].kill9()
        cluster[4].kill9()
        eventually(lambda: cluster.members(0)["n4"] == cluster.members(0)["n5"] == "dead", 20, "both are seen dead")
        samples = {range_of("key%d" % i, 16): "key%d" % i for i in range(500)}
        asking = {part: (cluster.client(part % 3), key) for part, key in samples.items()}
        for client, key in asking.values():
            client.send("GET", key)
        replies = {part: client.read() for part, (client, _) in asking.items()}
        for part in cluster.status(0)["ranges"]:
            left = sum(1 for replica in part["replicas"] if replica["name"] not in ("n4", "n5"))
            reply = replies[part["id"]]
            if 2 * left > len(part["replicas"]):
                check(reply == value, "a range with a majority answers", part, reply)
            else:
                check(isinstance(reply, RespError) and reply.word == "CLUSTERDOWN", part, reply)
        cluster[3].start()
        cluster[4].start()
        cluster.settle()


def test_members_and_leaders():
    with Cluster(4, ranges=16) as cluster:
        client = cluster.client(1)
        for i in range(500):
            client.must("SET", "key%d" % i, i)
        # every node shows the same list
        for node in cluster:
            listed = node.run("member", "list")
            check(listed.code == 0 and all(other.name in listed.out for other in cluster), listed)
        # leadership goes where the operator wants it
        target = cluster[2]
        done = cluster[0].run("leader", "transfer", target.name)
        check(done.code == 0, done)
        eventually(lambda: cluster.leaders(1)[target.name] >= 10, 10, "the ranges it carries move to n3")
        done = cluster[3].run("leader", "transfer", cluster[1].name, "--range", "0")
        check(done.code == 0, done)
        eventually(lambda: cluster.status(0)["meta"]["leader"] == cluster[1].name, 10, "the meta range moves to n2")
        check(cluster[0].run("leader", "transfer", "nobody").code == 1)
        check(cluster[0].run("member", "remove", "nobody").code == 1)

        # a living member leaves for good, and its ranges go elsewhere first
        leaving = cluster[3]
        with Writing(cluster[0]) as writing:
            done = cluster[1].run("member", "remove", leaving.name)
            check(done.code == 0, done)
            eventually(lambda: cluster.members(0).get(leaving.name) in (None, "left"), 20, "it is gone from the table")
        check(not writing.errors, "writes failed during a removal", writing.errors[:3])
        rest = cluster.nodes[:3]
        cluster.settle(30, nodes=rest)
        for part in rest[0].status()["ranges"]:
            check(leaving.name not in [replica["name"] for replica in part["replicas"]], part)
        leaving.kill9()
        check(rest[2].client().must("DBSIZE") >= 500)
        # what was removed does not come back by itself
        try:
            leaving.ready_seconds = 8
            leaving.start()
            time.sleep(0.5)
            check(rest[0].client().cmd("SET", "k", "v") == "OK")
            check(cluster.members(0).get(leaving.name) in (None, "left", "dead"), "a removed node is back", cluster.members(0))
        except NodeExited as exited:
            check(exited.code == 1 and exited.stderr.strip(), exited)
        leaving.kill9()

        # a quorum is not given away: with one of three dead, the others cannot go
        cluster.nodes.remove(leaving)
        leaving.close()
        cluster[2].kill9()
        eventually(lambda: cluster.members(0)[cluster[2].name] == "dead", 15, "n3 is seen dead")
        refused = cluster[0].run("member", "remove", cluster[1].name)
        check(refused.code == 1 and refused.err.strip(), "removing a second node would lose the quorum", refused)
        writable(cluster[0])

        # the dead one is replaced by an empty one of the same name
        cluster[2].wipe()
        done = cluster[0].run("member", "replace", cluster[2].name)
        check(done.code == 0, done)
        cluster[2].member = False
        cluster[2].join = [cluster[0].peer]
        cluster[2].start()
        cluster.settle(30)
        check(cluster[2].client().must("GET", "key7") == b"7")
        cluster[0].kill9()
        writable(cluster[2])
        lost = [i for i in range(500) if cluster[2].client().cmd("GET", "key%d" % i) != b"%d" % i]
        check(not lost, "keys are gone after a replacement", lost[:5])


def refused_to_start(node, what):
    """The node ends with a sentence instead of serving."""
    node.ready_seconds = 20
    try:
        node.start()
    except NodeExited as exited:
        check(exited.code in (1, 2), what, exited.code, exited.stderr)
        check(exited.stderr.strip(), what)
        return exited.stderr.strip().splitlines()[-1]
    check(False, what)


def test_refusals():
    with Cluster(3, ranges=16) as cluster, Cluster(1, ranges=16) as foreign:
        cluster.client().must("SET", "k", "v")
        foreign.client().must("SET", "k", "foreign")
        cluster.caught_up()
        before = cluster.status(0)["members"]

        # a disk is lost: nobody comes back under the old name with nothing
        victim = cluster[2]
        victim.kill9()
        kept = victim.data + ".kept"
        os.rename(victim.data, kept)
        victim.member = False
        said = refused_to_start(victim, "an empty folder under a member's name")
        check("replace" in said, said)
        check(cluster.client(0).must("GET", "k") == b"v")
        shutil.rmtree(victim.data, ignore_errors=True)
        os.rename(kept, victim.data)
        victim.member = True
        victim.ready_seconds = 60
        victim.start()
        cluster.settle()

        # a copy of a folder, while the original runs
        check(cluster[1].term() == 0)
        clone = os.path.join(cluster[1].folder, "clone")
        shutil.copytree(cluster[1].data, clone)
        cluster[1].start()
        cluster.settle()
        copy = ClusterNode(cluster, "n2", data=clone)
        copy.member = True
        copy.ready_seconds = 15
        try:
            copy.start()
            time.sleep(2.0)
        except NodeExited:
            pass
        for i in range(50):
            check(cluster.client(i % 3).cmd("SET", "clone%d" % i, i) == "OK", "a clone disturbs nobody")
        if copy.alive():
            reply = copy.client().cmd("GET", "clone7")
            check(isinstance(reply, RespError) or reply == b"7", "a clone gives no stale answer", reply)
        copy.close()
        cluster.settle()
        check(cluster.members(0) == {"n1": "alive", "n2": "alive", "n3": "alive"}, cluster.members(0))

        # a node of another cluster, and a folder that has data of its own
        full = ClusterNode(cluster, "n9", [cluster[0].peer], data=foreign[0].data)
        foreign[0].term()
        full.ready_seconds = 15
        try:
            full.start()
            check(full.status()["cluster_id"] != cluster.status(0)["cluster_id"], "data of one cluster ended up in another")
            check(full.client().cmd("GET", "k") == b"foreign")
        except NodeExited as exited:
            check(exited.code in (1, 2) and exited.stderr.strip(), exited)
        full.close()
        check(cluster.members(0).keys() == {"n1", "n2", "n3"}, cluster.members(0))
        check(cluster.client(2).must("GET", "k") == b"v")

        # nobody is there to let it in
        lonely = ClusterNode(cluster, "n8", ["127.0.0.1:1"], args=["--join-timeout", "1s"])
        refused_to_start(lonely, "nobody at the address")
        lonely.close()

        # bytes of strangers at the peer port
        import socket
        for i in range(20):
            port = int(cluster[i % 3].peer.rsplit(":", 1)[1])
            with socket.create_connection(("127.0.0.1", port)) as stranger:
                stranger.sendall(os.urandom(200) if i % 2 else b"\0SP\0\0\x30\0\0" + os.urandom(400))
        after = cluster.status(0)["members"]
        check(after == before, "strangers changed the members", after)
        check(all(node.alive() for node in cluster))
        check(cluster.client(1).must("SET", "k", "still") == "OK" and cluster.client(0).must("GET", "k") == b"still")


def test_secret():
    """Off loopback a secret is needed; who has another is nobody."""
    from cluster import can_cut
    if not can_cut():
        print("skipped: needs namespaces")
        return
    with Cluster(3, links=True, ranges=16) as cluster:
        before = set(cluster.members(0))
        stranger = ClusterNode(cluster, "n4", [cluster[0].peer], args=["--join-timeout", "3s"])
        other = stranger.folder + "/secret"
        with open(os.open(other, os.O_CREAT | os.O_WRONLY, 0o600), "w") as file:
            file.write("quite another secret\n")
        right, cluster.secret = cluster.secret, other
        refused_to_start(stranger, "a stranger with another secret")
        cluster.secret = right
        stranger.close()
        check(set(cluster.members(0)) == before)
        check(cluster.client(2).must("SET", "k", "v") == "OK")


main()
