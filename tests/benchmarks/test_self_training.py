"""The study of self-training: what it hides, what it never uses, and where it continues."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import self_training

from meanshifter.cli.main import main
from meanshifter.data import Folder

TINY = (
    *("--steps", "2", "--batch_size", "2", "--size", "32", "--data.workers", "0", "--model.encoder_weights", "null"),
    *("--model.encoder", "vit_tiny_patch16_224"),
    *("--model.encoder_args", "{depth: 1, embed_dim: 16, num_heads: 2}"),
)


@pytest.fixture
def facades(shared: Path, tmp_path: Path) -> Path:
    """Ten training images and three test images, one of which is a training image under another name."""
    source, root = shared / "data" / "facades", tmp_path / "facades"
    chosen = {split: sorted((source / "images" / split).iterdir())[:10] for split in ("train", "test")}
    files = [("train", path.stem, path) for path in chosen["train"]]
    files += [("test", path.stem, path) for path in chosen["test"][:2]]
    files.append(("test", "renamed", chosen["train"][4]))
    for split, name, image in files:
        mask = source / "masks" / image.parent.name / f"{image.stem}.png"
        for kind, file in (("images", image), ("masks", mask)):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
            (root / kind / split / f"{name}{file.suffix}").symlink_to(file)
    (root / "labels.json").symlink_to(source / "labels.json")
    return root


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands of the study, which this process runs."""
    ran: list[tuple[str, ...]] = []

    def run(*words: object) -> None:
        ran.append(tuple(map(str, words)))
        assert main(list(ran[-1])) == 0

    monkeypatch.setattr(self_training, "command", run)
    return ran


def study(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["self_training.py", *map(str, words)])
    capsys.readouterr()
    self_training.main()
    out = capsys.readouterr().out
    found: dict[str, Any] = json.loads(out[out.rindex('{\n "name"') :])
    return found


def test_a_study_hides_masks_scores_both_models_and_continues_where_it_stopped(
    facades: Path,
    tmp_path: Path,
    commands: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "study"
    words = (facades, "--hidden", 0.7, "--val-split", "test", "--min-margin", 0.0, "--out", out)
    scores = study(monkeypatch, capsys, *words, "--fields", *TINY)
    assert [words[0] for words in commands] == ["train", "evaluate", "predict", "train", "evaluate"]
    assert (scores["shown"], scores["hidden_masks"], scores["scored"]) == (
        3,
        6,
        3,
    )  # one training image is a test image
    assert scores == json.loads((out / "scores.json").read_text())
    assert 0 <= scores["teacher"]["mIoU"] <= 100

    train, val, pseudo = Folder(out / "data", "train"), Folder(out / "data", "val"), Folder(out / "pseudo", "all")
    whole, test = Folder(facades, "train"), Folder(facades, "test")
    used = {path.resolve() for data in (train, pseudo) for path in data.image_paths}
    assert len(used) == 9
    assert used < {path.resolve() for path in whole.image_paths}
    assert not used & {path.resolve() for path in (*test.image_paths, *val.image_paths)}
    assert len(list((out / "data" / "masks" / "train").iterdir())) == 3  # the others are hidden

    (out / "scores.json").unlink()
    (out / "student.json").unlink()
    commands.clear()
    again = study(monkeypatch, capsys, *words, "--fields", *TINY)
    assert [words[0] for words in commands] == ["train", "evaluate"]
    assert again == scores
    with pytest.raises(SystemExit, match="was begun with"):
        study(monkeypatch, capsys, *words, "--seed", 1, "--fields", *TINY)
