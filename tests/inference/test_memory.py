"""Out of memory: fewer windows per pass, the same label map, and a message if nothing helps."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import meanshifter as ms
from meanshifter.errors import RunError, is_out_of_memory
from tests import commands

IMAGE = np.random.default_rng(0).integers(0, 256, (150, 170, 3), dtype=np.uint8)
READING: dict[str, Any] = {"window": 64, "window_stride": 32, "short_side": None}
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried …"),
    Exception("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Failed to allocate memory for requested buffer"),
]


def narrow(model: ms.Segmenter, room: int, error: BaseException) -> list[int]:
    """Make the model raise `error` above `room` windows; the returned list records the sizes of its passes."""
    passes: list[int] = []
    inner = model.logits_at

    def logits_at(images: Tensor, layers: Any) -> list[Tensor]:
        passes.append(len(images))
        if len(images) > room:
            raise error
        return inner(images, layers)

    model.logits_at = logits_at  # type: ignore[method-assign]
    return passes


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "python", "cpu", "onnx"])
def test_passes_are_halved_once_for_all_images(tiny_model: Callable[..., ms.Segmenter], error: BaseException) -> None:
    expected = ms.Predictor(tiny_model(), **READING, batch_size=3)(IMAGE).labels
    model = tiny_model()
    passes = narrow(model, 3, error)
    predictor = ms.Predictor(model, **READING, batch_size=12)
    notice = r"batch_size: 12 windows of 64×64 pixels .* memory of cpu.* 3 .*--batch-size 3"
    with pytest.warns(UserWarning, match=notice) as caught:
        first = predictor(IMAGE).labels
    assert len(caught) == 1
    assert passes[:3] == [12, 6, 3]
    assert max(passes[3:]) == 3
    passes.clear()
    second = predictor(IMAGE).labels  # warnings are errors: no further warning
    assert max(passes) == 3
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(second, expected)


def test_a_window_that_does_not_fit_alone_is_named(tiny_model: Callable[..., ms.Segmenter]) -> None:
    model = tiny_model()
    narrow(model, 0, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(ms.InputError, match=r"window: .*64×64 pixels .*--window 32"):
        ms.Predictor(model, **READING)(IMAGE)


def test_other_errors_are_not_converted(tiny_model: Callable[..., ms.Segmenter]) -> None:
    model = tiny_model()
    passes = narrow(model, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        ms.Predictor(model, **READING)(IMAGE)
    assert len(passes) == 1
    assert not is_out_of_memory(RunError("out of memory, but reported already"))
    assert is_out_of_memory(RuntimeError("could not create a primitive"))


@pytest.mark.skipif(sys.platform != "linux", reason="limits on memory are those of Linux")
def test_a_process_with_limited_memory_halves_passes_too(
    tiny_model: Callable[..., ms.Segmenter], tmp_path: Path
) -> None:
    tiny_model(patch=16).save(tmp_path / "model")
    Image.fromarray(np.tile(IMAGE, (6, 6, 1))).save(tmp_path / "a.png")
    code = f"""
import resource, sys
import meanshifter as ms
predictor = ms.Predictor(ms.load_model({str(tmp_path / "model")!r}), window=512, window_stride=128, short_side=None)
expected = predictor({str(tmp_path / "a.png")!r}).labels
predictor.batch_size = 25
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 60_000_000, resource.RLIM_INFINITY))
found = predictor({str(tmp_path / "a.png")!r}).labels
print(int((found == expected).mean() > 0.999))
"""
    done = commands.run(code=code)
    assert done.stdout.split() == ["1"], done.stderr
    assert "25 windows of 512×512 pixels do not fit into the memory of cpu" in done.stderr
