"""Simulate what a pickle would build, without building it: which names it asks for, and how large its parts are.

A few bytes can ask for a lot: nested tuples that each hold the next one twice, which are a billion elements when
hashed, or a copy of a long list for every six bytes.

Calls that torch allows are harmless in kind, but not in size: `bytearray(2**30)`, `FloatTensor` of a number, a tensor
over a smaller storage (which torch enlarges), bytes that are encoded over and over.
"""

from __future__ import annotations

import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import IO, Any, Final, TypeGuard

LIMIT: Final = 100_000
"""Maximum elements of a tuple, including nested tuples; torch's own have less than ten."""
DEEPEST: Final = 100
"""Maximum nesting of tuples; hashing one that is nested too deeply crashes the process."""
PICKLES: Final = 5
"""Consecutive pickles at the start of a torch.save file before version 1.6."""
COPIES: Final = (65_536, 16)
"""Elements and characters that calls may copy: a constant, plus a number per byte of the pickle."""


class Refused(Exception):  # noqa: N818 (reported as an InputError that names the file)
    """What a pickle asks for, and does not get."""


@dataclass(slots=True)
class Value:
    """Stands for an object of the pickle."""

    kind: str = "other"
    """number, text, none, name, tuple, list, dict, bytes, stub, storage, tensor or other."""
    literal: Any = None
    """The number or text itself, or the full name of an import."""
    parts: tuple[Value, ...] = ()
    """Elements of a tuple."""
    elements: int = 1
    """Number of elements of a tuple, including nested tuples."""
    depth: int = 0
    length: int = 0
    """Elements or characters that a copy would take."""
    nbytes: int = 0
    """Bytes of a storage, or the bytes of a tensor beyond its storage, which it repeats."""


class Walk:
    """The operations of torch's restricted unpickler, on `Value`s in place of objects."""

    def __init__(self, calls: TorchCalls) -> None:
        self.calls = calls
        self.copied = 0

    def pickle(self, stream: IO[bytes]) -> Value:
        """The object of the pickle at the start of `stream`, which is read to the end of the pickle.

        Raises:
            Refused: it asks for something that is not allowed.
            Exception: it is not a pickle of operations that torch knows: ValueError, IndexError and others.
        """
        start = stream.tell()
        self.copied, self._memo, self._stack, self._outer = 0, dict[int, Value](), list[Value](), list[list[Value]]()
        for op, arg, _ in pickletools.genops(stream):
            if op.name != "STOP":
                self._step(op.name, arg)
        few, each = COPIES
        if self.copied > few + each * (stream.tell() - start):
            raise Refused(f"its {stream.tell() - start:,} bytes copy {self.copied:,} elements")
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
        """The values since the last mark."""
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
        """Operations that call something, or ask the file for something."""
        stack = self._stack
        if name in ("REDUCE", "NEWOBJ"):
            stack.append(self._call(stack.pop(), top))
        elif name == "BUILD":
            self.copied += top.length
            self.calls.build(stack[-1], top)
        elif name == "BINPERSID":
            stack.append(self.calls.storage(top.parts))
        else:
            raise ValueError(f"torch.save does not use {name}")

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
        raise Refused(f"it nests tuples to more than {LIMIT:,} elements or {DEEPEST} levels")
    return Value("tuple", parts=tuple(parts), elements=elements, depth=depth, length=elements - 1)


_LITERALS: Final[dict[str, Callable[[Any], Value]]] = {
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"), partial(Value, "number")),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINSTRING"), lambda arg: Value("text", arg, length=len(arg))),
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
    """`module member` of a pickle as a dotted name, with the names of Python 3."""
    module, _, member = imported.partition(" ")
    if (module, member) in NAME_MAPPING:
        module, member = NAME_MAPPING[module, member]
    return f"{IMPORT_MAPPING.get(module, module)}.{member}"


def names_asked(stream: IO[bytes]) -> Iterator[str]:
    """Names of modules and their members in the pickles at the start of `stream`, as far as it is valid."""
    with suppress(Exception):  # pickletools raises ValueError and more
        for _ in range(PICKLES):
            yield from _names(stream)


