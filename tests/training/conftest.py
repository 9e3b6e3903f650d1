from __future__ import annotations

from pathlib import Path

import pytest

from meanshifter.training.config import TrainConfig
from meanshifter.training.parsing import parse_recipe

TINY = """
data: {name: shapes, val_pattern: "*[2-9]*", workers: 0}
model:
  preset: segmenter-ti16
  encoder: vit_tiny_patch16_224
  encoder_args: {patch_size: 16, embed_dim: 24, depth: 2, num_heads: 2}
  drop_path: 0.5
augment: {crop: [64, 64], resize_base: null}
optimizer: {name: adamw, lr: 1.0e-3, head_lr: 2.0e-3, min_lr: 1.0e-5, weight_decay: 0.05}
ema: 0.9
steps: 8
batch_size: 2
log_every: 2
save_every: 3
evaluation: {interval: 4, window: null, short_side: null, limit: 2}
"""


@pytest.fixture(scope="session")
def tiny_text() -> str:
    """A recipe of eight steps on the 16 generated images whose numbers have no digit but 0 and 1."""
    return TINY


@pytest.fixture
def tiny(tmp_path: Path) -> TrainConfig:
    """A run of eight steps on generated images."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    return parse_recipe(tmp_path / "tiny.yaml", ["--out", str(tmp_path / "run")])
