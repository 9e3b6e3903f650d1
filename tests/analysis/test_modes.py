from __future__ import annotations

import io
import re
import sys
from base64 import b64decode
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.analysis import modes as study
from meanshifter.analysis.modes import TOLERANCE, Modes, classical_mean_shift, find_modes, principal_plane
from meanshifter.analysis.modes_page import all_pictures, like, mode_colors, segments, steps_shown, write_modes
from meanshifter.errors import InputError
from meanshifter.evaluation.diagnostics import count_modes, modes_of, spread

SMALL = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
SIZES = (40, 25, 10)


def model(preset: str = "meanshifter-ti16", **mean_shift: object) -> ms.Segmenter:
    """A small random model, under whose narrow kernel tokens do not all become their mean."""
    torch.manual_seed(0)
    made = ms.create_model(
        preset, num_classes=2, image_size=32, mean_shift=mean_shift or None, encoder_args=SMALL, drop_path=0.0
    )
    if made.mean_shift is not None:
        with torch.no_grad():
            made.mean_shift.project.weight.mul_(40)
    return made


def photo(H: int = 44, W: int = 60) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def reader(made: ms.Segmenter) -> ms.Predictor:
    return ms.Predictor(made, window=None, short_side=None)


def blobs() -> tuple[torch.Tensor, npt.NDArray[np.int64]]:
    """Well separated clusters in 8 dimensions, shuffled, and the cluster of each token; cluster 0 is the largest."""
    draw = torch.Generator().manual_seed(0)
    truth = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    truth = truth[torch.randperm(len(truth), generator=draw)]
    tokens = 20 * torch.eye(8)[truth] + 0.5 * torch.randn(len(truth), 8, generator=draw)
    return tokens.double(), truth.numpy()


@pytest.fixture(scope="module")
def found() -> Modes:
    return find_modes(reader(model()), photo(), layers=4)


def test_well_separated_clusters_are_found_and_scikit_learn_agrees() -> None:
    tokens, truth = blobs()
    ours = modes_of(tokens, 0.3 * spread(tokens)).numpy()
    np.testing.assert_array_equal(ours, truth)
    np.testing.assert_array_equal(classical_mean_shift(tokens, 0.25).labels, truth)


@pytest.mark.parametrize("factor", [1e-3, 1.0, 1e4])
def test_the_tolerance_is_relative(factor: float) -> None:
    tokens, truth = blobs()
    moved = factor * tokens + 7
    np.testing.assert_array_equal(modes_of(moved, 0.3 * spread(moved)).numpy(), truth)


def test_where_no_bandwidth_can_be_estimated_only_equal_tokens_are_of_one_cluster() -> None:
    tokens = torch.tensor([[0.0, 0], [1, 0], [0, 0]], dtype=torch.float64)
    reference = classical_mean_shift(tokens, 0.1)
    assert reference.bandwidth == 0
    assert reference.labels.tolist() == [0, 1, 0]


def test_the_plane_keeps_what_lies_in_it_and_is_one_for_all_states() -> None:
    torch.manual_seed(0)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0]
    inside = torch.cat([torch.randn(3, 20, 2).double() * torch.tensor([5, 2]), torch.zeros(3, 20, 4)], -1)
    plane, explained = principal_plane(inside @ turn)
    assert sum(explained) == pytest.approx(1)
    assert explained[0] > explained[1]
    here, there = plane.flatten(0, 1), inside.flatten(0, 1)
    torch.testing.assert_close(torch.cdist(here, here), torch.cdist(there, there))


def test_steps_are_those_of_the_block(found: Modes) -> None:
    made = model().eval()
    assert made.mean_shift is not None
    with torch.inference_mode():
        tokens, grid = made.encode(made.normalize(photo()))
        states = made.mean_shift.trajectory(tokens, 4)[:, 0]
    assert found.grid == grid == (6, 8)
    assert found.labels.shape == (5, 48)
    assert found.radius == pytest.approx(TOLERANCE * spread(states[0]))
    assert [len(found.sizes(step)) for step in range(5)] == [count_modes(state, found.radius) for state in states]
    assert len({len(found.sizes(step)) for step in range(5)}) > 1
    torch.testing.assert_close(torch.tensor(found.plane), principal_plane(states.double())[0], atol=1e-3, rtol=1e-3)
    assert found.diagnostics[0]["variance"] == 1
    assert all("neighbors" in row for row in found.diagnostics[1:])


def test_the_radius_is_that_of_the_start_so_that_a_collapse_is_one_mode() -> None:
    made = model()
    assert made.mean_shift is not None
    with torch.no_grad():
        made.mean_shift.project.weight.mul_(1e-3)  # so wide a kernel that every token becomes the mean of all
    found = find_modes(reader(made), photo(), layers=2)
    assert [len(found.sizes(step)) for step in range(3)][1:] == [1, 1]
    assert len(found.sizes(0)) > 1
    assert found.diagnostics[1]["variance"] < 1e-6