def _names(stream: IO[bytes]) -> Iterator[str]:
    """Names in one pickle; texts that it memoizes and reuses are not tracked."""
    texts: list[str] = []
    for op, arg, _ in pickletools.genops(stream):
        if "UNICODE" in op.name or "STRING" in op.name:
            texts.append(str(arg))
        elif op.name in ("GLOBAL", "INST"):
            yield ".".join(str(arg).split(" "))
        elif op.name == "STACK_GLOBAL":
            yield ".".join(texts[-2:])


_ITEM_BYTES: Final = {
    **dict.fromkeys(("Untyped", "Byte", "Char", "Bool", "QInt8", "QUInt8", "QUInt4x2", "QUInt2x4"), 1),
    **dict.fromkeys(("Half", "BFloat16", "Short"), 2),
    **dict.fromkeys(("Float", "Int", "QInt32"), 4),
    **dict.fromkeys(("Double", "Long", "ComplexFloat"), 8),
    "ComplexDouble": 16,
}
_UTILS: Final = "torch._utils._rebuild_"
_TORCHS_OWN: Final = re.compile(r"torch\.(_utils\._rebuild_\w+|(storage\.)?\w+Storage|Size|device|\w+\d+)")
_LATIN: Final = ("latin1", "latin-1")


class TorchCalls:
    """The calls of one file; its methods raise `Refused` for anything that torch.save does not write.

    Args:
        stubs: names that become stubs, which accept any arguments and keep nothing.
        records: bytes of each tensor's record in an archive; None for other files.
        room: bytes of the file, which all its tensors together cannot exceed.
    """

    def __init__(self, stubs: Collection[str], records: Mapping[str, int] | None, room: int) -> None:
        self.stubs, self.records, self.room = stubs, records, room
        self._storages: dict[str, Value] = {}
        self._claimed = 0

    def call(self, name: str, args: tuple[Value, ...]) -> Value:
        """The result of calling `name`."""
        if name in self.stubs:
            return Value("stub")
        if name == "torch._tensor._rebuild_from_type_v2" and [part.kind for part in args[:3:2]] == ["name", "tuple"]:
            self.call(args[0].literal, args[2].parts)
            return Value("tensor")
        if name.startswith(_UTILS) or name in ("torch.nn.parameter.Parameter", "torch.Tensor"):
            return self._tensor(name, args)
        kinds = [part.kind for part in args]
        if name not in _PLAIN:
            raise Refused(f"it asks for {name}")
        if kinds not in _PLAIN[name] or (kinds == ["text", "text"] and args[1].literal not in _LATIN):
            raise Refused(f"it calls {name} with {_describe(args)}")
        if name == "torch.Size":
            return args[0]
        return Value(_RESULTS.get(name, "other"), length=sum(part.length for part in args))

    def storage(self, parts: Sequence[Value]) -> Value:
        """The storage of a persistent id; its bytes are counted once."""
        if len(parts) not in (5, 6) or parts[0].literal != "storage":
            raise Refused("it asks for an object that is not a storage")
        kind, key, count = parts[1].literal, parts[2].literal, parts[4].literal
        size = _ITEM_BYTES.get(str(kind).removeprefix("torch.").removeprefix("storage.").removesuffix("Storage"))
        if size is None or not _is_key(key) or not _is_count(count):
            raise Refused(f"it asks for a storage of {kind!s:.60} that torch.save does not write")
        if key not in self._storages:
            there = self.room if self.records is None else self.records.get(f"data/{key}", -1)
            self._claimed += count * size
            if count * size > there or self._claimed > self.room:
                raise Refused(f"tensor {key!r:.40} claims {count * size:,} bytes, which the file does not have")
            self._storages[key] = Value("storage", literal=size, nbytes=count * size)
        if len(parts) == 6 and parts[5].kind != "none":
            return self._part(self._storages[key], parts[5].parts)
        return self._storages[key]

    def _part(self, whole: Value, view: Sequence[Value]) -> Value:
        """A part of a storage, as shared by the first versions of torch: a key, where it starts, and its length."""
        key, start, length = (part.literal for part in view) if len(view) == 3 else (None, None, None)
        if not _is_key(key) or not _is_count(start) or not _is_count(length):
            raise Refused("it asks for a part of a storage that torch.save does not write")
        size = whole.literal
        nbytes = max(min(length * size, whole.nbytes - start * size), 0)
        return self._storages.setdefault(key, Value("storage", literal=size, nbytes=nbytes))

    def _tensor(self, name: str, args: tuple[Value, ...]) -> Value:
        """A tensor made from storages or from another tensor."""
        kinds, short = [part.kind for part in args], name.removeprefix(_UTILS)
        if short in ("tensor", "tensor_v2", "tensor_v3", "qtensor"):
            item = _item_bytes(args[6]) if short == "tensor_v3" and len(args) > 6 else None
            made = _laid_over(args[:4], item)
            if short == "qtensor" and made.nbytes:
                raise Refused(f"a quantized tensor takes {made.nbytes:,} bytes that the file does not have")
            return made
        if short == "sparse_tensor" and kinds[1:2] == ["tuple"] and not any(part.nbytes for part in args[1].parts):
            return Value("tensor")
        copies = ("parameter", "parameter_with_state", "torch.nn.parameter.Parameter")
        if (
            (kinds[:1] == ["tensor"] and short in copies)
            or short == "meta_tensor_no_storage"
            or (name == "torch.Tensor" and not args)
        ):
            return Value("tensor")
        raise Refused(f"it calls {name} with {_describe(args)}")

    def build(self, made: Value, state: Value) -> None:
        """Set the state of an object."""
        if made.kind == "tensor" and len(state.parts) >= 4:
            _laid_over(state.parts[:4], None)
        elif made.kind not in ("stub", "dict"):
            raise Refused(f"it sets the state of a {made.kind} to a {state.kind}")


