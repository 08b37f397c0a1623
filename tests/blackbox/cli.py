#!/usr/bin/env python3
"""The program as its caller sees it: usage errors, exit codes, settings from four places, and what it refuses."""

import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import lib
from lib import Node, RespError, check, main, run, temp_folder

COMMANDS = re.findall(r"^  (\w+) +\S", run("--help").out, re.M) if os.access(lib.DURAMEN, os.X_OK) else []


def refused(code, *args, says=None, env=None, stdin=None):
    """Runs, and expects this exit code, nothing on stdout and one helpful line on stderr."""
    result = run(*args, env=env, stdin=stdin)
    check(result.code == code, "exit code of %s" % (args,), result)
    check(result.out == "", "nothing belongs on stdout", result)
    check(result.err.strip() != "", "stderr says why", result)
    if says is not None:
        check(says in result.err, "stderr says %r" % says, result)
    return result


def write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w", encoding="utf-8") as file:
        file.write(text)
    return path


def shown(*args, env=None):
    """`config show` as {name: (value, origin)}."""
    result = run("config", "show", *args, env=env)
    check(result.code == 0, "config show", result)
    lines = [re.fullmatch(r"(?:# )?(\S+) += (.*?) *; (.*)", line) for line in result.out.splitlines()]
    check(all(lines), "every line has a name, a value and an origin", result.out)
    return {line.group(1): (line.group(2), line.group(3)) for line in lines}


# usage

def test_no_command_is_wrong_usage():
    result = run()
    check(result.code == 2 and "Usage: duramen COMMAND" in result.err and result.out == "", result)


def test_help_lists_the_commands_of_the_contract():
    for flag in ("--help", "-h", "help"):
        result = run(flag)
        check(result.code == 0 and result.err == "", flag, result)
        for name in ("serve", "status", "member", "leader", "backup", "restore", "verify", "bench", "passwd", "config"):
            check(re.search(r"^  %s " % name, result.out, re.M), "help names %s" % name)


def test_every_command_has_help():
    check(len(COMMANDS) >= 12, COMMANDS)
    for name in COMMANDS:
        for flag in ("--help", "-h"):
            result = run(name, flag)
            check(result.code == 0, "%s %s" % (name, flag), result)
            check("Usage: duramen %s" % name in result.out, "usage of %s" % name, result)


def test_help_needs_no_valid_surroundings():
    check(run("serve", "--help", env={"DURAMEN_RANGES": "nonsense"}).code == 0)


def test_version():
    for words in (["version"], ["--version"], ["-V"]):
        result = run(*words)
        check(result.code == 0 and re.fullmatch(r"duramen \d+\.\d+\.\d+\n", result.out), words, result)


def test_unknown_command_is_guessed():
    refused(2, "serv", says="did you mean 'serve'?")
    refused(2, "stauts", says="did you mean 'status'?")
    refused(2, "frobnicate", says="duramen --help")


def test_unknown_flag_is_guessed():
    refused(2, "serve", "--lisen", "1", says="did you mean --listen?")
    refused(2, "serve", "--memroy=1GiB", says="did you mean --memory?")
    refused(2, "backup", "--output", "x", says="--out")
    refused(2, "serve", "--frobnicate", says="duramen serve --help")
    for name in COMMANDS:
        refused(2, name, "--frobnicate")


def test_missing_value():
    refused(2, "serve", "--data", says="data")
    refused(2, "serve", "--data", "", says="--data")
    refused(2, "backup", "--out", says="out")


def test_missing_flag():
    refused(2, "serve", says="--data DIR")
    refused(2, "backup", says="--out FILE")
    refused(2, "restore", "--in", "x", says="--data DIR")
    refused(2, "verify", says="data folder or a backup file")
    refused(2, "config", says="check, show or list")
    refused(2, "completion", says="bash, zsh or fish")
    refused(2, "completion", "tcsh", says="tcsh")
    refused(2, "member", says="member list")


