#!/usr/bin/env python3
"""What golden replies cannot show: time, size, order, several connections, restarts."""

import os
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import ConnectionLost, Node, RespError, check, eventually, main  # noqa: E402

NODE = ["--http", "off"]


def scan_all(client, *options, start="0"):
    keys, cursor, calls = [], start, 0
    while True:
        cursor, page = client.must("SCAN", cursor, *options)
        keys += page
        calls += 1
        if cursor == b"0":
            return keys, calls


def test_exec_sees_that_a_watched_key_was_deleted():
    with Node(args=NODE) as node:
        mine, other = node.client(), node.client()
        mine.must("SET", "k", "v")
        mine.must("WATCH", "k")
        other.must("DEL", "k")
        mine.must("MULTI")
        mine.must("SET", "k", "mine")
        check(mine.cmd("EXEC") is None, "EXEC ran although the watched key was deleted")
        check(mine.cmd("EXISTS", "k") == 0)


def test_watch_holds_over_pipelined_commands_of_one_turn():
    """WATCH, the other writer and EXEC all within one loop turn: only the pending view knows."""
    with Node(args=NODE) as node:
        client = node.client()
        for round_number in range(50):
            replies = client.pipeline([
                ("SET", "k", round_number), ("WATCH", "k"), ("SET", "k", "again"),
                ("MULTI",), ("SET", "k", "never"), ("EXEC",), ("GET", "k"),
                ("WATCH", "k"), ("MULTI",), ("APPEND", "k", "!"), ("EXEC",), ("GET", "k")])
            check(replies[5] is None, "the write in between was not seen", replies)
            check(replies[6] == b"again", replies)
            check(replies[10] == [6] and replies[11] == b"again!", "the watch broke without a write", replies)


def test_a_watched_absent_key_that_came_and_went_breaks_the_watch():
    """The client may have read it in between, so being absent again is not being unchanged."""
    with Node() as node:
        mine, other = node.client(), node.client()
        comings = {
            "SET": lambda: other.must("SET", "k", "v"),
            "MSET": lambda: other.must("MSET", "x", "v", "k", "v"),
            "RENAME": lambda: (other.must("SET", "from", "v"), other.must("RENAME", "from", "k")),
            "own": lambda: mine.must("SET", "k", "v"),
            "HTTP": lambda: check(node.http("PUT", "/kv/k", b"v")[0] == 201),
        }
        goings = {"DEL": lambda: other.must("DEL", "k"), "FLUSHALL": lambda: other.must("FLUSHALL"),
                  "expiry": lambda: other.must("PEXPIRE", "k", "-1")}
        for coming in comings:
            for going in goings:
                mine.must("WATCH", "unrelated", "k")
                comings[coming]()
                goings[going]()
                mine.must("MULTI")
                mine.must("SET", "k", "mine")
                check(mine.cmd("EXEC") is None, "not seen:", coming, going)
                check(mine.cmd("EXISTS", "k") == 0)
        mine.must("WATCH", "k")
        other.must("SET", "other", "v")
        other.must("SELECT", 1)
        other.must("SET", "k", "v")
        mine.must("MULTI")
        mine.must("SET", "k", "mine")
        check(mine.cmd("EXEC") == ["OK"], "broken by another key or bucket")


def test_watching_a_key_that_had_expired_leaves_exec_alone():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("SET", "k", "v", "PXAT", 1)
        client.must("WATCH", "k")
        client.must("MULTI")
        client.must("PING")
        check(client.cmd("EXEC") == ["PONG"])


def test_a_watched_key_that_expires_breaks_the_watch():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("SET", "k", "v", "PX", 30)
        client.must("WATCH", "k")
        eventually(lambda: client.cmd("EXISTS", "k") == 0, what="the key expires")
        client.must("MULTI")
        client.must("PING")
        check(client.cmd("EXEC") is None)