_PLAIN: Final[Mapping[str, Sequence[list[str]]]] = {
    "collections.OrderedDict": ([], ["list"], ["dict"]),
    "collections.Counter": ([], ["dict"]),
    "builtins.set": ([], ["list"]),
    "builtins.bytearray": ([], ["bytes"], ["text", "text"]),
    "builtins.complex": (["number", "number"],),
    "_codecs.encode": (["text", "text"],),
    "torch.Size": (["tuple"],),
    "torch.device": (["text"], ["text", "number"]),
    "torch.serialization._get_layout": (["text"],),
}
"""Calls, and the kinds of arguments that they may have."""
_RESULTS: Final = {"collections.OrderedDict": "dict", "collections.Counter": "dict", "_codecs.encode": "bytes"}


def is_harmless(name: str, stubs: Collection[str]) -> bool:
    """Whether a pickle may ask for `name`, judging by the name alone."""
    return name in _PLAIN or name in stubs or _TORCHS_OWN.fullmatch(name) is not None


def _laid_over(parts: Sequence[Value], item: int | None) -> Value:
    """A tensor from storage, offset, size and strides in elements; `item`: bytes per element, None: the storage's."""
    if [part.kind for part in parts] != ["storage", "number", "tuple", "tuple"]:
        raise Refused("it makes a tensor from an object that is not a storage of the file")
    storage, offset, size, strides = parts[0], parts[1].literal, *([e.literal for e in p.parts] for p in parts[2:])
    if not all(map(_is_count, [offset, *size, *strides])) or len(size) != len(strides):
        raise Refused("it makes a tensor with invalid sizes")
    item = storage.literal if item is None else item
    last = offset + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))
    if 0 not in size and (last + 1) * item > storage.nbytes:
        raise Refused(f"a tensor {tuple(size)!s:.60} with strides {tuple(strides)!s:.60} is larger than its storage")
    repeated = prod(size) * item - storage.nbytes
    return Value("tensor", nbytes=max(repeated, 0))


def _is_key(value: Any) -> TypeGuard[str]:
    return isinstance(value, str) and value.isascii()


def _item_bytes(dtype: Value) -> int:
    import torch

    found = getattr(torch, str(dtype.literal).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise Refused(f"it asks for the dtype {dtype.literal!s:.60}")
    return found.itemsize


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _describe(args: Sequence[Value]) -> str:
    """Arguments in a few words."""
    words = [f"{part.literal!r:.40}" if part.kind in ("number", "text") else f"a {part.kind}" for part in args]
    return f"({', '.join(words)})"
