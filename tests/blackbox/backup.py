#!/usr/bin/env python3
"""Backup under load, restore, verify: what an operator does, through the program alone."""

import json
import os
import random
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib
from lib import Client, Node, check, dump, eventually, main, run, temp_folder

ARGS = ["--ranges", "8", "--memory", "64MiB", "--name", "original"]


def fill(client, count, size=200):
    rng = random.Random(7)
    for start in range(0, count, 1000):
        replies = client.pipeline(
            [("SET", "k:%06d" % i, rng.randbytes(rng.randrange(size))) + (("EX", 100000) if i % 5 == 0 else ())
             for i in range(start, min(count, start + 1000))])
        check(all(reply == "OK" for reply in replies))


def test_a_quiet_store_comes_back_equal():
    with Node(args=ARGS) as node:
        client = node.client()
        fill(client, 3000)
        client.must("SELECT", 3)
        fill(client, 200)
        node.restart()
        client = node.client()
        client.must("DEL", "k:000001", "k:000002")
        client.must("SET", "after the checkpoint", "yes")
        before = dump(client), dump(client, 3)
        file = os.path.join(temp_folder(), "backup")
        result = run("backup", "--node", node.http_address, "--out", file)
        check(result.code == 0, result)
        check(os.stat(file).st_mode & 0o077 == 0, "a backup is as private as the data")
        target = os.path.join(temp_folder(), "restored")
        result = run("restore", "--in", file, "--data", target)
        check(result.code == 0, result)
        check(run("verify", target).code == 0)
        with Node(data=target, args=ARGS[:4]) as restored:
            other = restored.client()
            check((dump(other), dump(other, 3)) == before, "the restored store differs")
            ids = [json.loads(each.http("GET", "/status")[2])["cluster_id"] for each in (node, restored)]
            check(ids[0] != ids[1], "a restored store is a cluster of its own", ids)
            other.must("SELECT", 0)
            other.must("SET", "new", "value")
            restored.kill9()
            restored.start()
            check(restored.client().cmd("GET", "new") == b"value")


class Writer(threading.Thread):
    """Writes w:<id>:<n> = n, then last:<id> = n, then a pair in one transaction, for n = 1, 2, ..."""

    def __init__(self, port, number):
        super().__init__(daemon=True)
        self.client = Client(port)
        self.number = number
        self.done = 0
        self.stop = False
        self.error = None

    def run(self):
        try:
            n = 0
            while not self.stop:
                n += 1
                replies = self.client.pipeline([
                    ("SET", "w:%d:%d" % (self.number, n), n),
                    ("SET", "last:%d" % self.number, n),
                    ("MSET", "left:%d" % self.number, n, "right:%d" % self.number, n),
                    ("DEL", "w:%d:%d" % (self.number, n - 50)),
                    ("SET", "k:%06d" % (n % 3000), n),
                ])
                for reply in replies:
                    check(not isinstance(reply, lib.RespError), reply)
                self.done = n
        except Exception as error:
            self.error = error


def test_a_backup_under_load_is_the_state_of_one_moment():
    with Node(args=ARGS) as node:
        fill(node.client(), 20000)
        writers = [Writer(node.resp_port, number) for number in range(4)]
        for writer in writers:
            writer.start()
        eventually(lambda: all(writer.done > 60 or writer.error for writer in writers), 30, "writers at work")
        folder = temp_folder()
        for attempt in range(3):
            file = os.path.join(folder, "backup-%d" % attempt)
            began = [writer.done for writer in writers]
            result = run("backup", "--node", node.http_address, "--out", file)
            ended = [writer.done + 1 for writer in writers]
            check(result.code == 0, result)
            target = os.path.join(folder, "restored-%d" % attempt)
            result = run("restore", "--in", file, "--data", target)
            check(result.code == 0, result)
            with Node(data=target, args=ARGS) as restored:
                found = dump(restored.client())
                for writer, low, high in zip(writers, began, ended):
                    number = writer.number
                    last = int(found[b"last:%d" % number][0])
                    check(low <= last <= high, "what was acknowledged before is in, what came later is not", low, last, high)
                    left, right = found[b"left:%d" % number][0], found[b"right:%d" % number][0]
                    check(left == right, "half a transaction", left, right)
                    check(int(left) in (last, last - 1), "writes out of order", left, last)
                    numbers = sorted(int(key.rsplit(b":", 1)[1]) for key in found if key.startswith(b"w:%d:" % number))
                    check(numbers == list(range(numbers[0], numbers[-1] + 1)), "a hole", numbers)
                    check(numbers[-1] in (last, last + 1), numbers[-1], last)
                    check(numbers[0] in (numbers[-1] - 50, numbers[-1] - 49, numbers[-1] - 48), numbers[0], numbers[-1])
                check(sum(1 for key in found if key.startswith(b"k:")) == 20000)
        for writer in writers:
            writer.stop = True
            writer.join(30)
            check(writer.error is None, writer.error)


