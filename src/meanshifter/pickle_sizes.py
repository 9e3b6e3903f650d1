"""What a pickle would build, without building it: how large its parts are, and which names it asks for.

A few bytes can ask for a great deal: a tuple that holds another twice, that one a third twice, and so on, which is a
billion elements to whoever hashes it; a `bytearray` of a gigabyte; a copy of a long list for every six bytes.
"""

from __future__ import annotations

import pickletools
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Final, Protocol

LIMIT: Final = 100_000
"""Elements of one tuple, those of the tuples in it included; torch's own have less than ten."""
DEEPEST: Final = 100
"""Tuples in tuples; hashing one that is nested too deeply ends the process."""
PICKLES: Final = 5
"""In a row, at the start of a file of torch.save before version 1.6."""
COPIES: Final = (65_536, 16)
"""Elements and characters that its calls may copy: so many, and so many more for each byte of the pickle."""


class Refused(Exception):  # noqa: N818 (not an error of ours: it is told as an InputError that names the file)
    """What a pickle asks for and is not given."""


@dataclass(slots=True)
class Value:
    """What stands for an object."""

    kind: str = "other"
    """"number", "text", "none", "name", "tuple", "list", "dict", "bytes", "inert", "storage", "tensor", "other"."""
    literal: Any = None
    """The number or text itself, or the full name of what is imported."""
    parts: tuple[Value, ...] = ()
    """Of a tuple."""
    elements: int = 1
    """Of a tuple, those of the tuples in it included."""
    depth: int = 0
    length: int = 0
    """What a copy would take: elements or characters."""
    nbytes: int = 0
    """Of a storage; of a tensor, what it repeats beyond those."""


class Calls(Protocol):
    """What may be called, and what comes of it."""

    def call(self, name: str, args: tuple[Value, ...]) -> Value:
        """The result of calling `name`, or `Refused`."""

    def storage(self, parts: Sequence[Value]) -> Value:
        """The storage that a persistent id stands for, or `Refused`."""

    def build(self, made: Value, state: Value) -> None:
        """Let an object take its state, or raise `Refused`."""


class Walk:
    """The operations that torch's restricted unpickler knows, upon values in place of objects."""

    def __init__(self, calls: Calls) -> None:
        self.calls = calls
        self.copied = 0

    def pickle(self, stream: IO[bytes]) -> Value:
        """The object of the pickle at the start of `stream`, which is read to its end.

        Raises:
            Refused: it asks for what is not given.
            Exception: it is no pickle of operations that torch knows: ValueError, IndexError and more.
        """
        start = stream.tell()
        self.copied, self._memo, self._stack, self._outer = 0, dict[int, Value](), list[Value](), list[list[Value]]()
        for op, arg, _ in pickletools.genops(stream):
            if op.name != "STOP":
                self._step(op.name, arg)
        few, each = COPIES
        if self.copied > few + each * (stream.tell() - start):
            raise Refused(f"its {stream.tell() - start:,} bytes make copies of {self.copied:,} elements")
        return self._stack.pop()

    def _step(self, name: str, arg: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(_LITERALS[name](arg))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[arg] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[arg])
        elif name == "MARK":
            self._outer.append(stack)
            self._stack = []
        elif name in _TUPLES:
            count = _TUPLES[name]
            parts = self._marked() if count is None else [stack.pop() for _ in range(count)][::-1]
            self._stack.append(_tuple(parts))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(name)
        elif name != "PROTO":
            self._act(name, stack.pop())

    def _marked(self) -> list[Value]:
        """What came since the last mark."""
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _fill(self, name: str) -> None:
        count = {"APPEND": 1, "SETITEM": 2}.get(name)
        items = self._marked() if count is None else [self._stack.pop() for _ in range(count)][::-1]
        filled, keyed = self._stack[-1], name.startswith("SET")
        if filled.kind != ("dict" if keyed else "list"):
            raise ValueError(f"{name} of a {filled.kind}")
        filled.length += sum(item.elements for item in items)
        self.copied += sum(key.elements - 1 for key in items[::2]) if keyed else 0  # each is hashed

    def _act(self, name: str, top: Value) -> None:
        """What calls something, or asks the file for something."""
        stack = self._stack
        if name in ("REDUCE", "NEWOBJ"):
            stack.append(self._call(stack.pop(), top))
        elif name == "BUILD":
            self.copied += top.length
            self.calls.build(stack[-1], top)
        elif name == "BINPERSID":
            stack.append(self.calls.storage(top.parts))
        else:
            raise ValueError(f"{name} is no operation of torch.save")

    def _call(self, called: Value, args: Value) -> Value:
        if called.kind != "name":
            raise Refused(f"it calls a {called.kind}")
        if args.kind != "tuple":
            raise Refused(f"it calls {called.literal} with a {args.kind}")
        self.copied += sum(part.length for part in args.parts)
        return self.calls.call(called.literal, args.parts)


def _tuple(parts: Sequence[Value]) -> Value:
    elements, depth = 1 + sum(part.elements for part in parts), 1 + max((part.depth for part in parts), default=0)
    if elements > LIMIT or depth > DEEPEST:
        raise Refused(f"a tuple in it holds tuples over and over, more than {LIMIT:,} elements or {DEEPEST} levels")
    return Value("tuple", parts=tuple(parts), elements=elements, depth=depth, length=elements - 1)


def _text(arg: str) -> Value:
    return Value("text", arg, length=len(arg))


def _number(arg: float) -> Value:
    return Value("number", arg)


_LITERALS: Final[dict[str, Callable[[Any], Value]]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), _number),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), _text),
    "NEWTRUE": lambda _: Value("number", True),
    "NEWFALSE": lambda _: Value("number", False),
    "NONE": lambda _: Value("none"),
    "EMPTY_LIST": lambda _: Value("list"),
    "EMPTY_DICT": lambda _: Value("dict"),
    "EMPTY_SET": lambda _: Value("other"),
    "GLOBAL": lambda arg: Value("name", full_name(arg)),
}
_TUPLES: Final[Mapping[str, int | None]] = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "TUPLE": None}


def full_name(imported: str) -> str:
    """`module member` of a pickle as one name, as Python 3 and torch call it."""
    module, _, member = imported.partition(" ")
    if (module, member) in NAME_MAPPING:
        module, member = NAME_MAPPING[module, member]
    return f"{IMPORT_MAPPING.get(module, module)}.{member}"


def names_asked(stream: IO[bytes]) -> Iterator[str]:
    """The names of modules and their members in the pickles at the start of `stream`, as far as it is some."""
    with suppress(Exception):  # pickletools raises ValueError and more
        for _ in range(PICKLES):
            yield from _names(stream)


def _names(stream: IO[bytes]) -> Iterator[str]:
    """Those of one pickle. Texts that a pickle has put aside are not followed to where it takes them up again."""
    texts: list[str] = []
    for op, arg, _ in pickletools.genops(stream):
        if "UNICODE" in op.name or "STRING" in op.name:
            texts.append(str(arg))
        elif op.name in ("GLOBAL", "INST"):
            yield ".".join(str(arg).split(" "))
        elif op.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])
