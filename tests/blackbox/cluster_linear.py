#!/usr/bin/env python3
"""Nine clients on all nodes while nodes are killed, frozen and cut off in one direction: whatever the clients saw is
linearizable, and every error was of a documented kind.

    CLUSTER_SECONDS=180 CLUSTER_SEED=7 cluster_linear.py       a longer run
"""

import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, can_cut, check, main, number  # noqa: E402
from cluster_load import Load  # noqa: E402

LEAST_PER_SECOND = 300


class Trouble:
    """One thing after the other goes wrong, each for a while."""

    def __init__(self, cluster, seed):
        self.cluster = cluster
        self.dice = random.Random(seed)
        self.counts = {}
        self.kinds = [self.kill, self.kill, self.freeze, self.freeze]
        if cluster.links:
            self.kinds += [self.one_way, self.one_way, self.deaf, self.mute, self.alone]

    def run(self, until):
        while time.monotonic() < until:
            time.sleep(self.dice.uniform(0.3, 1.5))
            # the node that leads most is worth most trouble
            node = self.cluster.busiest() if self.dice.random() < 0.5 else self.dice.choice(self.cluster.nodes)
            kind = self.dice.choice(self.kinds)
            self.counts[kind.__name__] = self.counts.get(kind.__name__, 0) + 1
            if os.environ.get("VERBOSE"):
                print("%.1f %s %s" % (until - time.monotonic(), kind.__name__, node.name), flush=True)
            kind(node)

    def pause(self, least, most):
        time.sleep(self.dice.uniform(least, most))

    def kill(self, node):
        node.kill9()
        self.pause(0.0, 2.0)
        node.start()

    def freeze(self, node):
        node.freeze()
        self.pause(0.2, 4.0)
        node.thaw()

    def one_way(self, node):
        other = self.dice.choice([n for n in self.cluster if n is not node])
        self.cluster.cut(node, other)
        self.pause(0.5, 3.0)
        self.cluster.heal()

    def deaf(self, node):
        for other in self.cluster:
            if other is not node:
                self.cluster.cut(other, node)
        self.pause(0.5, 3.0)
        self.cluster.heal()

    def mute(self, node):
        for other in self.cluster:
            if other is not node:
                self.cluster.cut(node, other)
        self.pause(0.5, 3.0)
        self.cluster.heal()

    def alone(self, node):
        self.cluster.isolate(node)
        self.pause(0.5, 3.0)
        self.cluster.heal()


def test_linearizable_under_faults():
    seconds = number("CLUSTER_SECONDS", 45)
    seed = int(number("CLUSTER_SEED", time.time_ns() % 100000))
    print("CLUSTER_SEED=%d, links are %s" % (seed, "cut too" if can_cut() else "not cut here"), flush=True)
    with Cluster(3, links=can_cut(), args=["--memory", "64MiB"]) as cluster:
        trouble = Trouble(cluster, seed)
        with Load(cluster, 9, seed) as load:
            trouble.run(time.monotonic() + seconds)
        print("trouble: %s" % trouble.counts)
        cluster.settle(60)
        load.read_all([node.client() for node in cluster])
        print(load.judge(LEAST_PER_SECOND))


main()