def test_extra_words():
    refused(2, "serve", "--data", "x", "y", says="'y' is not a flag")
    refused(2, "verify", "a", "b", says="'b' is one word too many")
    refused(2, "config", "check", "show", says="'show' is one word too many")


def test_wrong_values():
    for flag, value, says in (
            ("--listen", "nowhere", "HOST:PORT"), ("--listen", "1.2.3.4:99999", "HOST:PORT"),
            ("--http", ":80", "HOST:PORT"), ("--memory", "lots", "64MiB"), ("--memory", "1", "the least is"),
            ("--ranges", "63", "power of two"), ("--ranges", "0", "the least is"), ("--replicas", "-1", "whole number"),
            ("--log-io", "magic", "auto|dsync"), ("--io", "kqueue", "auto|uring|posix"), ("--name", "a b", "letters"),
            ("--log-level", "loud", "debug|info"), ("--idle-timeout", "soon", "seconds"), ("--join", "off", "HOST:PORT")):
        refused(2, "serve", "--data", "unused", "%s=%s" % (flag, value), says=says)
        check(not os.path.exists("unused"), "a refusal makes nothing")
    refused(2, "serve", "--data", "unused", "--scrub=maybe", says="yes or no")


def test_changes_of_members_say_what_they_need():
    refused(2, "leader", "transfer", says="NAME")
    refused(2, "leader", "transfer", "n1", "--range", "x", says="--range")
    refused(2, "member", "remove", says="NAME")
    refused(2, "member", "list", "n1", says="one word too many")
    refused(1, "member", "remove", "n1", "--node", "127.0.0.1:1", says="no node answers")


def test_changes_of_members_are_refused_by_a_node_alone():
    with Node(args=["--name", "n1"]) as node:
        for words in (("member", "remove", "n1"), ("member", "remove", "n2"), ("member", "replace", "n2"),
                      ("leader", "transfer", "n2"), ("leader", "transfer", "n2", "--range", "3")):
            refused(1, *words, "--node", node.http_address, says="409")
        listed = run("member", "list", "--node", node.http_address)
        check(listed.code == 0 and "n1" in listed.out and "alive" in listed.out, listed)


def test_joining_says_what_it_needs():
    folder = os.path.join(temp_folder(), "data")
    refused(2, "serve", "--data", folder, "--join", "127.0.0.1:1", "--peer", "off", "--listen", "off", "--http", "off", says="--peer")
    refused(2, "serve", "--data", folder, "--peer", "0.0.0.0:0", "--listen", "off", "--http", "off", says="other nodes")
    for address in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET, socket.SOCK_STREAM):
        if not address[4][0].startswith("127."):
            refused(2, "serve", "--data", folder, "--peer", address[4][0] + ":0", "--listen", "off", "--http", "off",
                    says="--cluster-secret-file")
            break
    secret = write(os.path.dirname(folder), "secret", "short")
    os.chmod(secret, 0o600)
    refused(2, "serve", "--data", folder, "--cluster-secret-file", secret, says="at least 16 bytes")
    os.chmod(write(os.path.dirname(folder), "secret", "long enough for a secret"), 0o644)
    refused(2, "serve", "--data", folder, "--cluster-secret-file", secret, says="chmod 600")
    refused(2, "serve", "--data", folder, "--cluster-secret-file", secret + "x", says="cannot be read")
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        result = run("serve", "--data", folder, "--listen", "off", "--http", "off", "--peer", "127.0.0.1:0", "--join",
                     "127.0.0.1:%d" % nobody.getsockname()[1], "--join-timeout", "1s")
        check(result.code == 1 and result.out == "" and "within 1 seconds" in result.err, result)


# settings

