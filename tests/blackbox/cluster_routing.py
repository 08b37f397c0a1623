#!/usr/bin/env python3
"""A cluster of three as clients see it: every command through every node, whoever leads its key."""

import json
import threading
import time

from cluster import Cluster, RespError, check, eventually, main
from lib import run

CROSSSLOT = "CROSSSLOT Keys in request don't hash to the same slot"


def each_client(cluster):
    """(node, connection) of every node; the leaders are spread, so each node serves some keys and forwards others."""
    return [(node, node.client()) for node in cluster.nodes]


def spread(cluster):
    """Leaders on all nodes, so that whatever is asked is forwarded by some of them."""
    names = [node.name for node in cluster.nodes]
    for index in range(1, cluster.ranges + 1):
        eventually(lambda: run("leader", "transfer", names[index % 3], "--range", index, "--node",
                               cluster.nodes[0].http_address).code == 0, 20, "range %d moves" % index)


def test_every_command_works_through_every_node():
    with Cluster(3) as cluster:
        for node, client in each_client(cluster):
            name = node.name
            for i in range(40):
                check(client.cmd("SET", "%s:%d" % (name, i), i) == "OK", name, i)
        for node, client in each_client(cluster):
            for other in cluster.nodes:
                for i in range(40):
                    check(client.cmd("GET", "%s:%d" % (other.name, i)) == b"%d" % i, node.name, other.name, i)
            check(client.cmd("DBSIZE") == 120)
            check(len(set(client.cmd("KEYS", "*"))) == 120)
            check(client.cmd("RANDOMKEY") is not None)
            check(client.cmd("EXISTS", "{t}a", "{t}b") == 0)
            check(client.cmd("MSET", "{t}a", "1", "{t}b", "2") == "OK")
            check(client.cmd("MGET", "{t}a", "{t}b", "{t}c") == [b"1", b"2", None])
            check(client.cmd("DEL", "{t}a", "{t}b") == 2)
            check(client.cmd("MSET", "a", "1", "b", "2") == RespError(CROSSSLOT))
            check(client.cmd("SET", "k", "v", "NX", "GET") is None)
            check(client.cmd("GETDEL", "k") == b"v")
            check(client.cmd("GET") == RespError("ERR wrong number of arguments for 'get' command"))
            check(client.cmd("WAIT", 1, 100) == 1)


def test_transactions_within_a_hash_tag_go_through_every_node():
    with Cluster(3) as cluster:
        for count, (node, client) in enumerate(each_client(cluster), 1):
            check(client.pipeline([("MULTI",), ("INCR", "{t}n"), ("PING",), ("SELECT", 3), ("SET", "{t}x", count),
                                   ("GET", "{t}x"), ("SELECT", 0), ("EXEC",)])[-1] ==
                  [count, "PONG", "OK", "OK", b"%d" % count, "OK"], node.name)
            check(client.pipeline([("MULTI",), ("SET", "a", 1), ("SET", "b", 1), ("EXEC",)])[-1] == RespError(CROSSSLOT))
            check(client.pipeline([("MULTI",), ("INCR", "{t}n", 1), ("EXEC",)])[-1].word == "EXECABORT")
            other = cluster.client(count % 3)
            check(client.cmd("WATCH", "{t}n", "{t}absent") == "OK")
            other.must("INCR", "{t}other")
            check(client.pipeline([("MULTI",), ("GET", "{t}n"), ("EXEC",)])[-1] == [b"%d" % count])
            check(client.cmd("WATCH", "{t}absent") == "OK")
            other.must("SET", "{t}absent", 1)
            other.must("DEL", "{t}absent")
            check(client.pipeline([("MULTI",), ("SET", "{t}y", 1), ("EXEC",)])[-1] is None, "came and went", node.name)


def test_a_scan_through_any_node_meets_every_key_once():
    with Cluster(3) as cluster:
        client = cluster.client()
        wanted = {b"key:%d" % i for i in range(300)}
        check(set(client.pipeline([("SET", key, 1) for key in wanted])) == {"OK"})
        for node, client in each_client(cluster):
            met, cursor = [], b"0"
            while True:
                cursor, keys = client.must("SCAN", cursor, "COUNT", 7, "MATCH", "key:*")
                met += keys
                if cursor == b"0":
                    break
            check(len(met) == 300 and set(met) == wanted, node.name, len(met))


