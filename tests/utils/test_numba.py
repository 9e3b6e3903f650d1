from __future__ import annotations

import subprocess
import sys

import pytest

USE = """
import numpy as np, torch
import meanshifter as ms
from meanshifter.data.augment import augment
from meanshifter.data.augment_config import AugmentConfig
logits = torch.randn(1, 5, 4, 4)
print(ms.ops.upsampled_argmax(logits, (64, 64)).float().mean().item() >= 0)
print(ms.ops.upsampled_cross_entropy(logits, torch.zeros(1, 64, 64, dtype=torch.uint8)).item() > 0)
image, labels = np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)
half = (0.5, 0.5, 0.5)
print(augment(image, labels, AugmentConfig(), np.random.default_rng(0), mean=half, std=half, ignore=255)[0].shape)
"""
NO_NUMBA = "import sys; sys.modules['numba'] = None\n"
NO_CACHE = "import numba.core.caching as c; c.CacheImpl._locator_classes = []\n"


@pytest.mark.parametrize("before", [NO_NUMBA, NO_CACHE], ids=["numba is missing", "no folder can keep the kernels"])
def test_everything_works_where(before: str) -> None:
    done = subprocess.run([sys.executable, "-c", before + USE], capture_output=True, text=True, check=False)
    assert done.stdout.split("\n")[:3] == ["True", "True", "(3, 512, 512)"], done.stderr
    assert done.stderr == ""
