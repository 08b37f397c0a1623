#!/usr/bin/env python3
"""Passwords on both ports: nothing but health is answered without, guessing is slow, and nothing is logged."""

import base64
import os
import sys
import threading
import time

from lib import Client, Node, RespError, check, eventually, main, temp_folder

PASSWORD = "correct horse battery staple %s" % os.urandom(8).hex()


def basic(password, user="any"):
    return {"Authorization": "Basic " + base64.b64encode((user + ":" + password).encode()).decode()}


def bearer(password):
    return {"Authorization": "Bearer " + password}


def node_with_password(*args):
    file = os.path.join(temp_folder(), "password")
    with open(file, "w") as out:
        out.write(PASSWORD + "\n")
    os.chmod(file, 0o600)
    return Node(args=["--password-file", file, *args])


def test_http_needs_the_password_everywhere_but_for_health():
    with node_with_password() as node:
        for path in ("/", "/status", "/metrics", "/kv", "/kv/k", "/backup", "/nothing", "/dashboard.js"):
            status, headers, _ = node.http("GET", path)
            check(status == 401 and headers["www-authenticate"].startswith("Basic "), path, status)
        check(node.http("PUT", "/kv/k", b"x")[0] == 401)
        check(node.http("DELETE", "/kv/k")[0] == 401)
        for path in ("/health/live", "/health/ready"):
            check(node.http("GET", path)[0] == 200, path)
        for headers in (bearer(PASSWORD), basic(PASSWORD), basic(PASSWORD, "")):
            check(node.http("GET", "/status", None, headers)[0] == 200)
        check(node.http("PUT", "/kv/k", b"x" * 100_000, bearer(PASSWORD))[0] == 201)
        check(node.http("GET", "/kv/k", None, basic(PASSWORD))[2] == b"x" * 100_000)


def test_wrong_and_malformed_credentials():
    with node_with_password() as node:
        for headers in ({"Authorization": "Basic"}, {"Authorization": "Basic !!!"}, {"Authorization": "Bearer"},
                        {"Authorization": "Digest x"}, {"Authorization": PASSWORD}, {"Authorization": "Bearer " + "x" * 2000},
                        {"Authorization": "Basic " + base64.b64encode(PASSWORD.encode()).decode()},
                        bearer(PASSWORD + "x"), bearer(PASSWORD[:-1]), basic("")):
            status, _, body = node.http("GET", "/status", None, headers)
            check(status == 401 and b'"unauthorized"' in body, headers, status)


def test_a_verified_password_is_cheap_from_then_on():
    with node_with_password() as node:
        check(node.http("GET", "/health/live")[0] == 200)
        connection = node.http_connection()

        def ask():
            connection.request("GET", "/kv/absent", headers=bearer(PASSWORD))
            response = connection.getresponse()
            response.read()
            return response.status

        check(ask() == 404)
        began = time.monotonic()
        for _ in range(300):
            check(ask() == 404)
        each = (time.monotonic() - began) / 300
        connection.close()
        check(each < 0.005, "a remembered password took", each)


def test_a_pool_that_logs_in_at_once_is_one_guess():
    with node_with_password() as node:
        replies = []

        def log_in():
            client = node.client()
            replies.append(client.cmd("AUTH", PASSWORD))
            client.close()

        threads = [threading.Thread(target=log_in) for _ in range(40)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(replies == ["OK"] * 40, replies)


def test_guessing_is_limited():
    with node_with_password() as node:
        statuses = [node.http("GET", "/status", None, bearer("guess%d" % number))[0] for number in range(40)]
        check(set(statuses) == {401, 429}, statuses)
        check(statuses[:5] == [401] * 5 and statuses.count(401) <= 16, statuses)
        status, headers, _ = node.http("GET", "/status", None, bearer("one more"))
        check(status in (401, 429))
        # even the right one has to wait, for a moment: or guessing would not be slow at all
        eventually(lambda: node.http("GET", "/status", None, bearer(PASSWORD))[0] == 200, 15, "the limit ends")


def test_resp_needs_it_too():
    with node_with_password() as node:
        client = node.client()
        reply = client.cmd("GET", "k")
        check(isinstance(reply, RespError) and reply.word == "NOAUTH", reply)
        reply = client.cmd("AUTH", "wrong")
        check(isinstance(reply, RespError) and reply.word == "WRONGPASS", reply)
        check(isinstance(client.cmd("SET", "k", "v"), RespError))
        check(client.cmd("AUTH", PASSWORD) == "OK")
        check(client.cmd("SET", "k", "v") == "OK")
        other = Client(node.resp_port)
        check(other.cmd("AUTH", "default", PASSWORD) == "OK" and other.cmd("GET", "k") == b"v")


def test_nothing_secret_is_logged():
    with node_with_password() as node:
        client = node.client()
        client.cmd("AUTH", "guess-one")
        client.cmd("AUTH", PASSWORD)
        node.http("GET", "/status", None, bearer(PASSWORD))
        node.http("GET", "/status", None, bearer("guess-two"))
        node.http("PUT", "/kv/secret-key", b"secret-value", bearer(PASSWORD))
        check(node.term() == 0)
        log = node.stderr()
        for secret in (PASSWORD, "guess-one", "guess-two", "secret-value", "argon2"):
            check(secret not in log, "in the log:", secret)


def test_clients_that_leave_while_their_password_is_checked():
    with node_with_password() as node:
        for number in range(30):
            import socket
            with socket.create_connection(("127.0.0.1", node.http_port)) as left:
                left.sendall(b"GET /status HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x%d\r\n\r\n" % number)
            with socket.create_connection(("127.0.0.1", node.resp_port)) as left:
                left.sendall(b"AUTH x%d\r\n" % number)
        eventually(lambda: node.http("GET", "/status", None, bearer(PASSWORD))[0] == 200, 20, "it still serves")
        check(node.term() == 0)


if __name__ == "__main__":
    sys.exit(main())
