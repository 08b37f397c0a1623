#!/usr/bin/env python3
"""kill -9 under pipelined load, round after round on one data folder, against the ledger.

ROUNDS (default 50; with DURAMEN_LONG 400), WRITERS (4) and SEED come from the environment.
"""

import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from ledger import Load  # noqa: E402
from lib import Node, check, main  # noqa: E402

ROUNDS = int(os.environ.get("ROUNDS") or (400 if os.environ.get("DURAMEN_LONG") else 50))
WRITERS = int(os.environ.get("WRITERS") or 4)


def test_kill9_loses_nothing():
    seed = int(os.environ.get("SEED") or random.randrange(1 << 30))
    print("seed %d, %d rounds, %d writers" % (seed, ROUNDS, WRITERS), flush=True)
    chance = random.Random(seed)
    load = Load(WRITERS, seed)
    slowest = 0.0
    # a small memory budget and log: checkpoints and recycled slots happen all the time
    with Node(args=["--memory", "16MiB", "--log-bytes", "512MiB"]) as node:
        for _ in range(ROUNDS):
            load.start(node)
            time.sleep(chance.uniform(0.05, 0.5))  # how long the load lasts, not a synchronisation
            node.kill9()
            load.join()
            started = time.monotonic()
            node.start()
            slowest = max(slowest, time.monotonic() - started)
            load.settle(node)
        check(node.term() == 0, "a clean stop ends with 0")
        node.start()
        load.settle(node)
    check(load.acknowledged > ROUNDS * 20, "too little load to prove anything", load.acknowledged)
    print("%d rounds, %d commands acknowledged, %d more survived, slowest restart %.2f s"
          % (ROUNDS, load.acknowledged, load.survived - load.acknowledged, slowest), flush=True)


main()
