#!/usr/bin/env python3
"""What the HTTP interface does: values, versions, conditions, expiry, pages, reports, backup."""

import base64
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

from lib import Node, check, eventually, main, run, temp_folder


def error_code(body):
    return json.loads(body)["error"]["code"]


def test_a_value_comes_back_byte_for_byte():
    with Node() as node:
        for value in (b"", b"x", bytes(range(256)), b"\r\n\r\n", os.urandom(70_000), os.urandom(3_000_000)):
            status, headers, body = node.http("PUT", "/kv/value", value)
            check(status in (201, 204) and body == b"", status, body)
            put_tag = headers["etag"]
            status, headers, body = node.http("GET", "/kv/value")
            check(status == 200 and body == value, status, len(body))
            check(headers["content-type"] == "application/octet-stream")
            check(headers["etag"] == put_tag, headers["etag"], put_tag)
            check(headers["x-content-type-options"] == "nosniff")
            check("access-control-allow-origin" not in headers)
            status, headers, body = node.http("HEAD", "/kv/value")
            check((status, body, headers["content-length"]) == (200, b"", str(len(value))))
        # RESP sees the same bytes
        check(node.client().cmd("GET", "value") == value)


def test_created_replaced_deleted_absent():
    with Node() as node:
        check(node.http("GET", "/kv/k")[0] == 404)
        check(node.http("PUT", "/kv/k", b"1")[0] == 201)
        check(node.http("PUT", "/kv/k", b"2")[0] == 204)
        check(node.http("DELETE", "/kv/k")[0] == 204)
        status, _, body = node.http("DELETE", "/kv/k")
        check(status == 404 and error_code(body) == "not_found")
        check(node.http("PUT", "/kv/k", b"3")[0] == 201)


def test_keys_are_any_bytes():
    keys = [b"a/b/c", b"a b", b"%", b"a%2Fb", "grün".encode(), b"\x00\x01\xff", b"../../x", b"a?b=c&d", b"+", b"k" * 400, b""]
    with Node() as node:
        client = node.client()
        for number, key in enumerate(keys):
            path = "/kv/" + urllib.parse.quote(key, safe="")
            check(node.http("PUT", path, b"%d" % number)[0] == 201, key)
            check(client.cmd("GET", key) == b"%d" % number, key)
            check(node.http("GET", path)[2] == b"%d" % number, key)
        # unescaped slashes and dots belong to the key, and nothing is decoded twice
        check(node.http("GET", "/kv/a/b/c")[2] == b"0")
        check(node.http("GET", "/kv/../../x")[2] == b"6")
        check(node.http("GET", "/kv/a%252Fb")[2] == b"3")
        check(node.http("GET", "/kv/+")[2] == b"8")
        status, _, body = node.http("PUT", "/kv/" + "k" * 401, b"x")
        check(status == 400 and b"400 bytes" in body, status, body)
        check(error_code(node.http("PUT", "/kv/%", b"x")[2]) == "bad_key")


def test_versions_are_compare_and_set():
    with Node() as node:
        status, headers, _ = node.http("PUT", "/kv/k", b"1", {"If-None-Match": "*"})
        check(status == 201)
        first = headers["etag"]
        status, headers, body = node.http("PUT", "/kv/k", b"2", {"If-None-Match": "*"})
        check((status, headers["etag"], error_code(body)) == (412, first, "precondition_failed"))
        status, headers, _ = node.http("PUT", "/kv/k", b"2", {"If-Match": first})
        check(status == 204 and headers["etag"] != first)
        second = headers["etag"]
        check(node.http("PUT", "/kv/k", b"3", {"If-Match": first})[0] == 412)
        check(node.http("DELETE", "/kv/k", None, {"If-Match": first})[0] == 412)
        check(node.http("PUT", "/kv/k", b"3", {"If-Match": "W/" + second})[0] == 412, "a weak tag matched")
        check(node.http("GET", "/kv/k")[2] == b"2")
        check(node.http("GET", "/kv/k", None, {"If-None-Match": second})[0] == 304)
        check(node.http("GET", "/kv/k", None, {"If-None-Match": first})[0] == 200)
        check(node.http("GET", "/kv/k", None, {"If-Match": first})[0] == 412)
        for bad in ("5", '"5', "'5'", '"5" "6"'):
            status, _, body = node.http("PUT", "/kv/k", b"x", {"If-Match": bad})
            check(status == 400 and error_code(body) == "bad_condition", bad, status)
        check(node.http("PUT", "/kv/k", b"3", {"If-Match": '"1", ' + second})[0] == 204)
        check(node.http("DELETE", "/kv/k", None, {"If-Match": "*"})[0] == 204)
        check(node.http("PUT", "/kv/k", b"x", {"If-Match": "*"})[0] == 412)
        check(node.http("GET", "/kv/k")[0] == 404)