def test_buckets_are_the_same_everywhere():
    with Cluster(3) as cluster:
        for node, client in each_client(cluster):
            check(client.cmd("SELECT", "made-by-" + node.name) == "OK")
            check(client.cmd("SET", "k", node.name) == "OK")
        for node, client in each_client(cluster):
            for other in cluster.nodes:
                check(client.cmd("SELECT", "made-by-" + other.name) == "OK")
                check(client.cmd("GET", "k") == other.name.encode(), node.name, other.name)
        for node, client in each_client(cluster):
            check(client.cmd("SELECT", "made-by-" + node.name) == "OK" and client.cmd("DBSIZE") == 1)
            check(client.cmd("FLUSHDB") == "OK" and client.cmd("DBSIZE") == 0)


def test_http_goes_through_every_node():
    with Cluster(3) as cluster:
        for index, node in enumerate(cluster.nodes):
            other = cluster.nodes[(index + 1) % 3]
            name = node.name
            for i in range(12):
                status, headers, _ = node.http("PUT", "/kv/%s%d" % (name, i), b"%d" % i)
                check(status == 201, status)
                tag = headers["etag"]
                check(other.http("GET", "/kv/%s%d" % (name, i))[2] == b"%d" % i)
                check(other.http("PUT", "/kv/%s%d" % (name, i), b"x", {"If-None-Match": "*"})[0] == 412)
                check(other.http("PUT", "/kv/%s%d" % (name, i), b"y", {"If-Match": tag})[0] == 204)
                check(node.http("PUT", "/kv/%s%d" % (name, i), b"z", {"If-Match": tag})[0] == 412)
                check(node.http("GET", "/kv/%s%d?consistency=local" % (name, i))[0] in (200, 404))
            check(node.http("GET", "/buckets/of-%s/kv/a" % name)[0] == 404)
            check(node.http("PUT", "/buckets/of-%s/kv/a" % name, b"1")[0] == 201)
            check(other.http("GET", "/buckets/of-%s/kv/a" % name)[2] == b"1")
            check(other.http("DELETE", "/buckets/of-%s/kv/a" % name)[0] == 204)
            check(node.http("DELETE", "/buckets/of-%s/kv/a" % name)[0] == 404)
        for node in cluster.nodes:
            keys, cursor = [], ""
            while cursor is not None:
                status, _, body = node.http("GET", "/kv?limit=5" + ("&cursor=" + cursor if cursor else ""))
                check(status == 200, body)
                page = json.loads(body)
                check(len(page["entries"]) <= 5)
                keys += [entry["key"] for entry in page["entries"]]
                cursor = page["cursor"]
            check(keys == sorted(name.name + str(i) for name in cluster.nodes for i in range(12)), node.name, keys)


def test_a_write_with_a_number_is_run_once_through_any_node():
    with Cluster(3) as cluster:
        for sequence in range(1, 25):
            replies = [client.cmd("DURAMEN.ONCE", "me", sequence, "INCR", "n") for _, client in each_client(cluster)]
            check(replies == [sequence] * 3, sequence, replies)
        client = cluster.client()
        check(client.cmd("DURAMEN.ONCE", "me", 1, "INCR", "n").word == "SEQOLD")
        check(client.cmd("DURAMEN.ONCE", "nobody", 2, "INCR", "n").word == "SESSIONEXPIRED")
        check(client.cmd("GET", "n") == b"24" and client.cmd("DBSIZE") == 1)
        headers = {"Duramen-Client": "me", "Duramen-Sequence": "1"}
        check([node.http("PUT", "/kv/h", b"%d" % i, headers)[0] for i, node in enumerate(cluster.nodes)] == [201] * 3)
        check(cluster.nodes[2].http("GET", "/kv/h")[2] == b"0")
        headers = {"Duramen-Client": "other", "Duramen-Sequence": "2"}
        check(cluster.nodes[0].http("PUT", "/kv/h", b"x", headers)[0] == 409)