def test_set_without_keepttl_forgets_the_expiry():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("SET", "k", "v", "EX", 100)
        client.must("SET", "k", "w")
        check(client.cmd("TTL", "k") == -1, "SET kept the old expiry")
        client.must("SET", "k", "v", "EX", 100)
        client.must("SET", "k", "w", "KEEPTTL")
        check(client.cmd("TTL", "k") == 100, "KEEPTTL lost the expiry")


def test_pipelined_increments_all_count():
    """In one turn each INCR must see the one before, which is proposed but not yet committed."""
    with Node(args=NODE) as node:
        client = node.client()
        check(client.pipeline([("INCR", "k")] * 1000) == list(range(1, 1001)))
        replies = client.pipeline([("APPEND", "s", "x")] * 500)
        check(replies == list(range(1, 501)))


def test_increments_of_many_connections_all_count():
    with Node(args=NODE) as node:
        def work():
            with node.client() as client:
                for _ in range(20):
                    client.pipeline([("INCR", "k")] * 50)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        check(node.client().cmd("GET", "k") == b"8000")


def test_transactions_are_seen_whole_or_not_at_all():
    with Node(args=NODE) as node:
        node.client().must("MSET", "a", 0, "b", 0)
        stop = threading.Event()

        def write():
            with node.client() as client:
                while not stop.is_set():
                    client.pipeline([("MULTI",), ("INCR", "a"), ("INCR", "b"), ("EXEC",)])

        thread = threading.Thread(target=write)
        thread.start()
        try:
            with node.client() as client:
                for _ in range(2000):
                    first, second = client.must("MGET", "a", "b")
                    check(first == second, "half a transaction was seen", first, second)
        finally:
            stop.set()
            thread.join()


def test_a_transaction_survives_kill9_whole():
    with Node(args=NODE) as node:
        client = node.client()
        client.pipeline([("MULTI",)] + [("SET", "k%d" % number, "v") for number in range(500)] + [("EXEC",)])
        node.kill9()
        node.start()
        check(node.client().cmd("DBSIZE") == 500)


def test_a_write_that_is_too_large_changes_nothing():
    big = b"x" * (12 << 20)
    with Node(args=NODE) as node:
        client = node.client()
        client.must("MSET", "a", "old", "b", "old")
        client.must("SET", "big", big)
        client.must("MULTI")
        client.must("SET", "a", "new")
        for number in range(8):
            client.must("COPY", "big", "copy%d" % number)
        reply = client.cmd("EXEC")
        check(isinstance(reply, RespError) and reply.word == "EXECABORT", "no EXECABORT", str(reply)[:200])
        check(client.cmd("MGET", "a", "b", "copy0") == [b"old", b"old", None])
        check(client.cmd("PING") == "PONG")


def test_writes_much_larger_than_their_arguments_ask_for_room():
    """COPY, EXPIRE and SETRANGE take few bytes from the client and write many."""
    size = 8 << 20
    with Node(args=NODE) as node:
        client = node.client(timeout=120)
        client.must("SET", "big", b"x" * size)
        commands = [("COPY", "big", "copy%d" % (number % 10), "REPLACE") for number in range(100)]
        commands += [("EXPIRE", "big", 1000), ("SETRANGE", "wide", size, "x"), ("MULTI",), ("PERSIST", "big"), ("COPY", "big", "last"), ("EXEC",)] * 5
        for command, reply in zip(commands, client.pipeline(commands)):
            if isinstance(reply, RespError):
                check(reply.word in ("OOM", "TRYAGAIN", "EXECABORT"), command, reply)
        check(node.alive())
        check(client.cmd("STRLEN", "copy0") == client.cmd("STRLEN", "big") == size)
        node.kill9()
        node.start()
        client = node.client(timeout=120)
        check(client.cmd("STRLEN", "copy0") == client.cmd("STRLEN", "big") == size)


