#!/usr/bin/env python3
"""One node's disk is full, or a hundred times slower than the others': the cluster goes on, and the node comes back by
itself. Wall clocks that jump do nothing but expire keys. Needs root for file systems of its own."""

import glob
import os
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, RespError, check, eventually, main, private, temp_folder  # noqa: E402

RANGES = 8
REFUSALS = ("OOM", "UNKNOWN", "CLUSTERDOWN", "TRYAGAIN")


def fill(path, leave):
    """Takes all the space there is, then gives `leave` bytes of it back."""
    size = 0
    with open(path, "wb", buffering=0) as handle:
        try:
            while True:
                size += handle.write(b"b" * (1 << 20))
        except OSError:
            pass
        handle.truncate(max(0, size - leave))


def write_on(node, stored, count, value, patience):
    """Stores `count` more values through a node. Returns the errors seen on the way, and how long the longest wait was; stops
    early when nothing goes through for `patience` seconds."""
    client = node.client()
    words, worst = {}, 0.0
    while len(stored) < count:
        key = "k%d" % len(stored)
        began = time.monotonic()
        while True:
            reply = client.cmd("SET", key, value)
            worst = max(worst, time.monotonic() - began)
            if reply == "OK":
                break
            check(isinstance(reply, RespError) and reply.word in REFUSALS, reply)
            words[reply.word] = words.get(reply.word, 0) + 1
            if worst > patience:
                return words, worst
            time.sleep(0.02)
        stored.append(key)
    return words, worst


def check_stored(node, stored, value):
    client = node.client()
    stored = stored[-300:] + stored[:-300:7]
    for key, size in zip(stored, client.pipeline([("STRLEN", key) for key in stored])):
        check(size == len(value), "acknowledged and gone", node.name, key, size)


def test_full_disk():
    if not private():
        print("skipped: needs a mount of its own")
        return
    folder = temp_folder("duramen-full-")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=420m", "tmpfs", folder]).returncode != 0:
        print("skipped: cannot mount")
        return
    ballast = os.path.join(folder, "ballast")
    value = b"v" * 20000
    with Cluster(1, ranges=RANGES, args=["--memory", "16MiB"]) as cluster:
        full = cluster.add(data=os.path.join(folder, "data"))
        cluster.add()
        cluster.settle()
        for role in ("follower", "leader"):
            target = full if role == "leader" else cluster[0]
            check(cluster[2].run("leader", "transfer", target.name).code == 0)
            stored = []
            eventually(lambda: cluster.leaders(2)[full.name] * 2 > RANGES if role == "leader" else
                       cluster.leaders(2)[full.name] == 0, 10, "leaders where they should be")
            cluster[0].client().must("FLUSHALL")
            fill(ballast, 8 << 20)
            words, worst = write_on(cluster[0], stored, 5000, value, 8)
            print("%s's disk full: %d values of 20 kB, longest wait %.2f s, told %s, leads %d" % (
                role, len(stored), worst, words, cluster.leaders(2)[full.name]), flush=True)
            if role == "follower":
                check(not words and len(stored) == 5000, "a follower's full disk is nobody's business", words)
            check_stored(cluster[2], stored, value)
            free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
            check(free < 4 << 20, "the disk is not full", free)
            check(full.alive(), "a full disk does not end the node", full.stderr()[-2000:])
            check_stored(full, stored, value)
            os.unlink(ballast)
            began = time.monotonic()
            cluster.settle(40)
            cluster.caught_up(40)
            cluster.wait_writable(full)
            print("everything as before %.1f s after there was space again" % (time.monotonic() - began), flush=True)
            write_on(full, stored, 5000, value, 8)
            check(len(stored) == 5000, "writes go on once there is space again", len(stored))
        full.kill9()
        full.start()
        cluster.settle(30)
        check_stored(full, stored, value)
    subprocess.run(["umount", "-l", folder])


def throttle(device, node, operations):
    """Lets the node do so many writes a second on the device; returns the control group, None if there is no such."""
    base = "/sys/fs/cgroup/blkio"
    group = os.path.join(base, "duramen-%d" % os.getpid())
    try:
        os.makedirs(group, exist_ok=True)
        number_ = os.stat(device).st_rdev
        with open(os.path.join(group, "blkio.throttle.write_iops_device"), "w") as file:
            file.write("%d:%d %d" % (os.major(number_), os.minor(number_), operations))
        for task in os.listdir("/proc/%d/task" % node.pid):
            with open(os.path.join(group, "tasks"), "w") as file:
                file.write(task)
        return group
    except OSError as error:
        print("skipped: no control group for block devices (%s)" % error)
        if os.path.isdir(group):
            os.rmdir(group)
        return None


class Timing:
    """Writers whose every latency is noted."""

    def __init__(self, node, count=8):
        self.node = node
        self.stopping = False
        self.latencies = []
        self.errors = []
        self.threads = [threading.Thread(target=self.run, args=(i,), daemon=True) for i in range(count)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.stopping = True
        for thread in self.threads:
            thread.join(30)

    def run(self, number_):
        client = self.node.client()
        i = 0
        while not self.stopping:
            i += 1
            began = time.monotonic()
            reply = client.cmd("SET", "t%d:%d" % (number_, i % 1000), b"x" * 100)
            if reply == "OK":
                self.latencies.append(time.monotonic() - began)
            else:
                self.errors.append(str(reply))

    def quantile(self, q):
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * q))]