def test_the_image_is_resized_as_the_predictor_does_and_training_flags_stay() -> None:
    made = model().train()
    found = find_modes(ms.Predictor(made, short_side=22, long_side=30), photo(), layers=1)
    assert found.image.shape == (22, 30, 3)
    assert found.grid == (3, 4)
    assert all(module.training for module in made.modules())


def test_every_mode_has_a_color_of_its_own_and_keeps_it(found: Modes) -> None:
    colors = mode_colors(found)
    labels = [*found.labels, *(reference.labels for reference in found.references)]
    assert len(colors) == len(labels)
    for shades, modes in zip(colors, labels, strict=True):
        pairs = {(tuple(shade), mode) for shade, mode in zip(shades.tolist(), modes.tolist(), strict=True)}
        assert len(pairs) == len({shade for shade, _ in pairs}) == len({mode for _, mode in pairs})
    last = np.array([0, 0, 0, 0, 1, 1, 2])
    assert like(np.array([1, 0, 0, 0, 2, 2, 2]), last).tolist() == [3, 0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(like(last, last), last)


def test_segments_are_squares_over_the_image(found: Modes) -> None:
    colors = mode_colors(found)[0]
    picture = segments(found, colors)
    assert picture.shape == found.image.shape == (44, 60, 3)
    row, column = 43, 59  # in the last patch, of which the padding is cut off
    expected = 0.4 * found.image[row, column] + 0.6 * colors[-1]
    np.testing.assert_allclose(picture[row, column], expected, atol=0.51)


def test_of_many_steps_some_are_shown(found: Modes) -> None:
    assert steps_shown(found) == [0, 1, 2, 3, 4]
    long = find_modes(reader(model(layers=3)), photo(16, 16), layers=40)
    assert steps_shown(long) == [0, 3, 5, 10, 15, 20, 25, 30, 35, 40]


def test_the_page_is_one_file_that_needs_nothing_else(found: Modes, tmp_path: Path) -> None:
    page = write_modes(found, tmp_path, image=Path("a<b>.jpg"), model="runs/x", command=["meanshifter", "modes"])
    text = page.read_text("utf-8")
    assert not re.search(r"https?:|@import|url\(|<script|<link|<b>", text)
    sources = re.findall(r'src="([^"]*)"', text)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    shown = {np.asarray(Image.open(io.BytesIO(b64decode(source.split(",")[1])))).tobytes() for source in sources}
    for name, pixels in all_pictures(found).items():
        with Image.open(tmp_path / name) as picture:
            np.testing.assert_array_equal(np.asarray(picture), pixels)
        assert pixels.tobytes() in shown
    for step in range(5):
        assert f"<td>{len(found.sizes(step))}</td>" in text
    assert f"{found.diagnostics[4]['variance']:.4g}" in text
    assert f"{found.references[0].bandwidth:.3g}" in text


@pytest.mark.parametrize(
    ("preset", "arguments", "message"),
    [
        ("segmenter-ti16", {}, "model: has no mean shift block"),
        ("meanshifter-pixel-ti16", {}, "model: .*pixel_shift.*predict --mean-shift-layers"),
        ("meanshifter-ti16", {"layers": 0}, "layers: 0; .* 1 to 100"),
        ("meanshifter-ti16", {"layers": 101}, "layers: 101"),
        ("meanshifter-ti16", {"tolerance": 0.0}, "tolerance: 0.0"),
        ("meanshifter-ti16", {"tolerance": float("nan")}, "tolerance: nan"),
    ],
)
def test_wrong_arguments_are_refused(preset: str, arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_modes(reader(model(preset)), photo(), **arguments)  # type: ignore[arg-type]


def test_images_without_modes_to_tell_apart_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="all of its 1 patch encodings are equal"):
        find_modes(reader(model()), photo(8, 8))
    monkeypatch.setattr(study, "MAX_TOKENS", 47)
    with pytest.raises(InputError, match=r"image: 60×44 .* 48 .* 47; .* --short-side"):
        find_modes(reader(model()), photo())


def test_a_diverged_model_is_refused() -> None:
    made = model()
    assert made.mean_shift is not None
    with torch.no_grad():
        made.mean_shift.project.weight.fill_(torch.nan)
    with pytest.raises(InputError, match="not finite"):
        find_modes(reader(made), photo())


@pytest.mark.parametrize("name", ["sklearn.cluster", "matplotlib.figure"])
def test_a_missing_library_is_named_with_its_remedy(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r'is not installed; pip install "\.\[study\]"'):
        find_modes(reader(model()), photo())