def test_of_many_creators_one_wins_and_no_increment_is_lost():
    with Node() as node:
        wins, threads, rounds = [], 8, 25

        def create():
            if node.http("PUT", "/kv/once", b"x", {"If-None-Match": "*"})[0] == 201:
                wins.append(1)

        def add():
            connection = node.http_connection()
            for _ in range(rounds):
                while True:
                    connection.request("GET", "/kv/sum")
                    response = connection.getresponse()
                    value = int(response.read())
                    connection.request("PUT", "/kv/sum", b"%d" % (value + 1), {"If-Match": response.getheader("ETag")})
                    answer = connection.getresponse()
                    answer.read()
                    check(answer.status in (204, 412), answer.status)
                    if answer.status == 204:
                        break
            connection.close()

        failures = []

        def guarded(work):
            try:
                work()
            except Exception as error:
                failures.append(error)

        node.http("PUT", "/kv/sum", b"0")
        for work in (create, add):
            running = [threading.Thread(target=guarded, args=(work,)) for _ in range(threads)]
            for thread in running:
                thread.start()
            for thread in running:
                thread.join()
        check(failures == [], failures)
        check(len(wins) == 1, "winners:", len(wins))
        check(node.http("GET", "/kv/sum")[2] == b"%d" % (threads * rounds))


def test_expiry():
    with Node() as node:
        check(node.http("PUT", "/kv/soon?ttl_ms=300", b"x")[0] == 201)
        check(node.http("PUT", "/kv/later?ttl_ms=1000000", b"x")[0] == 201)
        client = node.client()
        check(0 < client.cmd("PTTL", "later") <= 1_000_000)
        eventually(lambda: node.http("GET", "/kv/soon")[0] == 404, 10, "the key expires")
        check(node.http("PUT", "/kv/soon", b"x", {"If-None-Match": "*"})[0] == 201)
        check(client.cmd("PTTL", "soon") == -1)
        for bad in ("0", "-1", "x", "", "1.5", "99999999999999999999"):
            status, _, body = node.http("PUT", "/kv/k?ttl_ms=" + bad, b"x")
            check(status == 400 and error_code(body) == "bad_ttl", bad, status, body)


def test_unknown_parameters_are_refused():
    with Node() as node:
        for method, path in (("GET", "/kv/k?ttl=5"), ("PUT", "/kv/k?ttl=5"), ("PUT", "/kv/k?ttl_ms=5&ttl_ms=6"),
                             ("DELETE", "/kv/k?ttl_ms=5"), ("GET", "/kv?prefx=a"), ("GET", "/kv/k?consistency=maybe"),
                             ("GET", "/kv?limit=0"), ("GET", "/kv?limit=x"), ("GET", "/kv?cursor=%21")):
            check(node.http(method, path, b"" if method == "PUT" else None)[0] == 400, method, path)
        node.http("PUT", "/kv/k?consistency=linearizable", b"x")
        check(node.http("GET", "/kv/k?consistency=local")[2] == b"x")


def test_pages_walk_all_keys_in_order():
    with Node() as node:
        client = node.client()
        keys = sorted(b"page:%04d" % number for number in range(1234)) + [b"other", b"page", b"\xff\xfe"]
        check(all(reply == "OK" for reply in client.pipeline([("SET", key, b"v" + key) for key in keys])))

        def walk(query):
            found, cursor, pages = [], None, 0
            while True:
                more = query + ("&cursor=" + urllib.parse.quote(cursor) if cursor else "")
                status, headers, body = node.http("GET", "/kv?" + more)
                check(status == 200 and headers["content-type"] == "application/json", status, body)
                page = json.loads(body)
                pages += 1
                for entry in page["entries"]:
                    key = entry["key"].encode() if "key" in entry else base64.b64decode(entry["key_base64"])
                    check(base64.b64decode(entry["value_base64"]) == b"v" + key)
                    check(entry["version"] > 0 and entry["ttl_ms"] is None)
                    found.append(key)
                cursor = page["cursor"]
                if cursor is None:
                    return found, pages

        check(walk("limit=100") == (sorted(keys), 13))
        check(walk("limit=5000&prefix=page%3A")[0] == sorted(key for key in keys if key.startswith(b"page:")))
        check(walk("prefix=page:012")[0] == [b"page:%04d" % number for number in range(120, 130)])
        check(walk("prefix=nothing") == ([], 1))
        check(walk("limit=1&prefix=%FF")[0] == [b"\xff\xfe"])
        check(len(json.loads(node.http("GET", "/kv")[2])["entries"]) == 100)
        check(len(json.loads(node.http("GET", "/kv?limit=1000000")[2])["entries"]) == 1000)


