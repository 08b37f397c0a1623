#!/usr/bin/env python3
"""How long writes stand still when the node goes that leads most ranges: killed, frozen, asked to stop.

A writer per range sends every 20 ms; measured is from the moment the node was gone until the last of all ranges has
acknowledged a write sent after it. Prints the figures, and asks for more than any machine under load should need.

    CLUSTER_ROUNDS=20 cluster_figures.py
"""

import os
import statistics
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from cluster import Cluster, ConnectionLost, Prober, RespError, check, main, number  # noqa: E402

RANGES = 64


def pull_together(cluster, node):
    """Gives all ranges to one node, so that it is worth losing."""
    other = next(n for n in cluster if n is not node)
    check(other.run("leader", "transfer", node.name).code == 0)
    end = time.monotonic() + 10
    while cluster.leaders(cluster.nodes.index(other))[node.name] < RANGES * 3 // 4 and time.monotonic() < end:
        time.sleep(0.05)


def show(what, times):
    print("%s: without writes median %.2f s, worst of %d %.2f s (%s)" % (
        what, statistics.median(times), len(times), max(times), " ".join("%.2f" % t for t in times)), flush=True)


def outages(cluster, rounds, go, back):
    times = []
    for i in range(rounds):
        victim = cluster[i % 3]
        pull_together(cluster, victim)
        rest = [node for node in cluster if node is not victim]
        with Prober(rest, RANGES) as prober:
            prober.wait_all(time.monotonic())
            go(victim)
            gone = time.monotonic()
            times.append(prober.wait_all(gone) - gone)
        words = {str(error).split(" ", 1)[0] for _, _, error in prober.errors}
        check(words <= {"UNKNOWN", "CLUSTERDOWN"}, "errors of no documented kind", words)
        back(victim)
        cluster.settle(30)
    return times


def test_kill():
    rounds = int(number("CLUSTER_ROUNDS", 5))
    with Cluster(3, ranges=RANGES) as cluster:
        times = outages(cluster, rounds, lambda node: node.kill9(), lambda node: node.start())
        show("kill -9", times)
        check(statistics.median(times) < 1.5 and max(times) < 4, times)


def test_freeze():
    rounds = int(number("CLUSTER_ROUNDS", 3))
    with Cluster(3, ranges=RANGES) as cluster:
        times = outages(cluster, rounds, lambda node: node.freeze(), lambda node: node.thaw())
        show("SIGSTOP", times)
        check(max(times) < 5, times)


class Careful:
    """A client of a node that counts what fails, except that its node may close the connection between two requests."""

    def __init__(self, node, number_):
        self.node = node
        self.key = "careful%d" % number_
        self.errors = []
        self.count = 0
        self.worst = 0.0
        self.stopping = False
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        client = self.node.client()
        while not self.stopping:
            began = time.monotonic()
            try:
                reply = client.cmd("SET", "%s:%d" % (self.key, self.count % 100), "1")
            except (ConnectionLost, OSError) as error:
                self.errors.append("the connection was closed: %s" % error)
                return
            self.worst = max(self.worst, time.monotonic() - began)
            self.count += 1
            if isinstance(reply, RespError):
                self.errors.append(str(reply))


def test_planned_stop():
    """SIGTERM: nobody who talks to another node sees an error, and who talked to this one only a closed connection."""
    with Cluster(3, ranges=RANGES) as cluster:
        for i in range(3):
            victim = cluster[i]
            pull_together(cluster, victim)
            rest = [node for node in cluster if node is not victim]
            clients = [Careful(rest[c % 2], c) for c in range(8)]
            own = [Careful(victim, 100 + c) for c in range(2)]
            time.sleep(0.5)
            began = time.monotonic()
            code = victim.term()
            took = time.monotonic() - began
            time.sleep(0.5)
            for client in clients + own:
                client.stopping = True
            for client in clients + own:
                client.thread.join(30)
            errors = [error for client in clients for error in client.errors]
            its_own = [error for client in own for error in client.errors]
            print("SIGTERM: exit %d after %.2f s, %d requests, %d failed, slowest %.0f ms; its own clients: %s" % (
                code, took, sum(client.count for client in clients), len(errors),
                max(client.worst for client in clients) * 1000, its_own), flush=True)
            check(code == 0, "a planned stop ends with 0", code, victim.stderr()[-1000:])
            check(not errors, "a request failed", errors[:5])
            check(all("closed" in error for error in its_own), its_own)
            victim.start()
            cluster.settle(30)


def test_restart_one_after_the_other():
    """A rolling restart under load: nobody fails."""
    with Cluster(3, ranges=RANGES) as cluster:
        clients = []
        for victim in list(cluster):
            rest = [node for node in cluster if node is not victim]
            clients = [Careful(rest[c % 2], c) for c in range(6)]
            check(victim.term() == 0)
            victim.start()
            cluster.settle(30)
            for client in clients:
                client.stopping = True
            for client in clients:
                client.thread.join(30)
            errors = [error for client in clients for error in client.errors]
            check(not errors, "a request failed while a node was restarted", victim.name, errors[:5])


main()
