#!/usr/bin/env python3
"""Rules of docs/STYLE.md that a machine can check. Prints every violation as file:line: sentence; exit 1 if any.

    tests/tidy/tidy.py [FOLDER]       checks the repository (or FOLDER)
    tests/tidy/tidy.py --self-test    plants a violation of every rule and expects it to be found
"""

import os
import re
import subprocess
import sys
import tempfile

LINES_MAX = 1500
COLUMNS_MAX = 120

# Who may include whom. First match wins; an entry of the right side is a prefix of the included path.
PURE_PARSERS = ("server/resp.", "server/glob.", "server/http_parse.", "server/forward_wire.", "server/suggest.")
STORE = ("base/", "wal/", "storage/")
NODE = STORE + ("cluster/",)
INCLUDES = (
    (r"base/", ("base/",)),
    (r"wal/", ("base/", "wal/")),
    (r"storage/", STORE),
    (r"cluster/node/", NODE),
    (r"cluster/(\w+)/", ("base/", "cluster/{0}/")),
    (r"cluster/(message|envelope|net_\w+)\.", ("base/", "cluster/message.", "cluster/envelope.", "cluster/net_")),
    (r"server/(resp|glob|http_parse|forward_wire|suggest)\.", ("base/",) + PURE_PARSERS),
    (r"server/loop\w*\.", ("base/", "server/loop")),
    (r"server/main\.c$", NODE + ("server/", "bench/bench.h", "sim/sim.h")),
    (r"server/http_internal\.h$", NODE + ("server/", "web/assets.h")),
    (r"server/", NODE + ("server/",)),
    (r"web/", ("base/", "web/")),
    (r"bench/", NODE + ("bench/",) + PURE_PARSERS),
    (r"sim/", NODE + ("sim/",)),
    (r"tests/", ("",)),
)

# A library that is not the system's is known to the files named here and to no others.
THIRD_PARTY = {
    "lmdb.h": r"storage/kv_lmdb\.c|bench/\w*lmdb\w*\.c|tests/.*",
    "liburing.h": r"wal/disk_uring\.c|server/loop_uring\.c",
    "microhttpd.h": r"server/http_internal\.h",
    "jansson.h": r"server/(http|report|cli_operator)\.c|bench/report\w*\.c|tests/.*",
    "sodium.h": r"server/auth\.c|cluster/net_nng\w*\.[ch]",
    "nng/": r"cluster/net_nng\w*\.[ch]",
    "xxhash.h": r"base/hash\.c",
    "zstd.h": r"storage/backup_format\.c",
    "ini.h": r"server/config\.c",
    "curl/curl.h": r"server/client_http\.c",
    "rocksdb/c.h": r"bench/\w*rocksdb\w*\.c",
    "criterion/": r"tests/.*",
    "hiredis/": r"tests/clients/.*",
}
SYSTEM = set(
    "argp semaphore ctype dirent dlfcn errno fcntl ftw inttypes libgen limits linux/falloc linux/fs linux/futex linux/io_uring linux/magic linux/stat locale "
    "malloc math netdb poll pthread sched signal spawn stdalign stdarg stdatomic stdbool stddef stdint stdio stdlib "
    "string strings termios time ucontext unistd cpuid immintrin nmmintrin x86intrin setjmp sysexits getopt "
    "arpa/inet net/if netinet/in netinet/ip netinet/tcp "
    "sys/epoll sys/eventfd sys/file sys/ioctl sys/mman sys/prctl sys/random sys/resource sys/select sys/signalfd "
    "sys/socket sys/stat sys/statfs sys/statvfs sys/sysinfo sys/syscall sys/sysmacros sys/time sys/timerfd sys/types "
    "sys/uio sys/un sys/utsname sys/vfs sys/wait sys/xattr sys/auxv sys/personality".split()
)

# Calls that are wrong everywhere, or right in the files named only.
BANNED = {
    "rand": "use base/prng.h: one seed decides everything",
    "srand": "use base/prng.h",
    "random": "use base/prng.h",
    "drand48": "use base/prng.h",
    "time": "take the clock of base/io.h",
    "gettimeofday": "take the clock of base/io.h",
    "localtime": "logs are in UTC: gmtime_r",
    "gmtime": "gmtime_r",
    "sprintf": "snprintf",
    "vsprintf": "vsnprintf",
    "strcpy": "memcpy or snprintf with the size of the target",
    "strcat": "snprintf with the size of the target",
    "strncpy": "it leaves out the NUL: snprintf",
    "atoi": "it cannot fail: strtol, or argument_integer",
    "atol": "it cannot fail: strtol",
    "atof": "it cannot fail: strtod",
    "gets": "fgets",
    "strtok": "strcspn: it keeps state",
    "alloca": "an array of fixed size, or the heap",
    "system": "no shells",
    "popen": "no shells",
    "fork": "LMDB does not survive it: posix_spawn",
    "getenv": "settings come through server/config.h",
    "setjmp": "errors are returned",
}
BANNED_ALLOWED = (
    ("getenv", r"base/(logger|check)\.c|server/(loop|server)\.c|wal/disk_uring\.c|tests/.*"),
    ("fork", r"storage/verify\.c|tests/.*"),  # verify reads damaged pages in a child that may die of it
    ("system", r"tests/.*"),
    ("popen", r"bench/\w+\.c|tests/.*"),
    ("atoi", r"tests/.*"),
    ("strcpy", r"tests/.*"),
    ("strcat", r"tests/.*"),
)

