"""An archive in chunks, as it is listed on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from meanshifter.jobs.listing import Unit
from meanshifter.jobs.manifest import Done, Known, open_store
from meanshifter.jobs.ray import chunks


@pytest.mark.parametrize("size", [1, 2, 16])
def test_chunks_hold_all_images_and_the_last_says_what_else_there_was(tmp_path: Path, size: int) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "b.jp2", "c.GIF", "._a.png", "notes.txt"):
        (photos / name).touch()
    out = str(tmp_path / "out")
    found = list(chunks(Unit("folder", str(photos)), out, Known(Done(), open_store(out)), size))
    assert [entry.place for chunk in found for entry in chunk.entries] == ["a.png", "b.png", "c.png"]
    assert [chunk.passed for chunk in found[:-1] if chunk.passed] == []
    assert (found[-1].listed, found[-1].passed) == (3, {"hidden files": 1, ".txt": 1})