def small_backup(folder):
    with Node(args=ARGS) as node:
        fill(node.client(), 300)
        node.restart()
        node.client().must("SET", "one more", "x" * 100)
        file = os.path.join(folder, "backup")
        check(run("backup", "--node", node.http_address, "--out", file).code == 0)
    return file


def test_one_flipped_byte_is_refused_with_exit_3():
    folder = temp_folder()
    file = small_backup(folder)
    check(run("verify", file).code == 0)
    with open(file, "rb") as source:
        whole = source.read()
    rng = random.Random(3)
    damaged = os.path.join(folder, "damaged")
    for _ in range(25):
        at = rng.randrange(len(whole))
        with open(damaged, "wb") as out:
            out.write(whole[:at] + bytes([whole[at] ^ 1 << rng.randrange(8)]) + whole[at + 1 :])
        target = os.path.join(folder, "never")
        for result in (run("verify", damaged), run("restore", "--in", damaged, "--data", target),
                       run("restore", "--in", damaged, "--data", target, "--dry-run")):
            check(result.code == 3, "byte", at, result)
            check("damaged" in result.err, result)
        check(sorted(os.listdir(folder)) == ["backup", "damaged"], os.listdir(folder))


def test_restore_never_touches_data():
    folder = temp_folder()
    file = small_backup(folder)
    with Node(args=ARGS) as node:
        node.client().must("SET", "precious", "1")
        check(run("restore", "--in", file, "--data", node.data).code == 1)
        check(node.term() == 0)
        result = run("restore", "--in", file, "--data", node.data)
        check(result.code == 1 and "empty" in result.err, result)
        node.start()
        check(node.client().cmd("GET", "precious") == b"1")
    target = os.path.join(folder, "new")
    check(run("restore", "--in", file, "--data", target, "--dry-run").code == 0)
    check(not os.path.exists(target))


def test_a_backup_goes_to_standard_output_too():
    folder = temp_folder()
    with Node(args=ARGS) as node:
        fill(node.client(), 300)
        result = run("backup", "--node", node.http_address, "--out", "-", text=False)
        check(result.code == 0, result.err)
        file = os.path.join(folder, "backup")
        with open(file, "wb") as out:
            out.write(result.out)
        check(run("verify", file).code == 0)


def test_verify_names_the_damage_of_a_folder():
    with Node(args=ARGS) as node:
        client = node.client()
        fill(client, 500)
        client.must("SET", "treasure", "find-me-in-the-file")
        check(run("verify", node.data).code == 1, "a running node's folder is not verified")
        check(node.term() == 0)
        result = run("verify", node.data)
        check(result.code == 0 and "sound" in result.out, result)
        path = os.path.join(node.data, "db", "data.mdb")
        with open(path, "r+b") as file:
            data = file.read()
            at = data.rfind(b"find-me-in-the-file")
            check(at > 0)
            file.seek(at + 2)
            file.write(bytes([data[at + 2] ^ 1]))
        result = run("verify", node.data)
        check(result.code == 3, result)
        check("treasure" in result.err and "data.mdb" in result.err, result)
        # The node serves the rest, says so, and answers an error for this one.
        node.start()
        client = node.client()
        check(isinstance(client.cmd("GET", "treasure"), lib.RespError))
        check(client.cmd("GET", "k:000007") is not None)
        check(b"damaged" in node.http("GET", "/status")[2])


def test_a_client_that_goes_away_leaves_a_healthy_node():
    with Node(args=ARGS) as node:
        fill(node.client(), 20000, size=2000)
        for _ in range(5):
            connection = node.http_connection()
            connection.request("GET", "/backup")
            response = connection.getresponse()
            response.read(1000)
            connection.close()
        client = node.client()
        client.must("SET", "alive", "yes")
        file = os.path.join(temp_folder(), "backup")
        check(run("backup", "--node", node.http_address, "--out", file).code == 0)
        check(run("verify", file).code == 0)
        check(node.term() == 0)


def test_a_backup_cut_off_by_the_end_of_the_node_is_no_backup():
    with Node(args=ARGS) as node:
        fill(node.client(), 20000, size=4000)
        connection = node.http_connection()
        connection.request("GET", "/backup")
        part = connection.getresponse().read(3000000)
        node.kill9()
        connection.close()
        file = os.path.join(temp_folder(), "backup")
        with open(file, "wb") as out:
            out.write(part)
        result = run("verify", file)
        check(result.code == 3, result)


if __name__ == "__main__":
    main()
