"""Ways to break a file, drawn from a generator, so that a seed says which."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any
from zlib import crc32

import yaml

Mutator = Callable[[bytes, random.Random, list[bytes]], bytes]
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
STRANGE: tuple[Any, ...] = (
    *(None, True, -1, 0, 1e308, 2**31, 2**63, -(2**70), 10**5000, 0.5, float("nan"), float("inf"), "", "abc", "1e9"),
    *([], [[]], {}, {"a": 1}, [None], list(range(300)), "x" * 10_000, "a\nb\x1b[2J", "/dev/zero", "../../x", "\ud800"),
)


def flip_bits(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    broken = bytearray(data)
    for _turn in range(rng.choice((1, 1, 4, 16, 64))):
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def flip_early_bits(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Where headers are."""
    head = max(min(len(data), 256), 1)
    return flip_bits(data[:head], rng, others) + data[head:]


def truncate(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    return data[: rng.randrange(len(data))]


def swap_header(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other, count = rng.choice(others), rng.choice((4, 8, 16, 64))
    return other[:count] + data[count:]


def splice(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    other = rng.choice([data, *others])
    start, length = rng.randrange(len(other)), rng.choice((8, 64, 512, 4096))
    place = rng.randrange(len(data))
    return data[:place] + other[start : start + length] + data[place + rng.choice((0, length)) :]


def set_lengths(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """Numbers of 2, 4 or 8 bytes, such as sizes and offsets are."""
    broken = bytearray(data)
    for _turn in range(rng.choice((1, 1, 2, 8))):
        width = rng.choice((2, 4, 4, 8))
        place = rng.randrange(max(min(len(data), rng.choice((64, 512, len(data)))) - width, 1))
        value = rng.choice((*EXTREMES, rng.getrandbits(8 * width))) % 256**width
        broken[place : place + width] = value.to_bytes(width, rng.choice(("little", "big")))
    return bytes(broken)


def mend_checksums(data: bytes) -> bytes:
    """Right checksums in a PNG's chunks, without which decoders look no further; other files stay as they are."""
    if not data.startswith(b"\x89PNG"):
        return data
    mended, place = bytearray(data), 8
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        mended[end : end + 4] = crc32(mended[place + 4 : end]).to_bytes(4, "big") if end + 4 <= len(data) else b""
        place = end + 4
    return bytes(mended)


def replace_value(data: bytes, rng: random.Random, others: list[bytes]) -> bytes:
    """Something strange in place of a value of JSON or YAML."""
    write: Callable[[Any], str] = json.dumps if data.lstrip().startswith(b"{") else yaml.safe_dump
    try:
        tree = yaml.safe_load(data.replace(b"!!python/tuple", b""))  # JSON is YAML
    except Exception:  # broken before
        return flip_bits(data, rng, others)
    for _turn in range(rng.choice((1, 1, 2))):
        places = list(_places(tree))
        if not places:
            break
        parent, key = rng.choice(places)
        match rng.randrange(4):
            case 0 if isinstance(parent, dict):
                parent[rng.choice(("x" * 300, "a\nb", *map(str, parent)))] = rng.choice(STRANGE)
            case 1:
                del parent[key]
            case _:
                parent[key] = rng.choice(STRANGE)
    try:
        return write(tree).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):  # numbers too long to be written; values within themselves
        return flip_bits(data, rng, others)


def _places(tree: Any, depth: int = 0) -> Any:
    if depth < 20 and isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from _places(tree[key], depth + 1)


def insert_text(data: bytes, rng: random.Random, _: list[bytes]) -> bytes:
    """What YAML, JSON and lists of names trip over."""
    bombs = (
        b"!!python/object/apply:os.system ['touch forbidden']\n",
        b"a: &a [1,1]\nb: &b [*a,*a]\nc: &c [*b,*b]\n<<: {x: *c}\n",
        *(
            b"[" * 5000,
            b"{a: " * 3000,
            b"\xff\xfe\x00",
            b"\x00",
            b"\n- " * 50,
            b"!!timestamp x",
            b"!!int ''",
            b"9" * 5000,
        ),
        *(
            b"1:1:1:1",
            b"2001-99-99",
            b"? [a]\n: b\n",
            b"\t",
            b"\r\r",
            b"*x",
            b"&x",
            "\u2028\u202e".encode(),
            b"\x1b[2J",
        ),
    )
    place = rng.choice([0, len(data), rng.randrange(len(data)), data.find(b"\n") + 1])
    return data[:place] + rng.choice(bombs) + data[place:]


BINARY: tuple[Mutator, ...] = (flip_bits, flip_early_bits, truncate, swap_header, splice, set_lengths, set_lengths)
TEXT: tuple[Mutator, ...] = (flip_bits, truncate, splice, insert_text, replace_value, replace_value, replace_value)