def test_values_up_to_the_limit_and_no_further():
    limit = 16 << 20
    with Node(args=NODE) as node:
        client = node.client()
        value = os.urandom(limit)
        client.must("SET", "k", value)
        check(client.cmd("GET", "k") == value)
        for command in (("APPEND", "k", "x"), ("SETRANGE", "k", limit, "x")):
            reply = client.cmd(*command)
            check(isinstance(reply, RespError) and "maximum allowed size" in str(reply), command[0], str(reply)[:100])
        check(client.cmd("SETRANGE", "k", limit - 1, "x") == limit)
        check(client.cmd("SETRANGE", "new", limit - 1, "x") == limit)
        check(client.cmd("STRLEN", "k") == limit)
        reply = client.cmd("SET", "k", value + b"x")
        check(isinstance(reply, RespError), "a value over the limit was taken")


def test_keys_up_to_the_limit_and_no_further():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("SET", b"k" * 400, "v")
        check(client.cmd("GET", b"k" * 400) == b"v")
        for command in (("GET",), ("DEL",), ("SET", "v"), ("RENAME", "x"), ("EXPIRE", "1")):
            reply = client.cmd(command[0], b"k" * 401, *command[1:])
            check(isinstance(reply, RespError) and "400" in str(reply), command[0], reply)


def test_scan_meets_every_key_that_stays_exactly_once():
    with Node(args=NODE) as node:
        client = node.client()
        stay = {b"stay:%d" % number for number in range(3000)}
        client.pipeline([("SET", key, "v") for key in stay])
        keys, cursor = [], "0"
        extra = 0
        while True:
            cursor, page = client.must("SCAN", cursor, "COUNT", 37)
            keys += page
            if cursor == b"0":
                break
            client.pipeline([("SET", "extra:%d" % (extra + number), "v") for number in range(20)] +
                            [("DEL", "extra:%d" % (extra - number)) for number in range(10)])
            extra += 20
        found = [key for key in keys if key.startswith(b"stay:")]
        check(len(found) == len(stay) and set(found) == stay, "met", len(found), "of", len(stay))


def test_scan_of_pending_keys_misses_none():
    """Keys written and scanned within one turn."""
    with Node(args=NODE) as node:
        client = node.client()
        replies = client.pipeline([("SET", "k%d" % number, "v") for number in range(100)] + [("SCAN", 0, "COUNT", 1000), ("KEYS", "*"), ("DBSIZE",)])
        check(replies[-3][0] == b"0" and len(set(replies[-3][1])) == 100, replies[-3][0], len(replies[-3][1]))
        check(len(replies[-2]) == 100 and replies[-1] == 100)


def test_scan_options_filter_without_losing_the_place():
    with Node(args=NODE) as node:
        client = node.client()
        client.pipeline([("SET", "key:%d" % number, "v") for number in range(1000)])
        keys, calls = scan_all(client, "MATCH", "key:1??", "COUNT", 50)
        check(len(keys) == len(set(keys)) == 100 and calls >= 20, len(keys), calls)
        check(scan_all(client, "TYPE", "list")[0] == [])
        check(len(scan_all(client, "TYPE", "string", "MATCH", "key:*", "COUNT", 10)[0]) == 1000)


def test_a_cursor_can_be_used_again_and_an_unknown_one_is_refused():
    with Node(args=NODE) as node:
        client = node.client()
        client.pipeline([("SET", "key:%d" % number, "v") for number in range(100)])
        cursor, _ = client.must("SCAN", 0)
        check(client.must("SCAN", cursor) == client.must("SCAN", cursor), "a cursor is a place")
        check(client.must("SCAN", 0)[0] == cursor, "the same place has the same cursor")
        client.must("SELECT", 1)
        for unknown in (cursor, 12345, 18446744073709551615):
            reply = client.cmd("SCAN", unknown)
            check(reply == RespError("ERR invalid cursor"), unknown, reply)


def test_cursors_that_were_not_used_for_long_are_forgotten_first():
    with Node(args=NODE) as node:
        client = node.client()
        client.pipeline([("SET", "key:%05d" % number, "v") for number in range(17500)])
        first, _ = client.must("SCAN", 0, "COUNT", 1)
        kept, cursor = None, first
        for _ in range(175):
            replies = [client.must("SCAN", cursor, "COUNT", 1)]
            for _ in range(99):
                replies.append(client.must("SCAN", replies[-1][0], "COUNT", 1))
                if replies[-1][0] == b"0":
                    break
            cursor = replies[-1][0]
            if kept is None:
                kept = replies[50][0]
            if cursor == b"0":
                break
            check(not isinstance(client.cmd("SCAN", kept, "COUNT", 1), RespError), "a cursor in use was forgotten")
        reply = client.cmd("SCAN", first, "COUNT", 1)
        check(reply == RespError("ERR invalid cursor"), "the oldest cursor should be gone", reply)


