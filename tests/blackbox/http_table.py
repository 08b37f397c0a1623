#!/usr/bin/env python3
"""Raw bytes on the HTTP port: what RFC 9112 lets a server refuse is refused, and nothing behind a refusal is
ever taken for a request. One row: name, bytes, expected statuses in order, and whether the server closes."""

import socket
import sys
import time

from lib import Node, check, main

OPEN, CLOSED = False, True
HOST = b"Host: localhost\r\n"


def get(path=b"/health/live", version=b"HTTP/1.1", headers=HOST):
    return b"GET " + path + b" " + version + b"\r\n" + headers + b"\r\n"


def put(headers, body=b"", path=b"/kv/table"):
    return b"PUT " + path + b" HTTP/1.1\r\n" + HOST + headers + b"\r\n" + body


# The request that must never be answered, behind something refused.
SMUGGLED = b"DELETE /kv/canary HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"

TABLE = [
    # what must work
    ("plain GET", get(), [200], OPEN),
    ("HTTP/1.0 without Host", get(version=b"HTTP/1.0", headers=b""), [200], CLOSED),
    ("HTTP/1.0 keep-alive is optional", get(version=b"HTTP/1.0", headers=b"Connection: close\r\n"), [200], CLOSED),
    ("Connection: close", get(headers=HOST + b"Connection: close\r\n"), [200], CLOSED),
    ("two requests at once", get() + get(), [200, 200], OPEN),
    ("twenty requests at once", get() * 20, [200] * 20, OPEN),
    ("one empty line before", b"\r\n" + get(), [200], OPEN),
    ("absolute target", get(b"http://localhost/health/live"), [200], OPEN),
    ("HEAD", b"HEAD /health/live HTTP/1.1\r\n" + HOST + b"\r\n", [200], OPEN),
    ("PUT with a length", put(b"Content-Length: 3\r\n", b"abc"), [201, 204], OPEN),
    ("PUT with length 0", put(b"Content-Length: 0\r\n"), [201, 204], OPEN),
    ("PUT without a body", put(b""), [201, 204], OPEN),
    ("PUT in chunks", put(CHUNKED, b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), [201, 204], OPEN),
    ("chunk with upper-case size", put(CHUNKED, b"A\r\n0123456789\r\n0\r\n\r\n"), [201, 204], OPEN),
    ("chunk extension", put(CHUNKED, b"3;name=value\r\nabc\r\n0\r\n\r\n"), [201, 204], OPEN),
    ("trailer", put(CHUNKED, b"3\r\nabc\r\n0\r\nX-Sum: 1\r\n\r\n"), [201, 204], OPEN),
    ("Chunked in another case", put(b"Transfer-Encoding: CHUNKED\r\n", b"1\r\na\r\n0\r\n\r\n"), [201, 204], OPEN),
    ("PUT and GET at once", put(b"Content-Length: 3\r\n", b"abc") + get(b"/kv/table"), [(201, 204), 200], OPEN),
    ("GET with a body", get(headers=HOST + b"Content-Length: 3\r\n") + b"abc" + get(), [200, 200], OPEN),
    ("DELETE with a body", b"DELETE /kv/none HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\nabc" + get(), [404, 200], OPEN),
    ("refused PUT keeps its body", put(b"Content-Length: 3\r\n", b"abc", b"/nowhere") + get(), [404, 200], OPEN),
    ("Expect: 100-continue", put(b"Content-Length: 3\r\nExpect: 100-continue\r\n", b"abc"), [100, (201, 204)], OPEN),
    ("100 header fields", get(headers=HOST + b"X: y\r\n" * 99), [200], OPEN),
    ("header of 15 KiB", get(headers=HOST + b"X: " + b"y" * 15000 + b"\r\n"), [200], OPEN),
    ("target of 8,000 bytes", get(b"/status?" + b"x" * 7900), [200], OPEN),
    ("tab inside a field value", get(headers=HOST + b"X: a\tb\r\n"), [200], OPEN),
    ("field value with UTF-8", get(headers=HOST + b"X: \xc3\xa4\r\n"), [200], OPEN),
    ("empty field value", get(headers=HOST + b"X:\r\n"), [200], OPEN),
    ("Host with a port", get(headers=b"Host: 127.0.0.1:1\r\n"), [200], OPEN),
    ("Host in brackets", get(headers=b"Host: [::1]:1\r\n"), [200], OPEN),
    # request line
    ("no version", b"GET /\r\n\r\n", [400], CLOSED),
    ("HTTP/0.9", b"GET / HTTP/0.9\r\n\r\n", [505], CLOSED),
    ("HTTP/1.2", get(version=b"HTTP/1.2"), [505], CLOSED),
    ("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505], CLOSED),
    ("lower-case version", get(version=b"http/1.1"), [400], CLOSED),
    ("version with a tail", get(version=b"HTTP/1.1x"), [400], CLOSED),
    ("two spaces", b"GET  / HTTP/1.1\r\n" + HOST + b"\r\n", [400], CLOSED),
    ("space in the target", b"GET /kv/a b HTTP/1.1\r\n" + HOST + b"\r\n", [400], CLOSED),
    ("space before the method", b" GET / HTTP/1.1\r\n" + HOST + b"\r\n", [400], CLOSED),
    ("two empty lines before", b"\r\n\r\n" + get(), [400], CLOSED),
    ("target without a slash", get(b"kv/a"), [400], CLOSED),
    ("asterisk for GET", get(b"*"), [400], CLOSED),
    ("authority form", b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n", [400], CLOSED),
    ("fragment in the target", get(b"/#x"), [400], CLOSED),
    ("NUL in the target", get(b"/kv/a\x00b"), [400], CLOSED),
    ("control byte in the target", get(b"/kv/a\x01b"), [400], CLOSED),
    ("method with a control byte", b"G\x01T / HTTP/1.1\r\n" + HOST + b"\r\n", [400], CLOSED),
    ("method of 40 letters", b"G" * 40 + b" / HTTP/1.1\r\n" + HOST + b"\r\n", [400], CLOSED),
    ("request line over 8 KiB", get(b"/" + b"x" * 9000), [414], CLOSED),
    ("endless request line", b"GET /" + b"x" * 20000, [414], CLOSED),
    ("bare LF after the request line", b"GET / HTTP/1.1\n" + HOST + b"\r\n", [400], CLOSED),
    ("bare CR in the request line", b"GET /\r HTTP/1.1\r\n" + HOST + b"\r\n", [400], CLOSED),
    # fields
    ("no Host", get(headers=b""), [400], CLOSED),
    ("two Hosts", get(headers=HOST + HOST), [400], CLOSED),
    ("empty Host", get(headers=b"Host:\r\n"), [400], CLOSED),
    ("Host with a space", get(headers=b"Host: local host\r\n"), [400], CLOSED),
    ("Host with a path", get(headers=b"Host: localhost/x\r\n"), [400], CLOSED),
    ("Host with a bad port", get(headers=b"Host: localhost:99999\r\n"), [400], CLOSED),
    ("foreign Host", get(headers=b"Host: evil.example\r\n"), [421], OPEN),
    ("foreign Host of another depth", get(headers=b"Host: localhost.evil.example\r\n"), [421], OPEN),
    ("absolute target of a foreign host", get(b"http://evil.example/status"), [421], OPEN),
    ("space before the colon", get(headers=HOST + b"X : y\r\n"), [400], CLOSED),
    ("space before Content-Length's colon", put(b"Content-Length : 3\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("no colon", get(headers=HOST + b"nonsense\r\n"), [400], CLOSED),
    ("empty field name", get(headers=HOST + b": y\r\n"), [400], CLOSED),
    ("folded field", get(headers=HOST + b"X: a\r\n b\r\n"), [400], CLOSED),
    ("folded with a tab", get(headers=HOST + b"X: a\r\n\tb\r\n"), [400], CLOSED),
    ("space before the first field", get(headers=b" " + HOST), [400], CLOSED),
    ("NUL in a field", get(headers=HOST + b"X: a\x00b\r\n"), [400], CLOSED),
    ("bare CR in a field", get(headers=HOST + b"X: a\rb\r\n"), [400], CLOSED),
    ("bare LF between fields", get(headers=HOST + b"X: a\nY: b\r\n"), [400], CLOSED),
    ("bare LF ends the head", b"GET / HTTP/1.1\r\nHost: localhost\n\n", [400], CLOSED),
    ("control byte in a field name", get(headers=HOST + b"X\x01: y\r\n"), [400], CLOSED),
    ("101 header fields", get(headers=HOST + b"X: y\r\n" * 100), [431], CLOSED),
    ("headers over 16 KiB", get(headers=HOST + b"X: " + b"y" * 17000 + b"\r\n"), [431], CLOSED),
    ("headers over 16 KiB, in many fields", get(headers=HOST + (b"X: " + b"y" * 200 + b"\r\n") * 90), [431], CLOSED),
    ("endless field", b"GET / HTTP/1.1\r\nX: " + b"y" * 60000, [431], CLOSED),
    # lengths
    ("Content-Length and Transfer-Encoding", put(b"Content-Length: 5\r\n" + CHUNKED, b"0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("Transfer-Encoding and Content-Length", put(CHUNKED + b"Content-Length: 5\r\n", b"0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("two lengths that differ", put(b"Content-Length: 3\r\nContent-Length: 4\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("two lengths that agree", put(b"Content-Length: 3\r\nContent-Length: 3\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("a list of lengths", put(b"Content-Length: 3, 3\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("length with a plus", put(b"Content-Length: +3\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("negative length", put(b"Content-Length: -1\r\n", SMUGGLED), [400], CLOSED),
    ("hexadecimal length", put(b"Content-Length: 0x3\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("length with a letter", put(b"Content-Length: 3a\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("empty length", put(b"Content-Length:\r\n", SMUGGLED), [400], CLOSED),
    ("length beyond 64 bits", put(b"Content-Length: 18446744073709551619\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("length of 30 digits", put(b"Content-Length: " + b"9" * 30 + b"\r\n", b"abc" + SMUGGLED), [400], CLOSED),
    ("length over the limit", put(b"Content-Length: 16777217\r\n", SMUGGLED), [413], CLOSED),
    ("length far over the limit", put(b"Content-Length: 99999999999\r\n", SMUGGLED), [413], CLOSED),
    # encodings
    ("gzip, chunked", put(b"Transfer-Encoding: gzip, chunked\r\n", b"0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunked, identity", put(b"Transfer-Encoding: chunked, identity\r\n", b"0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("identity", put(b"Transfer-Encoding: identity\r\n", SMUGGLED), [400], CLOSED),
    ("xchunked", put(b"Transfer-Encoding: xchunked\r\n", b"0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunked twice", put(CHUNKED + CHUNKED, b"0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunked with a vertical tab", put(b"Transfer-Encoding: \x0bchunked\r\n", b"0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunked in HTTP/1.0", b"PUT /kv/table HTTP/1.0\r\n" + CHUNKED + b"\r\n0\r\n\r\n" + SMUGGLED, [400], CLOSED),
    # chunks
    ("chunk size that is no number", put(CHUNKED, b"x\r\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunk size with 0x", put(CHUNKED, b"0x3\r\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("negative chunk size", put(CHUNKED, b"-1\r\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("empty chunk size", put(CHUNKED, b"\r\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunk size beyond 64 bits", put(CHUNKED, b"10000000000000003\r\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunk size over the limit", put(CHUNKED, b"1000001\r\nabc" + SMUGGLED), [413], CLOSED),
    ("space behind the chunk size", put(CHUNKED, b"3 \r\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("bare LF behind the chunk size", put(CHUNKED, b"3\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunk longer than its size", put(CHUNKED, b"3\r\nabcd\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("bare LF behind the chunk", put(CHUNKED, b"3\r\nabc\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("chunk extension over 256 bytes", put(CHUNKED, b"3;" + b"x" * 300 + b"\r\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("NUL in a chunk extension", put(CHUNKED, b"3;\x00\r\nabc\r\n0\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("Content-Length in a trailer", put(CHUNKED, b"0\r\nContent-Length: 3\r\n\r\n" + SMUGGLED), [400], CLOSED),
    ("endless trailer", put(CHUNKED, b"0\r\n" + (b"X: " + b"y" * 200 + b"\r\n") * 90), [431], CLOSED),
    # order: what came before a refusal is answered, what comes behind is not
    ("good, then bad, then smuggled", get() + b"GET / HTTP/1.1\n\n" + SMUGGLED, [200, 400], CLOSED),
    ("good body, then bad", put(b"Content-Length: 3\r\n", b"abc") + b"X\r\n\r\n" + SMUGGLED, [(201, 204), 400], CLOSED),
    # other protocols
    ("RESP array", b"*1\r\n$4\r\nPING\r\n", [400], CLOSED),
    ("RESP inline", b"PING\r\n", [400], CLOSED),
    ("RESP SET", b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n", [400], CLOSED),
    ("TLS hello", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [400], CLOSED),
    ("SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n", [400], CLOSED),
    # what the handlers refuse
    ("unknown method", b"BREW /kv/a HTTP/1.1\r\n" + HOST + b"\r\n", [405], OPEN),
    ("OPTIONS *", b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", [404], OPEN),
    ("foreign Origin", put(b"Origin: http://evil.example\r\nContent-Length: 1\r\n", b"x"), [403], OPEN),
    ("Origin null", put(b"Origin: null\r\nContent-Length: 1\r\n", b"x"), [403], OPEN),
    ("own Origin", put(b"Origin: http://localhost\r\nContent-Length: 1\r\n", b"x"), [201, 204], OPEN),
    ("foreign Origin on a GET", get(headers=HOST + b"Origin: http://evil.example\r\n"), [200], OPEN),
    ("two If-Match", put(b'If-Match: "1"\r\nIf-Match: "2"\r\n'), [400], OPEN),
    ("bad percent escape", get(b"/kv/%zz"), [400], OPEN),
    ("cut percent escape", get(b"/kv/%4"), [400], OPEN),
    ("escaped NUL in a key", get(b"/kv/a%00b"), [404], OPEN),
    ("dots in a key", get(b"/kv/../../etc/passwd"), [404], OPEN),
    ("dots outside of a key", get(b"/../etc/passwd"), [404], OPEN),
    ("key of 401 bytes", get(b"/kv/" + b"k" * 401), [400], OPEN),
    ("key of 400 bytes, escaped", get(b"/kv/" + b"%6b" * 400), [404], OPEN),
]


class Reader:
    """Reads answers off a raw socket."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.data = b""

    def fill(self):
        try:
            got = self.socket.recv(65536)
        except ConnectionResetError:
            got = b""
        self.data += got
        return got != b""

    def answer(self, head_only=False):
        """Status of the next answer, or None if the server closed instead."""
        while b"\r\n\r\n" not in self.data:
            if not self.fill():
                check(self.data == b"", "half an answer:", self.data)
                return None
        head, self.data = self.data.split(b"\r\n\r\n", 1)
        status = int(head.split(b" ", 2)[1])
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, value = line.split(b":", 1)
            if name.lower() == b"content-length":
                length = int(value)
        if head_only or status in (100, 204, 304):
            length = 0
        while len(self.data) < length:
            check(self.fill(), "the body is cut off")
        self.body, self.data = self.data[:length], self.data[length:]
        return status


def run_row(port, name, data, statuses, closes, pieces=None):
    reader = Reader(port)
    try:
        try:
            if pieces is None:
                reader.socket.sendall(data)
            else:
                reader.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start in range(0, len(data), pieces):
                    reader.socket.sendall(data[start : start + pieces])
        except (BrokenPipeError, ConnectionResetError):
            pass
        # one status may be one of several: 201 or 204, depending on what came before
        if statuses == [201, 204]:
            statuses = [(201, 204)]
        for wanted in statuses:
            if wanted == 100 and reader.data == b"" and pieces is not None:
                continue
            got = reader.answer(head_only=data.startswith(b"HEAD"))
            if got == 100 and wanted != 100:
                got = reader.answer()
            allowed = wanted if isinstance(wanted, tuple) else (wanted,)
            if wanted == 100 and got in (201, 204):  # the body was there already
                return
            check(got in allowed, name + ": expected", wanted, "got", got)
            if got >= 400 and not data.startswith(b"HEAD"):
                check(reader.body.startswith(b'{"error":{"code":"'), name + ": not a JSON error:", reader.body)
        if closes:
            check(reader.answer() is None, name + ": something behind a refusal was answered")
        else:
            reader.socket.sendall(get())
            check(reader.answer() == 200, name + ": the connection is not usable afterwards")
    finally:
        reader.socket.close()


def run_table(pieces=None):
    check(len(TABLE) >= 60 and len({row[0] for row in TABLE}) == len(TABLE), "the table is not what it should be")
    with Node() as node:
        check(node.http("PUT", "/kv/canary", b"alive")[0] == 201)
        for name, data, statuses, closes in TABLE:
            if pieces is not None and len(data) > 4000:
                continue
            run_row(node.http_port, name, data, statuses, closes, pieces)
        status, _, body = node.http("GET", "/kv/canary")
        check((status, body) == (200, b"alive"), "a smuggled request was executed:", status, body)
        check(node.alive())


def test_whole_requests():
    run_table()


def test_requests_in_pieces_of_three_bytes():
    run_table(3)


def test_requests_byte_by_byte():
    run_table(1)


def test_half_closed_client_gets_its_answer():
    with Node() as node:
        reader = Reader(node.http_port)
        reader.socket.sendall(get() + get())
        reader.socket.shutdown(socket.SHUT_WR)
        check([reader.answer(), reader.answer(), reader.answer()] == [200, 200, None])
        reader = Reader(node.http_port)
        reader.socket.sendall(b"GET / HT")
        reader.socket.shutdown(socket.SHUT_WR)
        check(reader.answer() is None)


def test_body_over_the_limit_is_refused_while_it_arrives():
    with Node() as node:
        for chunk in (1 << 20, 100_000):
            reader = Reader(node.http_port)
            piece = b"%x\r\n" % chunk + b"x" * chunk + b"\r\n"
            try:
                reader.socket.sendall(put(CHUNKED))
                for _ in range((16 << 20) // chunk + 2):
                    reader.socket.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                pass
            check(reader.answer() == 413)
            check(b"16777216" in reader.body, reader.body)
            reader.socket.close()
        # and what is just at the limit is taken
        status, _, _ = node.http("PUT", "/kv/limit", b"x" * (16 << 20))
        check(status == 201, status)
        status, _, body = node.http("GET", "/kv/limit")
        check(status == 200 and body == b"x" * (16 << 20))
        status, _, body = node.http("PUT", "/kv/limit", b"x" * ((16 << 20) + 1))
        check(status == 413 and b"16777216" in body, status, body)


def test_one_byte_a_second_does_not_keep_a_connection():
    """A head has ten seconds, however steadily it trickles in; others are served meanwhile."""
    with Node() as node:
        slow = [Reader(node.http_port) for _ in range(50)]
        began = time.monotonic()
        for reader in slow:
            reader.socket.sendall(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nX: ")
        while time.monotonic() < began + 9:
            for reader in slow:
                reader.socket.sendall(b"y")
            check(node.http("GET", "/health/live")[0] == 200)
            time.sleep(1)
        for reader in slow:
            check(reader.answer() == 408)
            reader.socket.close()
        check(time.monotonic() < began + 14, "the deadline of ten seconds was not kept")


def test_many_idle_connections_leave_room_for_others():
    with Node() as node:
        idle = []
        for _ in range(700):
            idle.append(socket.create_connection(("127.0.0.1", node.http_port)))
        for _ in range(20):
            check(node.http("GET", "/health/live")[0] == 200)
        for one in idle:
            one.close()


if __name__ == "__main__":
    sys.exit(main())
