"""Damages files: bits, cuts, types, nesting, numbers; the same seed gives the same damage."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# Values of other types, and numbers beyond all limits.
ODD: tuple[Any, ...] = (
    None,
    True,
    "",
    "x",
    "é\x00\x1b[31m",
    -1,
    0,
    1,
    10**6,
    2**31,
    2**63,
    10**30,
    0.5,
    1e308,
    float("nan"),
    float("inf"),
    [],
    {},
    [[]],
    {"x": []},
    ["x", 1],
    "x" * 5000,
)


def flip(rng: random.Random, content: bytes) -> bytes:
    """Flips one to eight bits."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 8)):
        if changed:
            # Headers are at the beginning.
            place = rng.randrange(min(len(changed), rng.choice((16, 400, len(changed)))))
            changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, content: bytes) -> bytes:
    """Cuts the end off."""
    return content[: rng.randrange(len(content) + 1)]


def empty(rng: random.Random, content: bytes) -> bytes:
    """Leaves nothing, or only white space or zeros."""
    return rng.choice((b"", b"\n", bytes(len(content)), b"\xff", b"\xef\xbb\xbf"))


def remove(rng: random.Random, content: bytes) -> bytes:
    """Removes some bytes from within."""
    begin = rng.randrange(len(content) + 1)
    return content[:begin] + content[begin + rng.randint(1, 40) :]


def insert(rng: random.Random, content: bytes) -> bytes:
    """Inserts bytes that are no UTF-8, or that mean something in JSON."""
    begin = rng.randrange(len(content) + 1)
    piece = rng.choice((b"\xff", b"\0", b"}", b"]", b'"', b"9" * 30, b"9" * 5000, b"-", b"null,"))
    return content[:begin] + piece + content[begin:]


def nest(rng: random.Random, content: bytes) -> bytes:
    """Nests deeply, or in the place of a value."""
    depth = rng.choice((70, 2_000, 100_000))
    begin, end = rng.choice((("[", "]"), ('{"a":', "}")))
    deep = begin * depth + "1" + end * depth
    value = retyped(rng, content, lambda _: "@")
    return (value.replace(b'"@"', deep.encode(), 1)) if b'"@"' in value else deep.encode()


def retype(rng: random.Random, content: bytes) -> bytes:
    """Replaces a value in JSON by one of another type."""
    return retyped(rng, content, lambda _: rng.choice(ODD))


def drop(rng: random.Random, content: bytes) -> bytes:
    """Drops a key or an entry in JSON."""
    return retyped(rng, content, None)


def double(rng: random.Random, content: bytes) -> bytes:
    """Repeats the keys of a JSON object."""
    text = content.strip()
    if not text.startswith(b"{") or len(text) < 3:
        return content + content
    return b"{" + text[1:-1] + b"," + text[1:-1] + b"}"


def retyped(rng: random.Random, content: bytes, value: Callable[[Any], Any] | None) -> bytes:
    """Replaces or drops one value in JSON, in one line of it, or in the header of safetensors.

    Other content has bits flipped.
    """
    length = int.from_bytes(content[:8], "little")
    if content[8:9] == b"{" and 1 < length <= len(content) - 8:
        header = retyped(rng, content[8 : 8 + length], value)
        return len(header).to_bytes(8, "little") + header + content[8 + length :]
    lines = content.splitlines()
    try:
        parsed, line = json.loads(content), None
    except (ValueError, RecursionError):
        line = rng.randrange(len(lines)) if lines else 0
        try:
            parsed = json.loads(lines[line])
        except (ValueError, IndexError, RecursionError):
            return flip(rng, content)
    places = list(_places(parsed))
    if not places:
        return json.dumps(rng.choice(ODD)).encode()
    holder, key = rng.choice(places)
    if value is None:
        del holder[key]
    else:
        holder[key] = value(holder[key])
    text = json.dumps(parsed).encode()
    if line is None:
        return text
    return b"\n".join([*lines[:line], text, *lines[line + 1 :], b""])


def _places(parsed: Any) -> Any:
    """Every container in parsed JSON with every key or index of it."""
    if isinstance(parsed, dict | list):
        for key in list(parsed) if isinstance(parsed, dict) else range(len(parsed)):
            yield parsed, key
            yield from _places(parsed[key])


MUTATIONS: Sequence[Callable[[random.Random, bytes], bytes]] = (
    flip,
    cut,
    empty,
    remove,
    insert,
    nest,
    retype,
    retype,
    retype,
    drop,
    double,
)


def damage(rng: random.Random, files: Sequence[Path]) -> tuple[Path, bytes, str]:
    """Damages one of some files in place.

    Returns:
        The file, its former content, and the name of the damage.
    """
    file = rng.choice(files)
    content = file.read_bytes()
    if rng.random() < 0.04 and len(files) > 1:
        changed, name = rng.choice([other for other in files if other != file]).read_bytes(), "swap"
    else:
        mutation = rng.choice(MUTATIONS)
        changed, name = mutation(rng, content), mutation.__name__
    put(file, changed)
    return file, content, name


def put(file: Path, content: bytes) -> None:
    """Writes a file anew; the former one stays mapped to memory where it is."""
    file.unlink()
    file.write_bytes(content)
