#!/usr/bin/env python3
"""Power cuts: the data folder lies on an ext4 of its own (loop-mounted, with a journal), whose shutdown ioctl
drops everything that was not synced, journal included, as a power cut does. Then kill, unmount, mount (the
journal replays), start, compare with the ledger.

Needs root, loop devices and mkfs.ext4; skipped (77) where they are missing. CUTS (default 12;
with DURAMEN_LONG 300) comes from the environment.
"""

import fcntl
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from ledger import Load  # noqa: E402
from lib import Node, check, main  # noqa: E402

CUTS = int(os.environ.get("CUTS") or (300 if os.environ.get("DURAMEN_LONG") else 12))
EXT4_IOC_SHUTDOWN = 0x8004587D  # _IOR('X', 125, u32)
GOING_FLAGS_NOLOGFLUSH = 2


class LoopFileSystem:
    """An ext4 in a file, mounted; unmounted and removed at the end whatever happens."""

    def __init__(self, megabytes):
        self.folder = tempfile.mkdtemp(prefix="duramen-powercut-")
        self.image = os.path.join(self.folder, "disk.img")
        self.mountpoint = os.path.join(self.folder, "mnt")
        os.mkdir(self.mountpoint)
        with open(self.image, "wb") as image:
            image.truncate(megabytes << 20)
        subprocess.run(["mkfs.ext4", "-qF", self.image], check=True)

    def mount(self):
        subprocess.run(["mount", "-o", "loop", self.image, self.mountpoint], check=True)

    def unmount(self):
        subprocess.run(["umount", self.mountpoint], check=True)

    def cut(self):
        handle = os.open(self.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(handle, EXT4_IOC_SHUTDOWN, struct.pack("I", GOING_FLAGS_NOLOGFLUSH))
        finally:
            os.close(handle)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        subprocess.run(["umount", "-l", self.mountpoint], stderr=subprocess.DEVNULL)
        shutil.rmtree(self.folder, ignore_errors=True)


def possible():
    if os.geteuid() != 0 or shutil.which("mkfs.ext4") is None:
        return False
    with LoopFileSystem(32) as disk:
        try:
            disk.mount()
            disk.cut()
            disk.unmount()
        except (subprocess.CalledProcessError, OSError):
            return False
    return True


def test_power_cuts_lose_nothing():
    seed = int(os.environ.get("SEED") or random.randrange(1 << 30))
    print("seed %d, %d cuts" % (seed, CUTS), flush=True)
    chance = random.Random(seed)
    load = Load(3, seed)
    with LoopFileSystem(700) as disk:
        disk.mount()
        data = os.path.join(disk.mountpoint, "data")
        with Node(data=data, args=["--memory", "16MiB", "--log-bytes", "320MiB"]) as node:
            for _ in range(CUTS):
                load.start(node)
                time.sleep(chance.uniform(0.05, 0.6))  # how long the load lasts
                disk.cut()
                node.kill9()
                load.join()
                disk.unmount()
                disk.mount()
                node.start()
                load.settle(node)
            check(node.term() == 0, "a clean stop ends with 0")
        disk.unmount()
    check(load.acknowledged > CUTS * 10, "too little load to prove anything", load.acknowledged)
    print("%d cuts, %d commands acknowledged, %d more survived"
          % (CUTS, load.acknowledged, load.survived - load.acknowledged), flush=True)


if not possible():
    print("skipped: power cuts need root, loop devices and ext4's shutdown ioctl")
    sys.exit(77)
main()