# in two parts each, so that this file does not find itself
LEFT_OVER = re.compile(r"\b(%s)\b" % "|".join(["TO" "DO", "FIX" "ME", "XX" "X", "HA" "CK"]))
PLACES = re.compile("|".join(["/wo" "rk/", "/tmp/br" "ief"]))

problems = []


def problem(path, line, sentence):
    problems.append("%s:%d: %s" % (path, line, sentence))


def listed(root):
    """Files under version control or about to be; all files where there is no git."""
    try:
        out = subprocess.run(["git", "-C", root, "ls-files", "-co", "--exclude-standard", "-z"],
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True).stdout
        return sorted(set(name.decode() for name in out.split(b"\0") if name))
    except (OSError, subprocess.CalledProcessError):
        found = []
        for folder, folders, files in os.walk(root):
            folders[:] = [name for name in folders if name not in (".git", "build", "node_modules")]
            found += [os.path.relpath(os.path.join(folder, name), root) for name in files]
        return sorted(found)


def without_comments(text):
    """Comments and the insides of strings become spaces; line ends stay."""
    def blank(match):
        token = match.group(0)
        if token[0] == "/":
            return re.sub(r"[^\n]", " ", token)
        return token[0] + re.sub(r"[^\n]", " ", token[1:-1]) + token[-1]
    return re.sub(r"/\*.*?\*/|//[^\n]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'", blank, text, flags=re.S)


def allowed_includes(path):
    for pattern, allowed in INCLUDES:
        match = re.match(pattern, path)
        if match:
            return tuple(entry.format(*match.groups()) for entry in allowed)
    return ()


def check_includes(root, path, text):
    for number, line in enumerate(text.split("\n"), 1):
        match = re.match(r'\s*#\s*include\s+(["<])([^">]+)[">]', line)
        if not match:
            continue
        name = match.group(2)
        if match.group(1) == '"':
            if not name.startswith(allowed_includes(path)):
                problem(path, number, "%s may not include %s (docs/STYLE.md, who may include whom)" % (path, name))
            elif not os.path.exists(os.path.join(root, name)) and "/" in name:
                problem(path, number, "%s does not exist" % name)
            elif "/" not in name:
                problem(path, number, "includes are written from the root of the repository: %s" % name)
            if "_internal." in name and os.path.dirname(name) != os.path.dirname(path) and \
                    not path.startswith("tests/%s/" % name.split("/")[0]):
                problem(path, number, "%s is private to its folder" % name)
            continue
        if name == "assert.h":
            problem(path, number, "use base/check.h: <assert.h> is gone in release builds")
            continue
        for header, places in THIRD_PARTY.items():
            if name == header or (header.endswith("/") and name.startswith(header)):
                if not re.fullmatch(places, path):
                    problem(path, number, "<%s> belongs in %s only" % (name, places))
                break
        else:
            if name.removesuffix(".h") not in SYSTEM:
                problem(path, number, "<%s> is not in the tables of tests/tidy/tidy.py: is it the system's?" % name)


def check_calls(path, code):
    for match in re.finditer(r"(?<![\w.>])(%s)\s*\(" % "|".join(BANNED), code):
        name = match.group(1)
        if any(name == other and re.fullmatch(places, path) for other, places in BANNED_ALLOWED):
            continue
        line = code.count("\n", 0, match.start()) + 1
        before = code[:match.start()].rstrip()
        # a function pointer's or a parameter's name is no call
        if before.endswith("*") and not before.endswith("**") and re.search(r"\(\s*\*$", before):
            continue
        problem(path, line, "%s() is banned: %s" % (name, BANNED[name]))


def check_guard(path, text):
    guard = re.sub(r"\W", "_", path).upper()
    if not re.search(r"^#ifndef %s\n#define %s\n" % (guard, guard), text, re.M):
        problem(path, 1, "has no include guard %s" % guard)


def check_links(root, path, text):
    for number, line in enumerate(text.split("\n"), 1):
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", line):
            if re.match(r"\w+:", target):
                continue
            if not os.path.exists(os.path.join(root, os.path.dirname(path), target)):
                problem(path, number, "links to %s, which does not exist" % target)


