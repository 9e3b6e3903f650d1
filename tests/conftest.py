"""What all tests share: the real data, and small models."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Before torch may import triton, whose own functions are interpreted or compiled as this says at that time.
if not Path("/dev/nvidiactl").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import jaxtyping
import pytest
import torch
from hypothesis import settings
from jaxtyping import install_import_hook
from torch.utils._python_dispatch import TorchDispatchMode

# Threads that wait for each other make small work slow on busy machines, and another number of them rounds differently.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start

# A busy machine is no fault of the code's.
settings.register_profile("meanshifter", deadline=None)
settings.load_profile("meanshifter")

# Shapes in signatures are checked while tests run.
with install_import_hook(["meanshifter.ops", "meanshifter.model"], "beartype.beartype"):
    import meanshifter.model.segmenter
    import meanshifter.ops

import meanshifter as ms  # noqa: E402  (after the hook)

SLOW = (
    *("test_export.py", "test_processes.py", "test_predict_archive.py", "test_study.py", "test_checkpoints.py"),
    *("test_folds.py", "test_thesis.py", "test_study_rows.py", "test_documented_commands.py", "test_loss_terms.py"),
)

# What is imported stays: collections, of which pytest's and torch's are many, need not go through it.
gc.collect()
gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """One more than the cores, as many tests wait for other processes."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take minutes, so that none of them runs alone at the end."""
    items.sort(key=lambda item: item.path.name not in SLOW)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images and weights; tests that need it are skipped, with a reason, where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("MEANSHIFTER_TEST_DATA", default))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data in {folder}: set MEANSHIFTER_TEST_DATA to the folder that holds data/ and weights/")
    return folder


@pytest.fixture
def user() -> Iterator[None]:
    """Shapes are checked by the package alone, as they are for a user."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


class Largest(TorchDispatchMode):
    """Within the context, counts the elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else [out]:
            if isinstance(item, torch.Tensor):
                self.elements = max(self.elements, item.numel())
        return out


@pytest.fixture
def largest() -> Largest:
    """A watch over the sizes of tensors."""
    return Largest()


ModelFactory = Callable[..., ms.Segmenter]


@pytest.fixture(scope="session")
def tiny_model() -> ModelFactory:
    """Makes small random models, with logits far enough apart that rounding decides few pixels."""

    def make(preset: str = "meanshifter-ti16", num_classes: int = 7, patch: int = 8, **mean_shift: Any) -> ms.Segmenter:
        torch.manual_seed(0)
        model = ms.create_model(
            preset,
            num_classes=num_classes,
            image_size=32,
            mean_shift=mean_shift or None,
            drop_path=0.0,
            encoder="vit_tiny_patch16_224",
            encoder_args={"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": patch},
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
            if model.mean_shift is not None:  # a narrow kernel, under which tokens do not all become their mean
                model.mean_shift.project.weight.mul_(4)
        return model

    return make
