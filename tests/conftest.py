"""What all tests share: the real data, and small models."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from jaxtyping import install_import_hook

# Shapes in signatures are checked while tests run.
with install_import_hook(["meanshifter.ops", "meanshifter.model"], "beartype.beartype"):
    import meanshifter.model.segmenter
    import meanshifter.ops  # noqa: F401


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