def test_a_page_is_bounded_by_bytes():
    with Node() as node:
        for number in range(6):
            node.http("PUT", "/kv/big%d" % number, b"x" * 400_000)
        seen, cursor = [], ""
        while cursor is not None:
            body = node.http("GET", "/kv?limit=1000" + ("&cursor=" + cursor if cursor else ""))[2]
            check(len(body) < 1_700_000, len(body))
            page = json.loads(body)
            seen += [entry["key"] for entry in page["entries"]]
            cursor = page["cursor"]
        check(seen == ["big%d" % number for number in range(6)], seen)
        node.http("PUT", "/kv/big0", b"y" * 5_000_000)
        page = json.loads(node.http("GET", "/kv")[2])
        check([entry["key"] for entry in page["entries"]] == ["big0"], "one entry that is too large comes alone")


def test_buckets_are_separate():
    with Node() as node:
        check(node.http("GET", "/buckets/users/kv/k")[0] == 404)
        check(error_code(node.http("GET", "/buckets/users/kv")[2]) == "bucket_not_found")
        check(node.http("PUT", "/buckets/users/kv/k", b"named")[0] == 201)
        check(node.http("PUT", "/buckets/3/kv/k", b"three")[0] == 201)
        check(node.http("PUT", "/buckets/0/kv/k", b"zero")[0] == 201)
        check(node.http("GET", "/buckets/users/kv/k")[2] == b"named")
        check(node.http("GET", "/buckets/3/kv/k")[2] == b"three")
        check(node.http("GET", "/kv/k")[2] == b"zero")
        client = node.client()
        check(client.cmd("SELECT", "3") == "OK" and client.cmd("GET", "k") == b"three")
        check(client.cmd("SELECT", "users") == "OK" and client.cmd("GET", "k") == b"named")
        entries = json.loads(node.http("GET", "/buckets/users/kv")[2])["entries"]
        check([entry["key"] for entry in entries] == ["k"])
        for bad in ("16", "1x", "-", "a%20b", "a" * 65, "%00"):
            check(node.http("PUT", "/buckets/%s/kv/k" % bad, b"x")[0] == 400, bad)
        # a refused write makes no bucket
        check(node.http("PUT", "/buckets/ghost/kv/k", b"x", {"If-Match": '"1"'})[0] == 412)
        check(error_code(node.http("GET", "/buckets/ghost/kv")[2]) == "bucket_not_found")


def test_methods_and_paths():
    with Node() as node:
        for method, path, allow in (("POST", "/kv/k", "GET, HEAD, PUT, DELETE"), ("PUT", "/kv", "GET, HEAD"),
                                    ("DELETE", "/status", "GET, HEAD"), ("PUT", "/backup", "GET"),
                                    ("PATCH", "/metrics", "GET, HEAD"), ("POST", "/", "GET, HEAD")):
            status, headers, body = node.http(method, path, b"x")
            check((status, headers.get("allow")) == (405, allow), method, path, status, headers)
            check(error_code(body) == "method_not_allowed")
        for path in ("/nothing", "/kvx", "/health", "/health/livex", "/buckets", "/buckets/", "/buckets/a", "/buckets/a/kvx",
                     "/txn", "/watch", "/status/", "//", "/%73tatus"):
            status, _, body = node.http("GET", path)
            check(status == 404 and error_code(body) in ("not_found", "bucket_not_found"), path, status)


def test_acknowledged_writes_survive_kill9():
    with Node() as node:
        connection = node.http_connection()
        for number in range(50):
            connection.request("PUT", "/kv/durable%d" % number, b"%d" % number)
            response = connection.getresponse()
            response.read()
            check(response.status == 201)
        connection.close()
        node.kill9()
        node.start()
        for number in range(50):
            check(node.http("GET", "/kv/durable%d" % number)[2] == b"%d" % number)


def test_a_client_that_leaves_does_no_harm():
    with Node() as node:
        request = b"PUT /kv/left%d HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
        for number in range(200):
            with socket.create_connection(("127.0.0.1", node.http_port)) as left:
                left.sendall(request % number + b"x" * (1000 if number % 2 else 500))
                if number % 3 == 0:  # reset instead of a friendly end
                    left.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        eventually(lambda: json.loads(node.http("GET", "/status")[2])["connections"]["http"] == 1, 10, "they are forgotten")
        for number in range(0, 200, 2):
            check(node.http("GET", "/kv/left%d" % number)[0] == 404, "half a value was stored")
        check(node.term() == 0)