def test_every_setting_has_flag_variable_and_key():
    text = run("serve", "--help").out
    names = list(shown())
    check(len(names) >= 27, names)
    for name in names:
        check("--%s" % name in text, "the flag of %s is in the help" % name)
    samples = {"memory": "1GiB", "log-bytes": "1GiB", "output-limit": "1GiB", "client-memory": "1GiB",
               "listen": "[::1]:1234", "http": "off", "peer": "127.0.0.1:9", "join": "a:1,b:2", "name": "n1", "zone": "z1",
               "replicas": "5", "ranges": "128", "log-io": "posix", "io": "posix", "connections": "7",
               "idle-timeout": "5m", "slowlog-us": "off", "slowlog-len": "9", "enable-debug-command": "yes",
               "join-timeout": "5m", "cluster-secret-file": "/somewhere/secret", "deadline-ms": "500", "leases": "yes",
               "scrub": "no", "accept-loss": "77", "allowed-hosts": "a.example,b", "log-level": "debug",
               "log-format": "json", "data": "/somewhere"}
    skipped = {"config", "requirepass", "password-file"}
    check(set(names) == set(samples) | skipped, "samples for every setting", set(names) ^ (set(samples) | skipped))
    folder = temp_folder()
    for name, value in samples.items():
        variable = "DURAMEN_" + name.upper().replace("-", "_")
        path = write(folder, "one.conf", "%s = %s\n" % (name, value))
        check(shown("--%s=%s" % (name, value))[name] == (value, "--" + name), name)
        check(shown(env={variable: value})[name] == (value, variable), name)
        check(shown("--config", path)[name] == (value, path + ":1"), name)


def test_flag_before_environment_before_file_before_default():
    folder = temp_folder()
    path = write(folder, "node.conf", "# comment\nname = file\nzone = file\nmemory = 1GiB\n")
    env = {"DURAMEN_NAME": "variable", "DURAMEN_ZONE": "variable", "DURAMEN_CONFIG": path}
    values = shown("--name", "flag", env=env)
    check(values["name"] == ("flag", "--name"), values["name"])
    check(values["zone"] == ("variable", "DURAMEN_ZONE"), values["zone"])
    check(values["memory"] == ("1GiB", path + ":4"), values["memory"])
    check(values["ranges"] == ("64", "default"), values["ranges"])
    check(values["config"] == (path, "DURAMEN_CONFIG"), values["config"])


def test_what_config_show_prints_is_a_config_file():
    folder = temp_folder()
    first = run("config", "show", "--memory", "2GiB", "--allowed-hosts", "a,b", "--slowlog-us", "off")
    path = write(folder, "shown.conf", first.out)
    again = shown("--config", path)
    check(again["memory"][0] == "2GiB" and again["allowed-hosts"][0] == "a,b" and again["slowlog-us"][0] == "off", again)


def test_wrong_files_name_the_line():
    folder = temp_folder()
    path = write(folder, "wrong.conf", "name = n1\nlisen = 1\nmemory = much\nnonsense\n[a]\nname = n2\n")
    result = refused(2, "config", "check", "--config", path)
    for says in (":2: there is no setting 'lisen'", "did you mean 'listen'?", ":3: 'much'", ":4: is no setting",
                 ":5: has a section", ":6: sets 'name' again, after line 1"):
        check(says in result.err, says, result.err)
    refused(2, "serve", "--data", os.path.join(folder, "data"), "--config", path, says=":2:")
    check(not os.path.exists(os.path.join(folder, "data")), "nothing was made")
    refused(2, "config", "check", "--config", os.path.join(folder, "absent.conf"), says="absent.conf")
    refused(2, "config", "check", "--config", folder, says=folder)
    good = write(folder, "good.conf", "listen = 7379 ; any\n\nhttp = off\n")
    check(run("config", "check", "--config", good).out == "all settings are valid\n")


def test_mistyped_variable_is_told():
    result = run("config", "check", env={"DURAMEN_LISTN": "1"})
    check(result.code == 0 and "did you mean DURAMEN_LISTEN?" in result.err, result)
    refused(2, "config", "check", env={"DURAMEN_MEMORY": "x"}, says="DURAMEN_MEMORY")


def test_secrets_are_not_shown():
    folder = temp_folder()
    path = write(folder, "secret.conf", "requirepass = hunter2hunter2\n")
    for result in (run("config", "show", "--requirepass", "hunter2hunter2"), run("config", "show", "--config", path),
                   run("config", "show", env={"DURAMEN_REQUIREPASS": "hunter2hunter2"})):
        check(result.code == 0 and "hunter2" not in result.out + result.err, result)
        check("requirepass" in result.out and "(set)" in result.out, result)