def test_a_readonly_connection_may_see_what_is_old_and_others_never():
    with Cluster(3) as cluster:
        stale = [node.client() for node in cluster.nodes]
        for client in stale:
            check(client.cmd("READONLY") == "OK")
        for i in range(50):
            writer, readers = cluster.client(i % 3), each_client(cluster)
            writer.must("SET", "k", i)
            check([client.cmd("GET", "k") for _, client in readers] == [b"%d" % i] * 3)
            for client in stale:
                value = client.must("GET", "k")
                check(value is None or int(value) <= i)
        for client in stale:
            eventually(lambda: client.cmd("GET", "k") == b"49", 5, "a replica catches up")


def test_leaders_move_where_they_are_told_and_commands_follow():
    with Cluster(3) as cluster:
        spread(cluster)
        client = cluster.client()
        led = {range_["id"]: range_["leader"] for range_ in cluster.status()["ranges"]}
        check(len(set(led.values())) == 3, led)
        name = cluster.nodes[1].name
        moved = run("leader", "transfer", name, "--node", cluster.nodes[2].http_address)
        check(moved.code == 0 and name in moved.out, moved)
        for i in range(100):
            check(client.cmd("INCR", "n%d" % i) == 1)
        refused = run("leader", "transfer", "nobody", "--node", cluster.nodes[0].http_address)
        check(refused.code == 1 and "409" in refused.err, refused)


def test_without_a_majority_everything_says_so_in_time():
    with Cluster(3) as cluster:
        left = cluster.nodes[2]
        client, stale = left.client(), left.client()
        check(client.cmd("SET", "k", "v") == "OK")
        check(stale.cmd("READONLY") == "OK")
        eventually(lambda: stale.cmd("GET", "k") == b"v", 5, "the replica has it")
        for node in cluster.nodes[:2]:
            node.kill9()

        def timed(ask):
            began = time.monotonic()
            answer = ask()
            took = time.monotonic() - began
            check(took < 4, "the deadline is 2 s", took, answer)
            return answer

        for command in (("SET", "k", "w"), ("GET", "k"), ("MGET", "{a}1", "{a}2"), ("DBSIZE",), ("SCAN", "0"), ("FLUSHALL",),
                        ("SELECT", "unheard-of"), ("DURAMEN.ONCE", "c", 1, "INCR", "n")):
            reply = timed(lambda: client.cmd(*command))
            check(isinstance(reply, RespError) and reply.word in ("UNKNOWN", "CLUSTERDOWN"), command, reply)
        check(client.pipeline([("MULTI",), ("SET", "k", "w")]) == ["OK", "QUEUED"])
        reply = timed(lambda: client.cmd("EXEC"))
        check(isinstance(reply, RespError) and reply.word in ("UNKNOWN", "CLUSTERDOWN"), reply)
        status, _, body = timed(lambda: left.http("PUT", "/kv/k", b"w"))
        check((status, json.loads(body)["error"]["code"]) in ((503, "unavailable"), (504, "unknown")), status, body)
        check(timed(lambda: left.http("GET", "/kv/k"))[0] == 503)
        check(timed(lambda: left.http("GET", "/kv"))[0] == 503)
        check(timed(lambda: left.http("GET", "/status"))[0] == 200)
        check(left.http("GET", "/health/live")[0] == 200)
        eventually(lambda: left.http("GET", "/health/ready")[0] == 503, 10, "it says that it does not serve")
        check(stale.cmd("GET", "k") == b"v" and stale.cmd("PING") == "PONG")
        check(left.http("GET", "/kv/k?consistency=local")[2] == b"v")
        for node in cluster.nodes[:2]:
            node.start()
        eventually(lambda: client.cmd("SET", "k", "x") == "OK", 20, "it serves again")
        check(cluster.nodes[0].client().cmd("GET", "k") == b"x")


def test_a_planned_stop_fails_no_request_at_other_nodes():
    with Cluster(3) as cluster:
        first = cluster.nodes[0]
        check(run("leader", "transfer", first.name, "--node", first.http_address).code == 0)
        errors, stop = [], threading.Event()

        def work(node, index):
            client, count = node.client(), 0
            while not stop.is_set():
                count += 1
                reply = client.cmd("SET", "k%d:%d" % (index, count % 100), count)
                if reply != "OK":
                    errors.append((node.name, reply))

        threads = [threading.Thread(target=work, args=(cluster.nodes[1 + index % 2], index)) for index in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.5)
        code = first.term()
        time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
        check(code == 0 and errors == [], code, errors[:5])


main()