def test_writes_faster_than_the_checkpoint_wait_and_succeed():
    with Node(args=["--memory", "16MiB"]) as node:
        statuses, failures = set(), []

        def write(number):
            try:
                connection = node.http_connection()
                for count in range(40):
                    connection.request("PUT", "/kv/wide%d-%d" % (number, count), b"%d" % number * 300_000)
                    response = connection.getresponse()
                    response.read()
                    statuses.add(response.status)
                connection.close()
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(failures == [] and statuses == {201}, failures, statuses)
        for number in range(8):
            check(node.http("GET", "/kv/wide%d-39" % number)[2] == b"%d" % number * 300_000)
        buffers = [line for line in node.http("GET", "/metrics")[2].decode().splitlines() if line.startswith("duramen_client_buffers_bytes ")]
        check(int(buffers[0].split()[1]) < 1 << 20, "memory of finished requests is still counted:", buffers)


def test_sigterm_answers_what_it_has_taken():
    for _ in range(5):
        with Node() as node:
            answers, failures = [], []

            def write(number):
                connection = node.http_connection()
                try:
                    for count in range(1_000_000):
                        connection.request("PUT", "/kv/term%d" % number, b"%d" % count)
                        response = connection.getresponse()
                        response.read()
                        check(response.status in (201, 204), response.status)
                        answers.append((number, count))
                except OSError:
                    pass  # closed between two requests, or refused
                except http.client.RemoteDisconnected:
                    pass
                except Exception as error:
                    failures.append(error)

            threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
            for thread in threads:
                thread.start()
            eventually(lambda: len(answers) > 200, 20, "writes")
            check(node.term() == 0)
            for thread in threads:
                thread.join()
            check(failures == [], failures)
            node.start()
            for number in range(8):
                last = max(count for one, count in answers if one == number)
                # a request that was on its way when the socket was closed was not taken
                check(int(node.http("GET", "/kv/term%d" % number)[2]) == last, number, last)


def test_status_has_what_operators_and_checks_read():
    with Node(args=["--ranges", "16", "--name", "alpha", "--zone", "z1"]) as node:
        node.http("PUT", "/kv/k", b"v")
        status, headers, body = node.http("GET", "/status")
        check(status == 200 and headers["content-type"] == "application/json")
        report = json.loads(body)
        check(report["node"] == "alpha" and len(report["cluster_id"]) == 32 and int(report["cluster_id"], 16) >= 0)
        check([range_["id"] for range_ in report["ranges"]] == list(range(1, 17)))
        for range_ in report["ranges"] + [report["meta"]]:
            check(range_["leader"] == "alpha" and range_["term"] >= 1)
            check(range_["applied"] == range_["committed"])
            check([dict(replica, match=0) for replica in range_["replicas"]] ==
                  [{"name": "alpha", "role": "voter", "match": 0, "local": True, "faulty": False}])
        check(report["meta"]["id"] == 0 and max(range_["applied"] for range_ in report["ranges"]) > 0)
        member = report["members"][0]
        check(len(report["members"]) == 1 and member["state"] == "alive" and member["zone"] == "z1")
        check(member["http"] == node.ready["http"] and member["resp"] == node.ready["resp"])
        check(report["io"] in ("uring", "posix"))
        check(set(report["wal"]) >= {"last", "durable", "checkpoint", "bytes"} and report["wal"]["durable"] > 0)
        check(report["health"]["ready"] is True and report["keys"] == 1)


def test_health():
    with Node() as node:
        check(node.http("GET", "/health/live")[0] == 200)
        check(node.http("GET", "/health/ready")[0] == 200)


def test_metrics_are_well_formed_and_count():
    with Node() as node:
        client = node.client()

        def value(name):
            for line in node.http("GET", "/metrics")[2].decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.rsplit(" ", 1)[1])
            raise AssertionError("no metric " + name)

        before = value('duramen_commands_total{family="string"}') if b'family="string"' in node.http("GET", "/metrics")[2] else 0
        for number in range(10):
            client.must("SET", "m%d" % number, "x")
        client.must("GET", "m1")
        check(value('duramen_commands_total{family="string"}') == before + 11)
        check(value('duramen_command_seconds_count{family="string"}') >= 11)
        check(value("duramen_log_durable_lsn") >= 10 and value("duramen_log_sync_seconds_count") >= 1)
        check(value("duramen_keys") >= 0 and value('duramen_connections{protocol="resp"}') == 1)
        text = node.http("GET", "/metrics")[2].decode()
        names, typed = set(), set()
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                typed.add(line.split()[2])
            elif not line.startswith("#"):
                names.add(line.split("{")[0].split(" ")[0])
                float(line.rsplit(" ", 1)[1])
        for name in names:
            base = name
            for suffix in ("_bucket", "_sum", "_count"):
                if name.endswith(suffix) and name[: -len(suffix)] in typed:
                    base = name[: -len(suffix)]
            check(base in typed, "no type for", name)
        if shutil.which("promtool"):
            done = subprocess.run(["promtool", "check", "metrics"], input=text.encode(), capture_output=True, timeout=60)
            check(done.returncode == 0, done.stderr.decode())