def test_contradicting_passwords():
    refused(2, "config", "check", "--requirepass", "x", "--password-file", "y", says="remove one of them")


def test_the_manual_has_every_setting():
    path = os.path.join(lib.SOURCE, "docs", "man", "duramen.1.scd")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    found = re.search(r"^; settings: begin\n\n(.*)^; settings: end$", text, re.M | re.S)
    check(found, "the manual has its list of settings")
    listed = run("config", "list")
    check(listed.code == 0 and listed.out == found.group(1), "the list in docs/man/duramen.1.scd is old: put the "
          "output of `duramen config list` between its marks")


# serving

def test_ready_line_and_sigterm():
    with Node() as node:
        check(re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", node.ready["resp"]), node.ready)
        check(re.fullmatch(r"127\.0\.0\.1:[1-9]\d*", node.ready["http"]), node.ready)
        check("peer" in node.ready, node.ready)
        check(node.client().cmd("PING") == "PONG")
        node.signal(signal.SIGTERM)
        check(node.wait() == 0, "SIGTERM ends with 0", node.stderr())


def test_settings_reach_the_server():
    folder = temp_folder()
    path = write(folder, "node.conf", "name = from-file\nlog-format = json\nhttp = 127.0.0.1:0\n")
    with Node(args=["--config", path, "--ranges", "4"], env={"DURAMEN_CONNECTIONS": "17"}) as node:
        status = json.loads(run("status", "--json", "--node", node.ready["http"]).out)
        check(status["node"] == "from-file" and len(status["ranges"]) == 4, status["node"], len(status["ranges"]))
        check(node.client().cmd("CONFIG", "GET", "maxclients")[1] == b"17")
        for line in node.stderr().splitlines():
            json.loads(line)


def test_off_serves_nothing():
    with Node(args=["--http", "off"]) as node:
        check(node.ready["http"] == "off" and node.client().cmd("PING") == "PONG")
    with Node(args=["--listen", "off"]) as node:
        check(node.ready["resp"] == "off" and node.http("GET", "/health/live")[0] == 200)


def test_busy_port_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        data = os.path.join(temp_folder(), "data")
        refused(1, "serve", "--data", data, "--listen", port, "--http", "off", says="127.0.0.1:%d" % port)
        refused(1, "serve", "--data", data, "--listen", "off", "--http", port, says="127.0.0.1:%d" % port)
    # the folder was not left locked or half made
    with Node(data=data) as node:
        check(node.client().cmd("PING") == "PONG")


def test_second_process_on_the_folder_is_refused():
    with Node() as node:
        ports = ("--listen", "0", "--http", "0", "--peer", "0")
        refused(1, "serve", "--data", node.data, *ports, says="in use by another process")
        refused(1, "verify", node.data, says="stop it first")
        check(node.client().cmd("SET", "k", "v") == "OK", "the first goes on")


def test_foreign_folder_is_refused():
    folder = temp_folder()
    write(folder, "letter.txt", "dear diary\n")
    ports = ("--listen", "0", "--http", "0", "--peer", "0")
    refused(1, "serve", "--data", folder, *ports, says="choose another")
    check(os.listdir(folder) == ["letter.txt"], "it was not touched", os.listdir(folder))
    refused(1, "serve", "--data", os.path.join(folder, "letter.txt"), *ports, says="letter.txt")
    refused(1, "serve", "--data", os.path.join(folder, "a", "b", "c"), *ports, says="folder above it")


def test_newer_format_is_refused():
    folder = temp_folder()
    data = os.path.join(folder, "data")
    with Node(data=data) as node:
        node.term()
    path = os.path.join(data, "identity")
    with open(path, encoding="utf-8") as file:
        text = file.read()
    check("\nformat 2\n" in text, text)
    write(data, "identity", text.replace("\nformat 2\n", "\nformat 3\n"))
    check(run("serve", "--data", data, "--listen", "0", "--http", "0").code in (1, 3))


def test_read_only_folder_is_refused():
    folder = temp_folder()
    os.chmod(folder, 0o555)
    parent = temp_folder()
    os.chmod(parent, 0o755)
    program = shutil.copy(lib.DURAMEN, parent)
    as_nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
    for data in (folder, os.path.join(folder, "data")):
        done = subprocess.run([program, "serve", "--data", data, "--listen", "0", "--http", "0"],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, **as_nobody)
        check(done.returncode == 1 and folder.encode() in done.stderr, done)


def test_number_of_ranges_is_the_folder_s():
    with Node(args=["--ranges", "8"]) as node:
        node.client().must("SET", "k", "v")
        node.term()
        refused(2, "serve", "--data", node.data, "--ranges", "16", says="was created with 8")
        node.args = []
        node.start()
        check(node.client().cmd("GET", "k") == b"v")
        check(len(json.loads(run("status", "--json", "--node", node.ready["http"]).out)["ranges"]) == 8)


def test_others_machines_need_a_password():
    data = os.path.join(temp_folder(), "data")
    refused(2, "serve", "--data", data, "--listen", "0.0.0.0:0", "--http", "0", says="needs a password")
    refused(2, "serve", "--data", data, "--listen", "0", "--http", "0.0.0.0:0", says="needs a password")
    with Node(args=["--listen", "0.0.0.0:0", "--requirepass", "a long secret"]) as node:
        check(node.client().cmd("AUTH", "a long secret") == "OK")


def test_closed_standard_streams_do_no_harm():
    data = os.path.join(temp_folder(), "data")
    done = subprocess.run(["sh", "-c", "exec \"$0\" version <&- >&- 2>&-", lib.DURAMEN], timeout=60)
    check(done.returncode in (0, 1), done)
    done = subprocess.run(["sh", "-c", "exec \"$0\" config show >/dev/full", lib.DURAMEN],
                          stderr=subprocess.PIPE, timeout=60)
    check(done.returncode == 1 and b"cannot be written" in done.stderr, done)
    check(not os.path.exists(data))


# passwords

def test_password_plain_hashed_and_from_a_file():
    hashed = run("passwd", stdin=b"open sesame\n")
    check(hashed.code == 0 and hashed.out.startswith("$argon2id$"), hashed)
    hashed = hashed.out.strip()
    check(run("passwd", stdin=b"open sesame").out.strip() != hashed, "every hash has its own salt")
    refused(1, "passwd", stdin=b"\n")
    refused(1, "passwd", stdin=b"")
    refused(1, "passwd", stdin=b"x" * 5000)
    folder = temp_folder()
    plain_file = write(folder, "plain", "open sesame\n")
    hashed_file = write(folder, "hashed", hashed + "\n")
    for args, env in ((["--requirepass", "open sesame"], {}), ([], {"DURAMEN_REQUIREPASS": hashed}),
                      (["--password-file", plain_file], {}), (["--password-file", hashed_file], {})):
        with Node(args=args, env=env) as node:
            client = node.client()
            check(client.cmd("GET", "k").word == "NOAUTH", args)
            check(isinstance(client.cmd("AUTH", "wrong"), RespError), args)
            check(client.cmd("AUTH", "open sesame") == "OK", args, env)
            with open("/proc/%d/cmdline" % node.pid, "rb") as file:
                check(b"sesame" not in file.read(), "the process list shows the password")
            check("sesame" not in node.stderr() and "argon2id" not in node.stderr(), "the log shows the password")
            refused(1, "backup", "--node", node.ready["http"], "--out", os.path.join(folder, "b"), says="401")
            taken = run("backup", "--node", node.ready["http"], "--out", os.path.join(folder, "b"),
                        "--password-file", plain_file)
            check(taken.code == 0, taken)


def test_password_file_must_have_one():
    folder = temp_folder()
    data = os.path.join(folder, "data")
    refused(2, "serve", "--data", data, "--password-file", write(folder, "empty", ""), says="first line")
    refused(2, "serve", "--data", data, "--password-file", os.path.join(folder, "absent"), says="absent")
    refused(2, "serve", "--data", data, "--requirepass", "$argon2id$" + "x" * 500, says="duramen passwd")


# talking to a node

def test_no_node_is_a_sentence():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        node = "127.0.0.1:%d" % closed.getsockname()[1]
        refused(1, "status", "--node", node, says="no node answers HTTP at " + node)
        refused(1, "member", "list", "--node", node, says="--node HOST:HTTPPORT")
        out = os.path.join(temp_folder(), "b")
        refused(1, "backup", "--node", node, "--out", out, says=node)
        check(not os.path.exists(out) and not os.path.exists(out + ".partial"), "nothing is left")
    refused(2, "status", "--node", "nonsense", says="HOST:HTTPPORT")


def test_status():
    with Node(args=["--name", "alpha"]) as node:
        node.client().must("SET", "k", "v")
        result = run("status", "--node", node.ready["http"])
        check(result.code == 0, result)
        for word in ("alpha", "alive", node.ready["resp"], "LEADER", "LAG", "durable", "disk", "memory", "health"):
            check(word in result.out, word, result.out)
        status = json.loads(run("status", "--json", "--node", node.ready["http"].rsplit(":", 1)[1]).out)
        for name in ("node", "cluster_id", "version", "members", "ranges", "io", "wal", "meta"):
            check(name in status, name)
        members = run("member", "list", "--node", node.ready["http"])
        check(members.code == 0 and "alpha" in members.out, members)


def test_proxies_of_the_environment_are_not_asked():
    with Node() as node:
        env = {"http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
        check(run("status", "--node", node.ready["http"], env=env).code == 0)


def test_backup_restore_verify():
    folder = temp_folder()
    out = os.path.join(folder, "node.backup")
    restored = os.path.join(folder, "restored")
    with Node() as node:
        client = node.client()
        client.pipeline([("SET", "key:%d" % i, "value %d" % i) for i in range(2000)])
        client.must("SET", "short", "life", "PX", "100000000")
        before = lib.dump(client)
        result = run("backup", "--node", node.ready["http"], "--out", out)
        check(result.code == 0 and "checked" in result.out and result.err == "", result)
        check(stat.S_IMODE(os.stat(out).st_mode) == 0o600, "only its owner may read a backup")
        check(not os.path.exists(out + ".partial"))
        piped = run("backup", "--node", node.ready["http"], "--out", "-", text=False)
        check(piped.code == 0 and piped.err == "", piped.code, piped.err)
        with open(os.path.join(folder, "piped.backup"), "wb") as file:
            file.write(piped.out)
        again = run("backup", "--node", node.ready["http"], "--out", out)
        check(again.code == 0, "replaces", again)
        node.term()
        check(run("verify", node.data).code == 0, run("verify", node.data))
    for path in (out, os.path.join(folder, "piped.backup")):
        check(run("verify", path).code == 0, path)
    dry = run("restore", "--in", out, "--data", restored, "--dry-run")
    check(dry.code == 0 and not os.path.exists(restored), dry)
    done = run("restore", "--in", out, "--data", restored)
    check(done.code == 0 and "restored" in done.out, done)
    refused(1, "restore", "--in", out, "--data", restored)
    check(run("verify", restored).code == 0, "a folder just restored is sound", run("verify", restored))
    with Node(data=restored) as node:
        check(lib.dump(node.client()) == before, "the restored node has what the other had")


def test_damaged_backup_is_exit_3():
    folder = temp_folder()
    out = os.path.join(folder, "node.backup")
    with Node() as node:
        node.client().pipeline([("SET", "key:%d" % i, os.urandom(20).hex()) for i in range(3000)])
        check(run("backup", "--node", node.ready["http"], "--out", out).code == 0)
    with open(out, "rb") as file:
        good = file.read()
    for at in (len(good) // 3, len(good) // 2, len(good) - 5):
        with open(out, "wb") as file:
            file.write(good[:at] + bytes([good[at] ^ 1]) + good[at + 1:])
        refused(3, "verify", out, says="node.backup")
        refused(3, "restore", "--in", out, "--data", os.path.join(folder, "restored"))
    for size in (0, 10, len(good) // 2, len(good) - 1):
        with open(out, "wb") as file:
            file.write(good[:size])
        result = run("verify", out)
        check(result.code == 3 or size == 0 and result.code in (1, 3), "cut at %d" % size, result)
    check(not os.path.exists(os.path.join(folder, "restored")), "nothing was made")
    refused(1, "verify", os.path.join(folder, "absent"), says="absent")
    refused(1, "restore", "--in", os.path.join(folder, "absent"), "--data", os.path.join(folder, "x"))


class Impostor:
    """An HTTP server that answers every GET with the same bytes."""

    def __init__(self, status, body, length=None):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if length is None else length))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.node = "127.0.0.1:%d" % self.server.server_port
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self.node

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def test_a_backup_that_comes_over_wrong_is_not_kept():
    folder = temp_folder()
    out = os.path.join(folder, "old.backup")
    write(folder, "old.backup", "the one before")
    for status, body, length in ((200, b"nonsense", None), (200, b"half", 1000), (200, b"", None),
                                 (500, b'{"error":{"code":"x","message":"no luck today"}}', None)):
        with Impostor(status, body, length) as node:
            result = refused(1, "backup", "--node", node, "--out", out)
            check(status != 500 or "no luck today" in result.err, result)
    check(os.listdir(folder) == ["old.backup"], os.listdir(folder))
    with open(out, encoding="utf-8") as file:
        check(file.read() == "the one before", "the old backup stays until the new one is sound")
    with Impostor(200, b"{]") as node:
        refused(1, "status", "--node", node, says="no JSON")
    with Impostor(200, b"[]") as node:
        check(run("status", "--node", node).code in (0, 1), "an odd answer does no harm")


def test_backup_to_nowhere():
    with Node() as node:
        refused(1, "backup", "--node", node.ready["http"], "--out", "/nowhere/b", says="/nowhere/b")
        refused(1, "backup", "--node", node.ready["http"], "--out", "/dev/full/b")


# completions

def test_completions_are_those_of_the_repository():
    for shell, name in (("bash", "duramen.bash"), ("zsh", "_duramen"), ("fish", "duramen.fish")):
        result = run("completion", shell)
        check(result.code == 0, result)
        path = os.path.join(lib.SOURCE, "scripts", "completion", name)
        with open(path, encoding="utf-8") as file:
            check(file.read() == result.out, "scripts/completion/%s is old; write it anew with `duramen completion %s`" % (
                name, shell))
        interpreter = shutil.which(shell)
        if interpreter:
            done = subprocess.run([interpreter, "-n", path], stderr=subprocess.PIPE, timeout=30)
            check(done.returncode == 0, done)


def test_bash_completes():
    script = run("completion", "bash").out + """
COMP_WORDS=(duramen %s) COMP_CWORD=%d COMPREPLY=()
_duramen
printf '%%s\\n' "${COMPREPLY[@]}"
"""
    def complete(*words):
        text = script.replace("(duramen %s)", "(duramen %s)" % " ".join("'%s'" % word for word in words)).replace(
            "COMP_CWORD=%d", "COMP_CWORD=%d" % len(words)).replace("%%s", "%s")
        return subprocess.run(["bash", "-c", text], stdout=subprocess.PIPE, timeout=30).stdout.decode().split()
    check(complete("ser") == ["serve"], complete("ser"))
    check(complete("serve", "--log-f") == ["--log-format"], complete("serve", "--log-f"))
    check("bash" in complete("completion", ""), complete("completion", ""))


def test_completions_of_bench_are_its_flags():
    text = run("bench", "--help").out
    words = re.search(r"^        bench\) words='(.*)' ;;$", run("completion", "bash").out, re.M).group(1).split()
    for word in words:
        check(word in text, "bench has %s" % word)


main()
