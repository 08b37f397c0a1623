#!/usr/bin/env python3
"""The server's front from outside: start and stop, listening, limits of connections, on both loops."""

import os
import signal
import socket
import subprocess
import threading
import time

from lib import (DURAMEN, EXIT_DONE, EXIT_FAILED, EXIT_USAGE, Client, ConnectionLost, Node, NodeExited, RespError, check,
                 encode, eventually, main, temp_folder)

POSIX = {"DURAMEN_NO_URING": "1"}


def refused(args, data=None, env=None):
    """Starts a node that must not start; returns its exit code and what it said."""
    command = [DURAMEN, "serve", "--data", data or os.path.join(temp_folder(), "data")] + list(args)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, env={**os.environ, **(env or {})})
    check(b"ready" not in done.stdout, "it became ready", args)
    return done.returncode, done.stderr.decode()


def rss(node):
    with open("/proc/%d/status" % node.pid) as status:
        for line in status:
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024


def test_an_open_address_without_a_password_is_refused():
    for flag in ("--listen", "--http", "--peer"):
        others = [part for other in ("--listen", "--http", "--peer") if other != flag for part in (other, "off")]
        code, said = refused([flag, "0.0.0.0:0"] + others)
        check(code == EXIT_USAGE, flag, code, said)
        check(("other nodes" if flag == "--peer" else "password") in said and "0.0.0.0:0" in said, said)
    with Node(args=["--listen", "0.0.0.0:0", "--requirepass", "long enough", "--peer", "off"]) as node:
        check(node.ready["resp"].startswith("0.0.0.0:"), node.ready)


def test_a_busy_port_is_said_in_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        code, said = refused(["--listen", address, "--http", "off", "--peer", "off"])
        check(code == EXIT_FAILED and address in said and "in use" in said, code, said)
        check(len(said.strip().splitlines()) == 1, said)


def test_off_and_other_families():
    with Node(args=["--listen", "off", "--peer", "off"]) as node:
        check(node.ready["resp"] == "off" and node.ready["peer"] == "off", node.ready)
        check(node.http("GET", "/health/live")[0] == 200, "HTTP alone")
    if os.path.exists("/proc/net/if_inet6"):
        with Node(args=["--listen", "[::1]:0", "--http", "off"]) as node:
            check(node.ready["resp"].startswith("[::1]:"), node.ready)
            with Client(node.resp_port, host="::1") as client:
                check(client.cmd("PING") == "PONG")
    with Node(args=["--listen", "localhost:0", "--http", "off"]) as node:
        check(node.resp_port, node.ready)


def test_the_loop_says_what_it_runs_on():
    with Node(env=POSIX) as node:
        check(b"multiplexing_api:posix" in node.client().cmd("INFO", "server"), "no fallback")
    with Node(args=["--io", "posix"]) as node:
        check(b"multiplexing_api:posix" in node.client().cmd("INFO", "server"), "--io posix")
    code, said = refused(["--io", "uring", "--listen", "127.0.0.1:0", "--http", "off", "--peer", "off"], env=POSIX)
    check(code == EXIT_FAILED and "io_uring" in said, code, said)


def test_sigterm_answers_what_was_taken_and_exits_0():
    for env in ({}, POSIX):
        with Node(env=env) as node:
            clients = [node.client() for _ in range(20)]
            for number, client in enumerate(clients):
                client.send_raw(b"".join(encode(("SET", "k%d:%d" % (number, i), "v")) for i in range(50)))
            for client in clients:
                check(client.read() == "OK")
            node.signal(signal.SIGTERM)
            answered = [1] * len(clients)
            for number, client in enumerate(clients):
                try:
                    while True:
                        check(client.read() == "OK")
                        answered[number] += 1
                except ConnectionLost:
                    pass
            check(node.wait() == EXIT_DONE, "exit code", node.process.returncode)
            node.start()
            client = node.client()
            for number in range(len(clients)):
                for i in range(answered[number]):
                    check(client.cmd("EXISTS", "k%d:%d" % (number, i)) == 1, "an answered write is gone", number, i)


