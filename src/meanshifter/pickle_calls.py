"""What a file of torch.save may call while it is unpickled, and of what size: the rules behind `pickle_sizes.Walk`.

Everything that torch allows is harmless for what it does, not for how much of it: `bytearray(2**30)`, `FloatTensor` of
a number, a tensor laid over a storage that is smaller (which torch enlarges), bytes that are encoded over and over.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import Any, Final, TypeGuard

from meanshifter.pickle_sizes import Refused, Value

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
    """The calls of one file.

    Args:
        inert: names that become stand-ins, which take anything and keep nothing.
        records: bytes of each tensor's record in an archive; None for a file that is none.
        room: bytes of the file, which its tensors together cannot be above.
    """

    def __init__(self, inert: Collection[str], records: Mapping[str, int] | None, room: int) -> None:
        self.inert, self.records, self.room = inert, records, room
        self._storages: dict[str, Value] = {}
        self._claimed = 0

    def call(self, name: str, args: tuple[Value, ...]) -> Value:
        """The result of calling `name`.

        Raises:
            Refused: it is not called by what torch.save writes, or not with such arguments.
        """
        if name in self.inert:
            return Value("inert")
        if name == "torch._tensor._rebuild_from_type_v2" and [part.kind for part in args[:3:2]] == ["name", "tuple"]:
            self.call(args[0].literal, args[2].parts)
            return Value("tensor")
        if name.startswith(_UTILS) or name in ("torch.nn.parameter.Parameter", "torch.Tensor"):
            return self._tensor(name, args)
        kinds = [part.kind for part in args]
        if name not in _PLAIN:
            raise Refused(f"it asks for {name}")
        if kinds not in _PLAIN[name] or (kinds == ["text", "text"] and args[1].literal not in _LATIN):
            raise Refused(f"it calls {name} with {_told(args)}")
        if name == "torch.Size":
            return args[0]
        return Value(_RESULTS.get(name, "other"), length=sum(part.length for part in args))

    def storage(self, parts: Sequence[Value]) -> Value:
        """The storage that a persistent id stands for; what is claimed for the first time counts.

        Raises:
            Refused: it is no storage, or larger than what the file has for it.
        """
        if len(parts) not in (5, 6) or parts[0].literal != "storage":
            raise Refused("it asks for what is no storage")
        kind, key, count = parts[1].literal, parts[2].literal, parts[4].literal
        size = _ITEM_BYTES.get(str(kind).removeprefix("torch.").removeprefix("storage.").removesuffix("Storage"))
        if size is None or not _is_key(key) or not _is_count(count):
            raise Refused(f"it asks for a storage of {kind!s:.60} that torch.save does not write")
        if key not in self._storages:
            self._check_room(key, count * size)
            self._storages[key] = Value("storage", literal=size, nbytes=count * size)
        if len(parts) == 6 and parts[5].kind != "none":
            return self._part(self._storages[key], parts[5].parts)
        return self._storages[key]

    def _check_room(self, key: str, nbytes: int) -> None:
        """Whether the file has so many bytes for one more storage."""
        there = self.room if self.records is None else self.records.get(f"data/{key}", -1)
        self._claimed += nbytes
        if nbytes > there or self._claimed > self.room:
            raise Refused(f"tensor {key!r:.40} claims {nbytes:,} bytes, which the file has not")

    def _part(self, whole: Value, view: Sequence[Value]) -> Value:
        """A part of a storage, as the first versions of torch shared them: a key, where it starts, and its length."""
        key, start, length = (part.literal for part in view) if len(view) == 3 else (None, None, None)
        if not _is_key(key) or not _is_count(start) or not _is_count(length):
            raise Refused("it asks for a part of a storage that torch.save does not write")
        size = whole.literal
        nbytes = max(min(length * size, whole.nbytes - start * size), 0)
        return self._storages.setdefault(key, Value("storage", literal=size, nbytes=nbytes))

    def _tensor(self, name: str, args: tuple[Value, ...]) -> Value:
        """A tensor that is made from storages or from another tensor."""
        kinds, short = [part.kind for part in args], name.removeprefix(_UTILS)
        if short in ("tensor", "tensor_v2", "tensor_v3", "qtensor"):
            item = _item_bytes(args[6]) if short == "tensor_v3" and len(args) > 6 else None
            made = _laid_over(args[:4], item)
            if short == "qtensor" and made.nbytes:
                raise Refused(f"a quantised tensor takes {made.nbytes:,} bytes that the file has not")
            return made
        if short == "sparse_tensor" and kinds[1:2] == ["tuple"] and not any(part.nbytes for part in args[1].parts):
            return Value("tensor")
        from_tensor = kinds[:1] == ["tensor"] and short in (
            "parameter",
            "parameter_with_state",
            "torch.nn.parameter.Parameter",
        )
        if from_tensor or short == "meta_tensor_no_storage" or (name == "torch.Tensor" and not args):
            return Value("tensor")
        raise Refused(f"it calls {name} with {_told(args)}")

    def build(self, made: Value, state: Value) -> None:
        """Let an object take its state.

        Raises:
            Refused: a tensor that would be laid over more than its storage, or an object that has no state.
        """
        if made.kind == "tensor" and len(state.parts) >= 4:
            _laid_over(state.parts[:4], None)
        elif made.kind not in ("inert", "dict"):
            raise Refused(f"it changes a {made.kind} by a {state.kind}")


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
"""What is called, and with which kinds of arguments."""
_RESULTS: Final = {"collections.OrderedDict": "dict", "collections.Counter": "dict", "_codecs.encode": "bytes"}


def is_harmless(name: str, inert: Collection[str]) -> bool:
    """Whether a pickle may ask for `name`, as far as the name tells."""
    return name in _PLAIN or name in inert or _TORCHS_OWN.fullmatch(name) is not None


def _laid_over(parts: Sequence[Value], item: int | None) -> Value:
    """A tensor over a storage, by offset, size and strides in elements; `item`: bytes of one, else the storage's."""
    if [part.kind for part in parts] != ["storage", "number", "tuple", "tuple"]:
        raise Refused("it lays a tensor over what is no storage of the file")
    storage, offset, size, strides = parts[0], parts[1].literal, *([e.literal for e in p.parts] for p in parts[2:])
    if not all(map(_is_count, [offset, *size, *strides])) or len(size) != len(strides):
        raise Refused("it lays a tensor over a storage by what are no sizes")
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
        raise Refused(f"it asks for numbers of kind {dtype.literal!s:.60}")
    return found.itemsize


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _told(args: Sequence[Value]) -> str:
    """Arguments in a few words."""
    words = [f"{part.literal!r:.40}" if part.kind in ("number", "text") else f"a {part.kind}" for part in args]
    return f"({', '.join(words)})"