def test_keys_with_many_stars_is_quick():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("SET", b"a" * 400, "v")
        pattern = "a*" * 100 + "b"
        client.must("KEYS", pattern)
        began = time.monotonic()
        check(client.must("KEYS", pattern) == [])
        check(time.monotonic() - began < 0.25, "KEYS took", time.monotonic() - began)
        check(client.must("SCAN", 0, "MATCH", pattern) == [b"0", []])


def test_randomkey_reaches_every_key():
    with Node(args=NODE) as node:
        client = node.client()
        client.pipeline([("SET", "k%d" % number, "v") for number in range(20)])
        seen = set(client.pipeline([("RANDOMKEY",)] * 1000))
        check(len(seen) == 20, "keys seen", len(seen))


def test_a_bucket_by_name_is_made_once_and_outlives_a_restart():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("SELECT", "users")
        client.must("SET", "k", "in users")
        node.kill9()
        node.start()
        client = node.client()
        check(client.cmd("GET", "k") is None)
        client.must("SELECT", "users")
        check(client.cmd("GET", "k") == b"in users")
        client.must("SELECT", "orders")
        check(client.cmd("GET", "k") is None)
        check("db=orders" in client.must("CLIENT", "INFO").decode())
        client.must("FLUSHALL")
        client.must("SELECT", "users")
        check(client.cmd("DBSIZE") == 0)
        for name in ("-x", "a b", "a" * 65, "ä"):
            check(isinstance(client.cmd("SELECT", name), RespError), "bucket name", name)


def test_a_bucket_made_in_a_transaction_holds_what_the_transaction_wrote():
    with Node(args=NODE) as node:
        client = node.client()
        client.pipeline([("MULTI",), ("SELECT", "made"), ("SET", "k", "v"), ("EXEC",)])
        check(client.cmd("GET", "k") == b"v")
        node.kill9()
        node.start()
        client = node.client()
        client.must("SELECT", "made")
        check(client.cmd("GET", "k") == b"v")


def test_client_reply_switches_replies_off_and_skips_one():
    with Node(args=NODE) as node:
        client = node.client()
        client.send("CLIENT", "REPLY", "OFF")
        client.send("SET", "k", "silent")
        client.send("FOO")
        check(client.cmd("CLIENT", "REPLY", "ON") == "OK")
        check(client.cmd("GET", "k") == b"silent")
        client.send("CLIENT", "REPLY", "SKIP")
        client.send("PING")
        check(client.cmd("ECHO", "x") == b"x")


def test_client_kill_ends_another_connection_and_itself():
    with Node(args=NODE) as node:
        client, victim = node.client(), node.client()
        check(client.cmd("CLIENT", "KILL", "ID", victim.cmd("CLIENT", "ID")) == 1)
        check(victim.closed_by_server())
        victim = node.client()
        victim.must("CLIENT", "SETNAME", "victim")
        listed = client.must("CLIENT", "LIST").decode()
        line = [line for line in listed.splitlines() if "name=victim" in line][0]
        address = line.split("addr=")[1].split(" ")[0]
        check(client.cmd("CLIENT", "KILL", address) == "OK")
        check(victim.closed_by_server())
        own = client.must("CLIENT", "INFO").decode().split("addr=")[1].split(" ")[0]
        check(client.cmd("CLIENT", "KILL", own) == "OK", "the reply comes before the end")
        check(client.closed_by_server())


def test_quit_inside_multi_answers_and_closes():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("MULTI")
        client.must("SET", "k", "v")
        check(client.cmd("QUIT") == "OK")
        check(client.closed_by_server())
        check(node.client().cmd("EXISTS", "k") == 0)


