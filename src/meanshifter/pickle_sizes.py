"""What a pickle would build, without building it: how large its tuples are, and which names it asks for.

A tuple may hold another twice, that one a third twice, and so on: thirty such lines are a billion elements, which cost
nothing until the tuple is hashed as the key of a dict, or printed.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Final

LIMIT: Final = 100_000
"""Elements of one tuple, those of the tuples in it included; torch's own have less than ten."""
PICKLES: Final = 5
"""In a row, at the start of a file of torch.save before version 1.6."""
_MARK: Final = -1


def largest_tuple(stream: IO[bytes]) -> int:
    """Elements of the largest tuple in the pickles at the start of `stream`, up to the first that is above `LIMIT`.

    What is no pickle ends the search: whoever reads it will say what is wrong.
    """
    largest = 0
    with suppress(Exception):  # pickletools raises ValueError and more; a stack that underflows, IndexError
        for _ in range(PICKLES):
            for size in _sizes(stream):
                largest = max(largest, size)
                if largest > LIMIT:
                    return largest
    return largest


def _sizes(stream: IO[bytes]) -> Iterator[int]:
    """The size of each tuple of one pickle, from a stack of sizes in place of objects."""
    stack: list[int] = []
    memo: dict[int, int] = {}
    for op, arg, _ in pickletools.genops(stream):
        if "PUT" in op.name:
            memo[int(arg)] = stack[-1]  # type: ignore[arg-type]  # typed as any argument of any operation
        elif op.name == "MEMOIZE":
            memo[len(memo)] = stack[-1]
        elif op.name == "MARK":
            stack.append(_MARK)
        elif "GET" in op.name:
            stack.append(memo[int(arg)])  # type: ignore[arg-type]
        elif "TUPLE" in op.name:
            size = 1 + sum(_taken(stack, op))
            stack.append(size)
            yield size
        elif op.name == "DUP":
            stack.append(stack[-1])
        else:
            _taken(stack, op)
            stack += [1] * len(op.stack_after)


def _taken(stack: list[int], op: pickletools.OpcodeInfo) -> list[int]:
    """Remove from the stack what an operation takes."""
    taken: list[int] = []
    if pickletools.markobject in op.stack_before:
        while (top := stack.pop()) != _MARK:
            taken.append(top)
        left = op.stack_before.index(pickletools.markobject)
    else:
        left = len(op.stack_before)
    taken += [stack.pop() for _ in range(left)]
    return taken


def names_asked(stream: IO[bytes]) -> Iterator[str]:
    """The names of modules and their members in the pickles at the start of `stream`, as far as it is some."""
    with suppress(Exception):  # as above
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