def check_file(root, path):
    with open(os.path.join(root, path), "rb") as file:
        data = file.read()
    if b"\0" in data or path.startswith("tests/fuzz/corpus/") or path in ("LICENSE", "package-lock.json"):
        return
    text = data.decode("utf-8", "replace")
    lines = text.split("\n")
    code_file = path.endswith((".c", ".h"))
    if code_file and len(lines) - 1 > LINES_MAX:
        problem(path, LINES_MAX, "has %d lines; split it where it has two reasons to change" % (len(lines) - 1))
    for number, line in enumerate(lines, 1):
        if LEFT_OVER.search(line):
            problem(path, number, "is left over: finish it, or write down why it is as it is")
        if PLACES.search(line):
            problem(path, number, "names a place of one machine")
        if code_file and len(line) > COLUMNS_MAX:
            problem(path, number, "has %d columns" % len(line))
        if code_file and "\t" in line:
            problem(path, number, "has a tab; indent with spaces")
    if code_file:
        code = without_comments(text)
        check_includes(root, path, text)
        check_calls(path, code)
    if path.endswith(".h"):
        check_guard(path, text)
    if path.endswith(".md"):
        check_links(root, path, text)


def check_readme(root):
    try:
        with open(os.path.join(root, "README.md"), encoding="utf-8") as file:
            text = file.read()
    except OSError:
        problem("README.md", 1, "does not exist")
        return
    for script in ("scripts/run", "scripts/test"):
        if script not in text:
            problem("README.md", 1, "does not name %s" % script)
        if not os.access(os.path.join(root, script), os.X_OK):
            problem(script, 1, "cannot be executed")


def check(root):
    for path in listed(root):
        if os.path.isfile(os.path.join(root, path)) and not os.path.islink(os.path.join(root, path)):
            check_file(root, path)
    check_readme(root)


def self_test():
    planted = {
        "base/up.c": ('#include "storage/kv.h"\n', "may not include"),
        "cluster/raft/side.c": ('#include "cluster/swim/swim.h"\n', "may not include"),
        "wal/other.c": ("#include <lmdb.h>\n", "belongs in"),
        "wal/strange.c": ("#include <strange.h>\n", "is it the system's"),
        "wal/assert.c": ("#include <assert.h>\n", "base/check.h"),
        "wal/dice.c": ("int dice(void)\n{\n    return rand() % 6;\n}\n", "rand() is banned"),
        "wal/clock.c": ("long now(void)\n{\n    return time(0);\n}\n", "time() is banned"),
        "wal/copy.c": ("void copy(char *a, const char *b)\n{\n    strcpy(a, b);\n}\n", "strcpy() is banned"),
        "wal/long.c": ("\n" * 1501, "split it"),
        "wal/wide.c": ("/* %s */\n" % ("x" * 120), "columns"),
        "wal/later.c": ("/* TO" "DO: later */\n", "left over"),
        "wal/guard.h": ("int unguarded;\n", "no include guard"),
        "wal/gone.c": ('#include "wal/gone.h"\n', "does not exist"),
        "wal/near.c": ('#include "near.h"\n', ""),
        "docs/page.md": ("[there](nowhere.md)\n", "links to"),
        "README.md": ("scripts/run alone\n", "does not name scripts/test"),
    }
    innocent = {
        "wal/fine.c": ('#include "wal/fine.h"\n\n#include <stdio.h>\n\n'
                       "/* rand() and time() in a comment */\n"
                       'static const char text[] = "sprintf(";\n'
                       "int fine_run_time(struct clock *clock)\n{\n    return clock->time(clock->ctx) + x.time();\n}\n"),
        "wal/fine.h": "#ifndef WAL_FINE_H\n#define WAL_FINE_H\n#endif\n",
    }
    with tempfile.TemporaryDirectory() as root:
        for path, text in list((path, text) for path, (text, _) in planted.items()) + list(innocent.items()):
            os.makedirs(os.path.join(root, os.path.dirname(path)), exist_ok=True)
            with open(os.path.join(root, path), "w", encoding="utf-8") as file:
                file.write(text)
        check(root)
    failed = 0
    for path, (_, sentence) in planted.items():
        if not any(found.startswith(path + ":") and sentence in found for found in problems):
            print("the violation planted in %s was not found" % path)
            failed = 1
    for found in problems:
        if found.startswith("wal/fine."):
            print("found where nothing is wrong: %s" % found)
            failed = 1
    return failed


def main():
    if sys.argv[1:] == ["--self-test"]:
        return self_test()
    root = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("SOURCE") or \
        os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    check(root)
    for found in problems:
        print(found)
    print("%d violations" % len(problems))
    return 1 if problems else 0


sys.exit(main())
