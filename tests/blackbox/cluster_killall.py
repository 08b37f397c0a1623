#!/usr/bin/env python3
"""All nodes are killed at once under load, again and again: what was acknowledged is there afterwards, and what the
clients saw before and after is one linearizable history.

    CLUSTER_ROUNDS=20 CLUSTER_SEED=7 cluster_killall.py
"""

import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, check, main, number  # noqa: E402
from cluster_load import Load  # noqa: E402


def kill_all(cluster):
    """Within a millisecond, not one after the other has gone."""
    for node in cluster:
        os.killpg(node.pid, signal.SIGKILL)
    for node in cluster:
        node.wait()


def test_all_killed_at_once():
    rounds = int(number("CLUSTER_ROUNDS", 6))
    seed = int(number("CLUSTER_SEED", time.time_ns() % 100000))
    dice = random.Random(seed)
    print("CLUSTER_SEED=%d" % seed, flush=True)
    total, slowest = 0, 0.0
    # a small memtable: the kills also hit checkpoints
    with Cluster(3, args=["--memory", "16MiB"]) as cluster:
        for i in range(rounds):
            with Load(cluster, 9, seed + i, name="k%d-" % i) as load:
                time.sleep(dice.uniform(0.3, 2.5))
                kill_all(cluster)
                load.stopping = True
            began = time.monotonic()
            for node in cluster:
                node.start()
            cluster.settle(30)
            slowest = max(slowest, time.monotonic() - began)
            load.read_all([node.client() for node in cluster])
            told = load.judge()
            if os.environ.get("VERBOSE"):
                print(told, flush=True)
            total += load.history.counts["ok"]
        cluster.caught_up()
    check(total > 100 * rounds, "hardly anything was acknowledged", total)
    print("%d rounds, %d operations acknowledged, slowest return of the whole cluster %.2f s" % (rounds, total, slowest))


main()
