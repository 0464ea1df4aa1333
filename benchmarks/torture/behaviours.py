"""A hundred ways in which an endpoint answers a question for words, most of them wrong."""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

KEY = "sk-not-to-be-seen-anywhere"
# A pause until the client is gone.
SILENT = float("inf")
# Seconds between the bytes of a slow reply, and between the blocks of one without end.
SLOW, BLOCKS = 0.05, 0.01
MIB = 2**20
WORDS = json.dumps(
    {
        "no_relation": [["cloud", 0.0], ["carpet", 0.1]],
        "far": [["bridge", 0.2], ["bread", 0.3]],
        "mid": [["river", 0.4], ["window", 0.5]],
    }
)


@dataclass(frozen=True)
class Behaviour:
    """What an endpoint does with a connection.

    Attributes:
        name: in words.
        first: what it sends: bytes, or a pause in seconds.
        then: what it sends again and again after that; if empty, it closes the connection.
        usable: whether the reply has the words.
        reads: whether it reads the request first.
    """

    name: str
    first: tuple[bytes | float, ...]
    then: tuple[bytes | float, ...] = ()
    usable: bool = False
    reads: bool = True


def completion(content: object) -> bytes:
    """A chat completion with any content."""
    message = {"role": "assistant", "content": content}
    return json.dumps({"id": "1", "choices": [{"index": 0, "message": message}]}).encode()


def head(status: object = 200, length: object = None, *lines: str) -> bytes:
    """A status line and headers."""
    every = [f"HTTP/1.1 {status} x", "Content-Type: application/json", *lines]
    every += [] if length is None else [f"Content-Length: {length}"]
    return ("\r\n".join(every) + "\r\n\r\n").encode()


def whole(body: bytes, status: object = 200, *lines: str) -> bytes:
    """A reply with its length."""
    return head(status, len(body), *lines) + body


def chunk(body: bytes) -> bytes:
    """A chunk of a reply."""
    return f"{len(body):x}\r\n".encode() + body + b"\r\n"


def raw_deflate(body: bytes) -> bytes:
    """Deflate data without zlib's header, as some servers send it."""
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(body) + packer.flush()


GOOD = completion(WORDS)
CHUNKED = head(200, None, "Transfer-Encoding: chunked")
GZIP, DEFLATE = "Content-Encoding: gzip", "Content-Encoding: deflate"
LINE = b"X-Header: " + b"x" * 80 + b"\r\n"


def every() -> list[Behaviour]:
    """All behaviours."""
    return [*_usable(), *_silent(), *_slow(), *_large(), *_statuses(), *_broken(), *_contents()]


def _usable() -> Iterator[Behaviour]:
    half = len(GOOD) // 2
    replies = {
        "a reply": (whole(GOOD),),
        "in chunks": (CHUNKED + chunk(GOOD[:half]) + chunk(GOOD[half:]) + b"0\r\n\r\n",),
        "without a length": (head() + GOOD,),
        "gzip": (whole(gzip.compress(GOOD), 200, GZIP),),
        "deflate": (whole(zlib.compress(GOOD), 200, DEFLATE),),
        "deflate without a header": (whole(raw_deflate(GOOD), 200, DEFLATE),),
        "in a code fence": (whole(completion(f"```json\n{WORDS}\n```")),),
        "in two parts": (head(200, len(GOOD)) + GOOD[:half], SLOW, GOOD[half:]),
        "after 100 Continue": (head(100) + whole(GOOD),),
    }
    for name, first in replies.items():
        yield Behaviour(f"usable: {name}", first, usable=True)


def _silent() -> Iterator[Behaviour]:
    places = {
        "before it reads": b"",
        "before the status": b"",
        "in the status": b"HTTP/1.1 2",
        "in a header": head()[:40],
        "after the headers": head(200, 100),
        "in the body": head(200, len(GOOD)) + GOOD[:20],
        "in the length of a chunk": CHUNKED + b"1",
        "in a chunk": CHUNKED + b"ff\r\n{",
        "before the last chunk": CHUNKED + chunk(GOOD),
        "in gzip data": head(200, 1000, GZIP) + gzip.compress(GOOD)[:30],
        "at status 500": head(500, 100),
    }
    for name, sent in places.items():
        yield Behaviour(f"silent: {name}", (sent, SILENT), reads=name != "before it reads")


def _slow() -> Iterator[Behaviour]:
    stored = zlib.compressobj(0, wbits=zlib.MAX_WBITS | 16)
    start = stored.compress(b" ") + stored.flush(zlib.Z_SYNC_FLUSH)
    parts = {
        "status": (b"HTTP/1.1 200 ", b"x"),
        "header": (head()[:-4] + b"\r\nX: ", b"x"),
        "headers": (head()[:-2], b"X: y\r\n"),
        "status 102": (b"", head(102)),
        "body": (head(200, MIB), b" "),
        "body without a length": (head() + b"{", b" "),
        "body of status 429": (head(429, MIB), b" "),
        "chunks": (CHUNKED, chunk(b" ")),
        "length of a chunk": (CHUNKED, b"0"),
        "extension of a chunk": (CHUNKED + b"1;", b"x"),
        "trailers": (CHUNKED + chunk(GOOD) + b"0\r\n", b"X: y\r\n"),
        # Empty blocks of deflate: there is always more to read, and nothing to decompress.
        "gzip data": (head(200, None, GZIP) + start, b"\x00\x00\x00\xff\xff"),
    }
    for name, (first, again) in parts.items():
        yield Behaviour(f"slow: {name}", (first,), (again, SLOW))


