from __future__ import annotations

from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
from PIL import Image

import meanshifter as ms
from meanshifter.data import Folder
from meanshifter.evaluation.metrics import confusion_matrix
from meanshifter.evaluation.predictions import evaluate_predictions

NAMES = ["a", "b", "c"]


@pytest.fixture
def dataset(tmp_path: Path) -> Folder:
    """Three images of four classes, some pixels of which are ignored."""
    rng = np.random.default_rng(0)
    for part in ("images", "masks"):
        (tmp_path / "data" / part).mkdir(parents=True)
    (tmp_path / "data" / "classes.txt").write_text("sky\nroad\ntree\ncar\n")
    for name in NAMES:
        Image.fromarray(rng.integers(0, 256, (11, 13, 3), dtype=np.uint8)).save(tmp_path / f"data/images/{name}.png")
        mask = rng.choice([0, 1, 2, 3, 255], (11, 13)).astype(np.uint8)
        Image.fromarray(mask).save(tmp_path / f"data/masks/{name}.png")
    return Folder(tmp_path / "data", "all")


@pytest.fixture
def maps(tmp_path: Path, dataset: Folder) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    (tmp_path / "out").mkdir()
    return {name: rng.integers(0, 4, (11, 13)).astype(np.uint8) for name in NAMES}


def test_label_maps_of_every_spelling_give_the_same_scores(
    tmp_path: Path, dataset: Folder, maps: dict[str, np.ndarray]
) -> None:
    total = sum(confusion_matrix(dataset[i].labels, maps[dataset[i].name], 4, ignore=255) for i in range(3))
    palette = np.array(dataset.label_space.palette, np.uint8)
    spellings = {
        0: lambda labels: Image.fromarray(labels),
        1: lambda labels: Image.fromarray((labels + 1).astype(np.uint16)),
        2: lambda labels: Image.fromarray(palette[labels]),
    }
    for kind, write in spellings.items():
        for name, labels in maps.items():
            write(labels).save(tmp_path / "out" / f"{name}.png")
        result = evaluate_predictions(tmp_path / "out", dataset, label_offset=1 if kind == 1 else 0)
        np.testing.assert_array_equal(result.confusion, total)
        assert "made by any means" in str(result.protocol)


@pytest.mark.parametrize(("label_offset", "nothing"), [(0, 255), (1, 255), (1, 0)])
def test_pixels_without_a_class_are_wrong(
    label_offset: int, nothing: int, tmp_path: Path, dataset: Folder, maps: dict[str, np.ndarray]
) -> None:
    truths, written = [], []
    for name, labels in maps.items():
        values = labels + label_offset
        values[:3] = nothing
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / "out" / f"{name}.png")
        truth = dataset[NAMES.index(name)].labels
        truths.append(truth[truth != 255])
        written.append(np.where(values == nothing, -1, values.astype(int) - label_offset)[truth != 255])
    true, said = np.concatenate(truths), np.concatenate(written)
    result = evaluate_predictions(tmp_path / "out", dataset, label_offset=label_offset)
    for k, name in enumerate(dataset.label_space.names):  # as `intersect_and_union` of MMSegmentation counts
        both = np.sum((true == k) & (said == k))
        assert result.per_class[name].IoU == pytest.approx(100 * both / np.sum((true == k) | (said == k)))
        assert result.per_class[name].Acc == pytest.approx(100 * both / np.sum(true == k))
    assert result.aAcc == pytest.approx(100 * np.mean(true == said))
    assert f": {np.sum(said == -1)} pixels" in result.table()
    assert sum(result.to_dict()["missed"]) == np.sum(said == -1)