def test_a_value_over_the_limit_leaves_the_connection_open():
    with Node() as node:
        client = node.client()
        before = rss(node)
        reply = client.cmd("SET", "k", b"x" * (17 << 20))
        check(isinstance(reply, RespError) and "16777216" in str(reply), reply)
        check(client.cmd("SET", "k", b"y" * (16 << 20)) == "OK", "the limit itself")
        check(len(client.cmd("GET", "k")) == 16 << 20)
        client.send_raw(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2000000000\r\n")
        check("invalid bulk length" in str(client.read()), "an absurd length")
        check(client.closed_by_server(), "the connection is still open")
        check(rss(node) - before < 400 << 20, "memory", rss(node) - before)


def test_announcements_cost_no_memory():
    for env in ({}, POSIX):
        with Node(env=env) as node:
            client = node.client()
            check(client.cmd("PING") == "PONG")
            before = rss(node)
            sockets = [socket.create_connection(("127.0.0.1", node.resp_port)) for _ in range(1000)]
            for one in sockets:
                one.sendall(b"*1000000\r\n$3\r\nSET\r\n$16000000\r\nabc")
            eventually(lambda: b"connected_clients:1001" in client.cmd("INFO", "clients"), what="all connected")
            check(client.cmd("SET", "k", "v") == "OK")
            check(rss(node) - before < 32 << 20, "grown by", rss(node) - before)
            for one in sockets:
                one.close()


def test_a_slow_reader_is_dropped_and_disturbs_nobody():
    for env in ({}, POSIX):
        with Node(args=["--output-limit", "16MiB"], env=env) as node:
            client = node.client()
            check(client.cmd("SET", "big", b"x" * (1 << 20)) == "OK")
            before = rss(node)
            slow = node.client()
            slow.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            slow.send_raw(encode(("GET", "big")) * 500)
            most = 0

            def dropped():
                nonlocal most
                most = max(most, rss(node) - before)
                check(client.cmd("PING") == "PONG")
                return b"connected_clients:1\r" in client.cmd("INFO", "clients")

            eventually(dropped, seconds=20, what="the slow reader's end")
            check(most < 64 << 20, "memory for a slow reader", most)


def test_a_large_pipeline_is_answered_in_order():
    for env in ({}, POSIX):
        with Node(env=env) as node:
            client = node.client()
            replies = client.pipeline([("INCR", "n") if i % 3 else ("ECHO", str(i)) for i in range(60000)])
            count = 0
            for i, reply in enumerate(replies):
                if i % 3:
                    count += 1
                    check(reply == count, i, reply)
                else:
                    check(reply == str(i).encode(), i, reply)


def test_who_stops_sending_still_gets_the_replies():
    for env in ({}, POSIX):
        with Node(env=env) as node:
            raw = socket.create_connection(("127.0.0.1", node.resp_port))
            raw.sendall(b"SET k v\r\nGET k\r\n")
            raw.shutdown(socket.SHUT_WR)
            got = b""
            while True:
                data = raw.recv(4096)
                if not data:
                    break
                got += data
            check(got == b"+OK\r\n$1\r\nv\r\n", got)


def test_many_clients_come_and_go():
    for env in ({}, POSIX):
        with Node(env=env) as node:
            stop = time.monotonic() + 3
            failed = []

            def churn(number):
                try:
                    while time.monotonic() < stop:
                        client = node.client()
                        client.send("SET", "k%d" % number, "v")
                        if number % 3 == 0:
                            client.close()  # without reading
                            continue
                        check(client.read() == "OK")
                        client.close()
                except Exception as error:
                    failed.append(error)

            threads = [threading.Thread(target=churn, args=(number,)) for number in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            check(not failed, failed[:1])
            client = node.client()
            eventually(lambda: b"connected_clients:1\r" in client.cmd("INFO", "clients"), what="all gone")


def test_more_clients_than_allowed_are_told():
    with Node(args=["--connections", "5"]) as node:
        clients = [node.client() for _ in range(5)]
        for client in clients:
            check(client.cmd("PING") == "PONG")
        extra = node.client()
        check("max number of clients" in str(extra.read()), "no word")
        check(extra.closed_by_server())
        clients[0].close()

        def again():
            try:
                with node.client() as client:
                    return client.cmd("PING") == "PONG"
            except ConnectionLost:
                return False

        eventually(again, what="a free place")


main()