def _large() -> Iterator[Behaviour]:
    bomb = b" " * (16 * MIB)
    twice = gzip.compress(gzip.compress(bomb))
    ends = {
        "body over 1 MiB": whole(b" " * (MIB + 1)),
        "promised body": head(200, 10**15),
        "gzip bomb": whole(gzip.compress(bomb), 200, GZIP),
        "deflate bomb": whole(zlib.compress(bomb), 200, DEFLATE),
        "deflate bomb without a header": whole(raw_deflate(bomb), 200, DEFLATE),
        "gzip bomb of status 500": whole(gzip.compress(bomb), 500, GZIP),
        "gzip in gzip": whole(twice, 200, "Content-Encoding: gzip, gzip"),
        "gzip in gzip, two headers": whole(twice, 200, GZIP, GZIP),
    }
    for name, sent in ends.items():
        yield Behaviour(f"large: {name}", (sent,))
    block = b"x" * 2**16
    endless = {
        "status": (b"HTTP/1.1 200 ", block),
        "header": (head()[:-2] + b"X: ", block),
        "headers": (head()[:-2], LINE * 99),
        "status 102": (b"", head(102) * 20),
        "body": (head(), block),
        "chunks": (CHUNKED, chunk(block)),
        "extension of a chunk": (CHUNKED + b"1;", block),
        "trailers": (CHUNKED + chunk(GOOD) + b"0\r\n", LINE * 99),
        "gzip data": (head(200, None, GZIP) + gzip.compress(b" ")[:10], block),
        "body of status 404": (head(404), block),
    }
    for name, (first, again) in endless.items():
        yield Behaviour(f"without end: {name}", (first,), (again, BLOCKS))


def _statuses() -> Iterator[Behaviour]:
    for status in (201, 204, 206, 301, 307, 400, 401, 403, 404, 511, 999):
        location = ["Location: http://127.0.0.1:9/v1"] if 300 < status < 400 else []
        yield Behaviour(f"status: {status}", (whole(b"{}", status, *location),))
    for status, pause in ((429, "1000000"), (503, "nan"), (500, "inf"), (429, "-1"), (503, "Mon")):
        line = f"Retry-After: {pause}"
        yield Behaviour(f"status: {status} and {line}", (whole(b"{}", status, line),))


def _broken() -> Iterator[Behaviour]:
    packed = gzip.compress(GOOD)
    replies = {
        "closed at once": b"",
        "HTTP/0.9": GOOD,
        "TLS": b"\x15\x03\x01\x00\x02\x02\x28",
        "status that is no number": head("OK"),
        "closed in the headers": head()[:30],
        "negative length": head(200, -5) + GOOD,
        "length that is no number": head(200, "many") + GOOD,
        "two lengths": head(200, len(GOOD), "Content-Length: 5") + GOOD,
        "closed before its length": head(200, 10**6) + GOOD,
        "chunk of a length that is no number": CHUNKED + b"many\r\n" + GOOD,
        "chunk of 10^30 bytes": CHUNKED + b"f" * 30 + b"\r\n" + GOOD,
        "header without a colon": b"HTTP/1.1 200 OK\r\nheader\r\n\r\n" + GOOD,
        "zero byte in a header": head(200, None, "X: \0") + GOOD,
        "unknown encoding": whole(GOOD, 200, "Content-Encoding: x-own"),
        "encoding br": whole(GOOD, 200, "Content-Encoding: br"),
        "gzip that is none": whole(GOOD, 200, GZIP),
        "damaged gzip data": whole(packed[:30] + b"\0\0\0" + packed[33:], 200, GZIP),
    }
    for name, sent in replies.items():
        yield Behaviour(f"broken: {name}", (sent,))


def _contents() -> Iterator[Behaviour]:
    deep = "[" * 10**5 + "]" * 10**5
    words = json.loads(WORDS)
    many = json.dumps(words | {f"k{i}": 0 for i in range(5 * 10**4)})
    bodies = {
        "nothing": b"",
        "null": b"null",
        "a list": b"[]",
        "bytes that are no UTF-8": b"\xff\xfe\xfa",
        "nested lists": deep.encode(),
        "a long number": b'{"choices": ' + b"9" * 10**6 + b"}",
        "200,000 choices": b'{"choices": [' + b",".join([b"{}"] * 200_000) + b"]}",
        "choices by number": b'{"choices": {"0": 1}}',
        "a number as content": completion(5),
        "nested lists as content": completion(deep),
        "a fence of spaces": completion("```" + " " * (MIB - 200)),
        "a fence of line breaks": completion("```json" + "\n" * (MIB // 2 - 200) + "`"),
        "50,000 further fields": completion(many),
        "100,000 wrong words": completion(json.dumps(words | {"far": [[1, 2]] * 10**5})),
        "the key": completion(KEY),
        "an error with the key": json.dumps({"error": {"message": KEY}}).encode(),
        "control characters": completion(WORDS.replace("cloud", "cl\\u001b[1moud")),
    }
    for name, body in bodies.items():
        yield Behaviour(f"content: {name}", (whole(body),))