def test_what_is_wrong_is_named(tmp_path: Path, dataset: Folder, maps: dict[str, np.ndarray]) -> None:
    out = tmp_path / "out"
    with pytest.raises(ms.InputError, match=r"lacks 3 of 3 label maps \(a, b, c\)"):
        evaluate_predictions(out, dataset, allow_missing=True)
    for name in ("a", "b"):
        Image.fromarray(maps[name]).save(out / f"{name}.png")
    with pytest.raises(ms.InputError, match=r"lacks 1 of 3 label maps \(c\)"):
        evaluate_predictions(out, dataset)
    assert evaluate_predictions(out, dataset, allow_missing=True).protocol.images == 2
    Image.fromarray(maps["c"][:, :5]).save(out / "c.png")
    with pytest.raises(ms.InputError, match=r"c\.png: \(11, 5\) pixels .* \(11, 13\)"):
        evaluate_predictions(out, dataset)
    Image.fromarray(maps["c"] + 9).save(out / "c.png")
    with pytest.raises(ms.InputError, match=r"c\.png: values .* outside the label map \(0-3, 255\).*--label-offset"):
        evaluate_predictions(out, dataset)
    (out / "c.png").write_bytes(b"")
    with pytest.raises(ms.InputError, match=r"c\.png: not an image .*, or save it as PNG$"):
        evaluate_predictions(out, dataset)
    with pytest.raises(ms.InputError, match=r"--predictions: .*/nowhere"):
        evaluate_predictions(tmp_path / "nowhere", dataset)


def test_where_class_0_can_be(tmp_path: Path, dataset: Folder, maps: dict[str, np.ndarray]) -> None:
    for name, labels in maps.items():
        Image.fromarray(labels.astype(np.uint8)).save(tmp_path / f"{name}.png")
    for label_offset in (-1, 254, 300):
        with pytest.raises(ms.InputError, match=rf"--label-offset: {label_offset}; "):
            evaluate_predictions(tmp_path, dataset, label_offset=label_offset)
    next(tmp_path.glob("*.png")).unlink()
    some = evaluate_predictions(tmp_path, dataset, allow_missing=True)
    assert f"{len(maps) - 1} of {len(maps)} images" in str(some.protocol)
    assert "first" not in str(some.protocol)


def test_two_label_maps_of_one_name_are_refused(tmp_path: Path, dataset: Folder, maps: dict[str, np.ndarray]) -> None:
    for name, labels in maps.items():
        Image.fromarray(labels).save(tmp_path / "out" / f"{name}.png")
    Image.fromarray(maps["b"]).save(tmp_path / "out" / "b.bmp")
    with pytest.raises(ms.InputError, match=r"b\.bmp and .*b\.png"):
        evaluate_predictions(tmp_path / "out", dataset)


def test_names_pair_in_both_spellings_of_unicode(tmp_path: Path, maps: dict[str, np.ndarray]) -> None:
    composed, decomposed = (normalize(form, "Stra\N{LATIN SMALL LETTER U WITH DIAERESIS}be") for form in ("NFC", "NFD"))
    assert composed != decomposed
    for part in ("images", "masks"):
        (tmp_path / "own" / part).mkdir(parents=True)
    Image.new("RGB", (13, 11)).save(tmp_path / "own/images" / f"{composed}.png")
    Image.fromarray(maps["a"]).save(tmp_path / "own/masks" / f"{decomposed}.png")
    (tmp_path / "own/classes.txt").write_text("sky\nroad\ntree\ncar\n")
    Image.fromarray(maps["a"]).save(tmp_path / "out" / f"{decomposed}.PNG")
    data = Folder(tmp_path / "own", "all")
    assert evaluate_predictions(tmp_path / "out", data).aAcc == 100
    Image.new("RGB", (13, 11)).save(tmp_path / "own/images" / f"{decomposed}.png")
    with pytest.raises(ms.InputError, match="same name"):
        Folder(tmp_path / "own", "all")


def test_the_share_of_ignored_pixels_is_told(tmp_path: Path, dataset: Folder, maps: dict[str, np.ndarray]) -> None:
    for name, labels in maps.items():
        Image.fromarray(labels).save(tmp_path / "out" / f"{name}.png")
    truth = np.concatenate([sample.labels.ravel() for sample in dataset])
    result = evaluate_predictions(tmp_path / "out", dataset)
    assert result.ignored == np.sum(truth == 255) > 0
    assert result.to_dict()["ignored_share"] == pytest.approx(np.mean(truth == 255))
    assert f"{result.ignored:,} pixels, {np.mean(truth == 255):.1%}" in result.table()