def test_info_has_what_clients_read():
    with Node() as node:
        client = node.client()
        client.must("SET", "a", "1")
        time.sleep(1.1)  # the number of keys is counted once a second
        fields = {}
        for line in client.must("INFO").decode().split("\r\n"):
            if ":" in line:
                name, text = line.split(":", 1)
                fields[name] = text
        check(fields["redis_version"] == "7.0.15" and fields["redis_mode"] == "standalone" and fields["loading"] == "0")
        check(fields["role"] == "master" and fields["cluster_enabled"] == "0" and fields["connected_slaves"] == "0")
        check(fields["db0"].startswith("keys=1,expires=0,avg_ttl="), fields.get("db0"))
        check(fields["tcp_port"] == str(node.resp_port) and fields["process_id"] == str(node.pid))
        check(int(fields["used_memory"]) > 0 and int(fields["used_memory_rss"]) > 1 << 20)
        check(len(fields["run_id"]) == 40)
        check(b"cmdstat_set:calls=1," in client.must("INFO", "commandstats"))
        check(client.must("INFO", "nosuchsection") == b"")


def test_dashboard_is_served_whole_and_locked_down():
    with Node() as node:
        for path, kind in (("/", "text/html"), ("/dashboard.js", "text/javascript"), ("/dashboard.css", "text/css"),
                           ("/favicon.svg", "image/svg+xml")):
            status, headers, body = node.http("GET", path)
            check(status == 200 and headers["content-type"].startswith(kind) and len(body) > 100, path, status)
            check("default-src 'self'" in headers["content-security-policy"] and "unsafe" not in headers["content-security-policy"])
            check(node.http("GET", path, None, {"If-None-Match": headers["etag"]})[0] == 304)
        page = node.http("GET", "/")[2].decode()
        check("style=" not in page and "onclick" not in page and "<script>" not in page, "inline code would be blocked")


def test_backup_streams_and_restores():
    with Node() as node:
        client = node.client()
        for start in range(0, 20000, 1000):
            client.pipeline([("SET", "b%05d" % number, os.urandom(50).hex() * 4) for number in range(start, start + 1000)])
        expected = client.must("GET", "b12345")
        status, headers, body = node.http("GET", "/backup", timeout=120)
        check(status == 200 and headers["content-type"] == "application/octet-stream" and len(body) > 100_000, status, len(body))
        folder = temp_folder()
        file, data = os.path.join(folder, "copy"), os.path.join(folder, "data")
        with open(file, "wb") as out:
            out.write(body)
        check(run("verify", file).code == 0)
        check(run("restore", "--in", file, "--data", data).code == 0)
        with Node(data=data) as restored:
            check(restored.client().cmd("DBSIZE") == 20000)
            check(restored.client().cmd("GET", "b12345") == expected)


def test_backup_under_writes_and_a_client_that_leaves():
    with Node() as node:
        client = node.client()
        client.pipeline([("SET", "b%05d" % number, os.urandom(1000)) for number in range(20000)])
        stop, failed = threading.Event(), []

        def write():
            try:
                own, number = node.client(), 0
                while not stop.is_set():
                    own.must("SET", "w%d" % (number % 500), "x" * 100)
                    number += 1
            except Exception as error:
                failed.append(error)

        writer = threading.Thread(target=write)
        writer.start()
        try:
            with socket.create_connection(("127.0.0.1", node.http_port)) as left:
                left.sendall(b"GET /backup HTTP/1.1\r\nHost: localhost\r\n\r\n")
                check(left.recv(100).startswith(b"HTTP/1.1 200"))
            check(node.http("GET", "/backup", timeout=120)[0] == 200)
        finally:
            stop.set()
            writer.join()
        check(failed == [], failed)

        def idle():
            text = node.http("GET", "/metrics")[2].decode()
            return "duramen_http_backups 0\n" in text

        eventually(idle, 20, "the abandoned backup ends")
        check(node.term() == 0)


if __name__ == "__main__":
    sys.exit(main())
