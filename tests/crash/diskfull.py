#!/usr/bin/env python3
"""A full disk: new writes are refused with a clear error, reads go on, and writes come back by themselves
once there is space again. Nothing acknowledged is lost on the way. Needs root for a small file system of its own."""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "blackbox"))
from lib import Node, RespError, check, eventually, main, temp_folder  # noqa: E402


def mount_tmpfs(folder, megabytes):
    return subprocess.run(["mount", "-t", "tmpfs", "-o", "size=%dm" % megabytes, "tmpfs", folder]).returncode == 0


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


def test_full_disk_refuses_and_recovers():
    folder = temp_folder("duramen-full-")
    if not mount_tmpfs(folder, 420):
        print("skipped: cannot mount")
        sys.exit(77)
    try:
        ballast = os.path.join(folder, "ballast")
        with Node(data=os.path.join(folder, "data"), args=["--memory", "16MiB"]) as node:
            client = node.client()
            value = b"v" * 20000
            stored = 0
            # the ballast takes all but a little of what is left once the log has its spare slots
            fill(ballast, 24 << 20)
            refused = None
            for i in range(40000):
                reply = client.cmd("SET", "k%d" % i, value)
                if isinstance(reply, RespError):
                    refused = reply
                    break
                stored += 1
            check(refused is not None, "the disk did not fill")
            check("full" in str(refused), "the error does not say that the disk is full", refused)
            check(refused.word not in ("READONLY", "LOADING", "CLUSTERDOWN", "TRYAGAIN", "MASTERDOWN", "NOREPLICAS"), refused)
            for i in range(0, stored, 97):
                check(client.cmd("GET", "k%d" % i) == value, "reads go on while the disk is full", i)
            os.unlink(ballast)
            eventually(lambda: client.cmd("SET", "again", "1") == "OK", 20, "writes after space is back")
            node.kill9()
            node.start()
            client = node.client()
            for i in range(stored):
                check(client.cmd("STRLEN", "k%d" % i) == len(value), "acknowledged before the disk was full", i)
            check(client.cmd("GET", "again") == b"1")
            print("%d values stored before the disk was full: %s" % (stored, refused))
    finally:
        subprocess.run(["umount", "-l", folder])


main()