def test_the_slow_log_keeps_commands_but_no_secrets():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("CONFIG", "SET", "slowlog-log-slower-than", "0", "slowlog-max-len", "4")
        client.cmd("AUTH", "default", "secret-1")
        client.cmd("HELLO", "2", "AUTH", "default", "secret-2", "SETNAME", "me")
        client.must("SET", "long", b"x" * 1000)
        client.must("MSET", *[str(number) for number in range(80)])
        entries = client.must("SLOWLOG", "GET", "-1")
        check(len(entries) == 4, len(entries))
        text = repr(entries)
        check("secret" not in text, "a password is in the slow log")
        check("(redacted)" in text and "... (872 more bytes)" in text and "... (50 more arguments)" in text, text)
        check(entries[0][0] > entries[1][0], "newest first")
        client.must("CONFIG", "SET", "slowlog-max-len", "1")
        check(client.cmd("SLOWLOG", "LEN") == 1)


def test_hits_and_misses_are_counted():
    def counts():
        info = client.must("INFO", "stats").decode()
        return [int(info.split(name + ":")[1].split("\r")[0]) for name in ("keyspace_hits", "keyspace_misses")]

    with Node(args=NODE) as node:
        client = node.client()
        client.must("SET", "k", "v")
        client.must("CONFIG", "RESETSTAT")
        client.must("MGET", "k", "k", "nokey")
        client.must("GETDEL", "k")
        client.must("SET", "k", "v")
        check(counts() == [3, 1], counts())


def test_every_reply_of_command_is_well_formed_in_both_versions():
    with Node(args=NODE) as node:
        client = node.client()
        table = client.must("COMMAND")
        check(len(table) == client.cmd("COMMAND", "COUNT") and all(len(entry) == 10 for entry in table))
        names = {entry[0] for entry in table}
        check({b"get", b"set", b"client", b"exec", b"scan"} <= names)
        listed = client.must("COMMAND", "LIST")
        check(names <= set(listed) and b"client|setname" in listed)
        client.must("HELLO", 3)
        docs = client.must("COMMAND", "DOCS")
        check(set(docs) == names and all(b"summary" in doc for doc in docs.values()))
        check(client.must("COMMAND", "INFO", "client|list")[0][0] == b"client|list")
        client.must("COMMAND")
        check(client.cmd("PING") == "PONG")


def test_debug_sleep_needs_the_setting():
    with Node(args=NODE) as node:
        check(str(node.client().cmd("DEBUG", "SLEEP", "0")).startswith("ERR DEBUG command not allowed"))
    with Node(args=NODE + ["--enable-debug-command"]) as node:
        client = node.client()
        began = time.monotonic()
        check(client.cmd("DEBUG", "SLEEP", "0.2") == "OK" and time.monotonic() - began >= 0.2)
        check(isinstance(client.cmd("DEBUG", "NOSUCH"), RespError))


def test_reset_brings_a_connection_back_to_its_start():
    with Node(args=NODE) as node:
        client = node.client()
        client.must("HELLO", 3, "SETNAME", "me")
        client.must("SELECT", 5)
        client.must("MULTI")
        client.must("SET", "k", "v")
        check(client.cmd("RESET") == "RESET")
        check(client.cmd("EXEC") == RespError("ERR EXEC without MULTI"))
        client.send_raw(b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n")
        check(client._line() == b"$-1", "RESP2 again")
        info = client.must("CLIENT", "INFO").decode()
        check(" db=0 " in info and " name= " in info, info)


def test_a_dying_connection_takes_its_transaction_along():
    with Node(args=NODE) as node:
        for _ in range(20):
            client = node.client()
            client.pipeline([("WATCH", "a", "b"), ("MULTI",), ("SET", "a", "v"), ("SET", "b", "v")])
            client.close()
        check(node.client().cmd("EXISTS", "a", "b") == 0)
        check(node.alive())


if __name__ == "__main__":
    try:
        main()
    except ConnectionLost as lost:
        sys.exit(str(lost))
