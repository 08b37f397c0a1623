#!/usr/bin/env python3
"""Does what docs/OPERATIONS.md says about clusters, as it is written there.

Every console block of its section "A cluster" is run in order. A line `a# command` is typed on machine a; the lines
after it must come back in that order (others may stand between; an ellipsis stands for anything). What an operator
would see or wait for outside of the blocks is in comments of the page:

    <!-- until: voters 3 -->   waits; see UNTIL below        <!-- do: kill c -->   the machine c dies; also start

The machines are folders and addresses here: 10.0.0.N becomes an address in 127.0.0.0/8, the paths of the package go
below a temporary folder, commands of an operator get --node for their machine, systemctl starts and stops the
program, scp copies, apt-get and chown do nothing.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import DURAMEN, SOURCE, CheckFailed, _die_with_parent, check, eventually, main, temp_folder  # noqa: E402

PAGE = os.path.join(SOURCE, "docs", "OPERATIONS.md")
BEGIN, END = "## A cluster\n", "## Back up and restore\n"
MACHINES = "abcdefg"
WAIT_SECONDS = 40

PRELUDE = r"""
set -e -o pipefail
duramen() {
    case $1 in
    status|member|leader|backup) command "$PROGRAM" "$@" --node "$NODE" ;;
    *) command "$PROGRAM" "$@" ;;
    esac
}
scp() { cp "$@"; }
chown() { :; }
apt-get() { :; }
"""


class Machine:
    def __init__(self, name, root, network):
        self.name, self.root = name, os.path.join(root, name)
        self.address = network + str(MACHINES.index(name) + 1)
        self.process = None
        for path in ("etc/duramen", "var/lib", "backup"):
            os.makedirs(os.path.join(self.root, path))

    def start(self):
        check(self.process is None, self.name, "runs already")
        config = os.path.join(self.root, "etc/duramen/duramen.conf")
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DURAMEN_")}
        with open(os.path.join(self.root, "log"), "ab") as log:
            self.process = subprocess.Popen(
                [DURAMEN, "serve", "--config", config], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log,
                env=environment, preexec_fn=_die_with_parent())
        timer = threading.Timer(60, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        check(line.startswith(b"ready "), self.name, "did not become ready:", self.log())

    def stop(self):
        self.process.terminate()
        code = self.process.wait(timeout=60)
        removed = code == 2 and "the cluster refuses this node" in self.log()
        check(code == 0 or removed, self.name, "ended with", code, self.log())
        self.process = None

    def kill(self):
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def log(self):
        with open(os.path.join(self.root, "log"), encoding="utf-8", errors="replace") as log:
            return log.read()[-1500:]

    def status(self):
        with open(os.path.join(self.root, "etc/duramen/password"), encoding="utf-8") as file:
            password = file.readline().strip()
        request = urllib.request.Request("http://%s:7380/status" % self.address,
                                         headers={"Authorization": "Bearer " + password})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)


def members(machine):
    return {member["name"]: member["state"] for member in machine.status()["members"]}


def whole(machine, voters):
    """Every range has that many voters, no learner, and nobody is behind."""
    for part in machine.status()["ranges"]:
        roles = [replica["role"] for replica in part["replicas"]]
        if part["leader"] is None or roles != ["voter"] * voters:
            return False
        if any(replica["match"] < part["committed"] for replica in part["replicas"]):
            return False
    return True


def leaders(machine):
    return {part["leader"] for part in machine.status()["ranges"]}


class Story:
    def __init__(self):
        self.root = temp_folder("duramen-runbooks-")
        self.network = "127.%d.%d." % (64 + os.getpid() // 250 % 128, 1 + os.getpid() % 250)
        self.machines = {name: Machine(name, self.root, self.network) for name in MACHINES}
        self.commands = 0

    def running(self):
        return [machine for machine in self.machines.values() if machine.process is not None]

    def until(self, what, name):
        """Waits for one condition of the page."""
        here = self.machines["a"]
        conditions = {
            "voters": lambda: all(whole(machine, int(name)) for machine in self.running()),
            "dead": lambda: members(here).get(name) == "dead",
            "gone": lambda: members(here).get(name, "left") == "left",
            "leaderless": lambda: leaders(self.machines[name]) == {None},
            "leaders": lambda: None not in leaders(self.machines[name]),
            "leads": lambda: leaders(here) == {name},
        }

        def holds():
            try:
                return conditions[what]()
            except (OSError, urllib.error.URLError):
                return False
        eventually(holds, WAIT_SECONDS, "%s %s" % (what, name))

    def act(self, what, name):
        {"kill": Machine.kill, "start": Machine.start}[what](self.machines[name])

    def translated(self, command, name):
        """The command with the paths and addresses that it has here."""
        command = re.sub(r"(?:\b([a-g]):)?(/etc/duramen|/var/lib/duramen|/backup)\b",
                         lambda match: "%s/%s%s" % (self.root, match[1] or name, match[2]), command)
        return command.replace("127.0.0.1:7380", self.machines[name].address + ":7380").replace("10.0.0.", self.network)

    def run(self, name, command):
        machine = self.machines[name]
        self.commands += 1
        if command.startswith("systemctl "):
            {"start": machine.start, "stop": machine.stop}[command.split()[1]]()
            return ""
        done = subprocess.run(
            ["bash", "-c", PRELUDE + self.translated(command, name)], stdin=subprocess.DEVNULL, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60,
            env={**os.environ, "PROGRAM": DURAMEN, "NODE": machine.address + ":7380"})
        out = done.stdout.replace("%s/%s/" % (self.root, name), "/").replace(self.network, "10.0.0.")
        check(done.returncode == 0, "%s# %s: exit code %d\n%s" % (name, command, done.returncode, out))
        return out

    def compare(self, command, out, expected):
        """The expected lines are there, in their order."""
        lines = iter([" ".join(line.split()) for line in out.split("\n")])
        for line in expected:
            pattern = ".*".join(re.escape(part) for part in " ".join(line.split()).split("…"))
            if not any(re.fullmatch(pattern, each) for each in lines):
                raise CheckFailed("%s\nshould have said: %s\nbut said:\n%s" % (command, line, out))

    def block(self, text):
        lines = text.split("\n")
        while lines:
            prompt = re.match(r"([a-g])# (.*)$", lines[0])
            check(prompt is not None, "a block must begin with a command:", lines[0])
            name, command = prompt[1], prompt[2]
            del lines[0]
            if command.endswith("<<END"):
                end = lines.index("END")
                command = "\n".join([command] + lines[:end + 1])
                del lines[:end + 1]
            expected = []
            while lines and not re.match(r"[a-g]# ", lines[0]):
                expected.append(lines.pop(0))
            self.compare(command, self.run(name, command), expected)

    def tell(self, page):
        for match in re.finditer(r"<!-- (until|do): (\w+) (\w+) -->|^```console\n(.*?)\n```$", page, re.M | re.S):
            if match[1] == "until":
                self.until(match[2], match[3])
            elif match[1] == "do":
                self.act(match[2], match[3])
            else:
                self.block(match[4])

    def end(self):
        for machine in self.machines.values():
            machine.kill()


def test_every_command_of_the_page_does_what_it_says():
    with open(PAGE, encoding="utf-8") as file:
        page = file.read()
    story = Story()
    try:
        story.tell(page[page.index(BEGIN):page.index(END)])
        check(story.commands >= 40, "too few commands were found:", story.commands)
    except Exception:
        for machine in story.machines.values():
            if os.path.exists(os.path.join(machine.root, "log")):
                print("log of %s:\n%s" % (machine.name, machine.log()))
        raise
    finally:
        story.end()


for needed in ("bash", "jq", "redis-cli"):
    if shutil.which(needed) is None:
        print("no %s" % needed)
        sys.exit(77)
main()