def test_slow_disk():
    if not private():
        print("skipped: needs a mount of its own")
        return
    folder = temp_folder("duramen-slow-")
    image = os.path.join(folder, "image")
    mount = os.path.join(folder, "mount")
    os.mkdir(mount)
    with open(image, "wb") as file:
        file.truncate(700 << 20)
    if subprocess.run(["mkfs.ext4", "-qF", image]).returncode != 0 or \
            subprocess.run(["mount", "-o", "loop", image, mount]).returncode != 0:
        print("skipped: cannot mount")
        return
    group = None
    try:
        with Cluster(1, ranges=RANGES, args=["--memory", "16MiB"]) as cluster:
            slow = cluster.add(data=os.path.join(mount, "data"))
            cluster.add()
            cluster.settle()
            check(cluster[2].run("leader", "transfer", slow.name).code == 0)
            eventually(lambda: cluster.leaders(2)[slow.name] * 2 > RANGES, 10, "the slow node leads")
            with Timing(cluster[0]) as before:
                time.sleep(2)
            device = subprocess.run(["findmnt", "-no", "SOURCE", mount], stdout=subprocess.PIPE, text=True).stdout.strip()
            group = throttle(device, slow, 5)
            if group is None:
                return
            with Timing(cluster[0]) as during:
                time.sleep(12)
            leads = cluster.leaders(2)[slow.name]
            with Timing(cluster[0]) as after:
                time.sleep(3)
            for what, timing in (("before", before), ("5 writes/s for 12 s", during), ("and later", after)):
                print("slow disk, %s: %d writes, median %.1f ms, p99 %.0f ms, worst %.0f ms, errors %s" % (
                    what, len(timing.latencies), timing.quantile(0.5) * 1000, timing.quantile(0.99) * 1000,
                    max(timing.latencies) * 1000, sorted(set(timing.errors))))
            print("the slow node leads %d of %d ranges" % (leads, RANGES), flush=True)
            check(slow.alive())
            check(all(error.split(" ", 1)[0] in ("UNKNOWN", "CLUSTERDOWN") for error in during.errors + after.errors), during.errors[:3])
            check(leads == 0, "a leader whose disk has stalled hands over", leads)
            check(not after.errors and after.quantile(0.99) < 1.0, "a slow follower is nobody's business", after.errors[:3])
            with open(os.path.join(group, "blkio.throttle.write_iops_device"), "w") as file:
                number_ = os.stat(device).st_rdev
                file.write("%d:%d 0" % (os.major(number_), os.minor(number_)))
            cluster.settle(40)
            cluster.caught_up(40)
    finally:
        subprocess.run(["umount", "-l", mount])
        if group is not None:
            time.sleep(0.2)
            with open("/sys/fs/cgroup/blkio/tasks", "w") as file, open(os.path.join(group, "tasks")) as tasks:
                for task in tasks.read().split():
                    file.write(task)
            os.rmdir(group)


def test_clock_jumps():
    library = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    if not library:
        print("skipped: faketime is not installed")
        return
    clock = os.path.join(temp_folder(), "clock")

    def set_clock(text):
        with open(clock + ".new", "w") as file:
            file.write(text + "\n")
        os.rename(clock + ".new", clock)

    set_clock("+0")
    faked = {
        "LD_PRELOAD": library[0], "FAKETIME_TIMESTAMP_FILE": clock, "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    with Cluster(2, ranges=RANGES) as cluster:
        jumpy = cluster.add(start=False)
        jumpy.env.update(faked)
        jumpy.start()
        cluster.settle()
        client = cluster.client(0)

        def lead(node):
            check(cluster[1].run("leader", "transfer", node.name).code == 0)
            eventually(lambda: cluster.leaders(1)[node.name] == RANGES, 10, "%s leads" % node.name)

        lead(jumpy)
        client.must("SET", "hour", "1", "EX", 3600)
        client.must("SET", "forever", "1")
        before = sum(part["term"] for part in cluster.status(0)["ranges"])
        with Timing(cluster[0], 2) as timing:
            for offset in ("+1d", "-1d", "+30d", "+0"):
                set_clock(offset)
                time.sleep(1.0)
                check(client.must("GET", "forever") == b"1")
        check(not timing.errors and max(timing.latencies) < 1.5, "a clock that jumps disturbs nobody", timing.errors[:3],
              max(timing.latencies))
        check(sum(part["term"] for part in cluster.status(0)["ranges"]) == before, "no elections because of a clock")
        # it has expired by the leader's clock, and does not come back with another leader or another clock
        seen = client.must("GET", "hour")
        lead(cluster[1])
        again = client.must("GET", "hour")
        print("a key of one hour, after its leader's clock was 30 days ahead: %r, with the next leader: %r" % (seen, again))
        check(seen is not None or again is None, "an expired key came back")
        for node in cluster:
            check(node.client().must("SET", "after", node.name) == "OK")
            check(node.client().must("SET", "short", "1", "PX", 300000) == "OK")
            check(0 < node.client().must("PTTL", "short") <= 300000)


main()
