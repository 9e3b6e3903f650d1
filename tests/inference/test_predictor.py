from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import meanshifter as ms
from meanshifter.data.labels import LabelSpace
from meanshifter.errors import InputError
from meanshifter.inference.encoding import WindowEncoder
from meanshifter.inference.preprocess import fitted_size, resize
from meanshifter.model.config import TokenMergingConfig

Pixels = npt.NDArray[np.uint8]
Make = Callable[..., ms.Segmenter]


def random_image(height: int, width: int, seed: int = 0) -> Pixels:
    """Return blocks of color with noise."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (height // 7 + 1, width // 7 + 1, 3))
    image = np.kron(blocks, np.ones((7, 7, 1)))[:height, :width] + rng.integers(-30, 30, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8)


def usual_logits(
    model: ms.Segmenter,
    image: Pixels,
    size: tuple[int, int],
    window: int | None,
    stride: int,
    layers: int | None,
) -> Tensor:
    """Slide inference in its plain form, with K × H × W values in float64 after the model."""
    H, W = size
    scaled = torch.from_numpy(resize(image, size).copy()).permute(2, 0, 1)[None].float()
    mean, std = torch.tensor(model.config.mean).view(3, 1, 1), torch.tensor(model.config.std).view(3, 1, 1)
    images = (scaled / 255 - mean) / std
    wh, ww = (H, W) if window is None else (min(window, H), min(window, W))
    total, count = (
        torch.zeros(1, model.label_space.num_classes, H, W, dtype=torch.float64),
        torch.zeros(1, 1, H, W),
    )
    for i in range(max(H - wh + stride - 1, 0) // stride + 1):
        for j in range(max(W - ww + stride - 1, 0) // stride + 1):
            y, x = min(i * stride, H - wh), min(j * stride, W - ww)
            z = model(images[..., y : y + wh, x : x + ww], mean_shift_layers=layers).double()
            padded = (z.shape[2] * model.patch_size, z.shape[3] * model.patch_size)
            wide = F.interpolate(z, size=padded, mode="bilinear", align_corners=False)
            total[..., y : y + wh, x : x + ww] += wide[..., :wh, :ww]
            count[..., y : y + wh, x : x + ww] += 1
    return F.interpolate(total / count, size=image.shape[:2], mode="bilinear", align_corners=False)[0]


def assert_same_labels(labels: npt.NDArray[Any], scores: Tensor) -> None:
    """Assert equality wherever the two best classes differ by more than rounding, which is nearly everywhere."""
    best = scores.topk(2, dim=0).values
    clear = (best[0] - best[1] > 1e-4).numpy()
    assert clear.mean() > 0.9
    expected = scores.argmax(0).numpy()
    assert len(np.unique(expected)) > 1
    np.testing.assert_array_equal(labels[clear], expected[clear])


@pytest.mark.parametrize("preset", ["segmenter-ti16", "meanshifter-mask-ti16"])
@pytest.mark.parametrize(
    ("height", "width", "window", "stride", "short_side"),
    [
        (61, 90, 32, 24, None),  # windows, no resizing
        (50, 70, 32, 32, 43),  # downsampled
        (40, 33, 30, 17, 57),  # upsampled; windows that are not a multiple of the patch
        (20, 75, 32, 20, None),  # lower than a window
        (53, 45, None, 480, None),  # whole image, padded by the model
        (53, 45, None, 480, 64),
        (5, 3, 32, 24, None),  # smaller than a patch
    ],
)
@torch.inference_mode()
def test_label_map_equals_plain_slide_inference(
    tiny_model: Make,
    preset: str,
    height: int,
    width: int,
    window: int | None,
    stride: int,
    short_side: int | None,
) -> None:
    model = tiny_model(preset).eval()
    image = random_image(height, width)
    predictor = ms.Predictor(
        model, window=window, window_stride=stride, short_side=short_side, long_side=96, batch_size=3
    )
    size = fitted_size(height, width, short_side=short_side, long_side=96, scale=1.0)
    labels = predictor(image).labels
    assert labels.shape == (height, width)
    assert labels.dtype == np.uint8
    if (height, width) == (5, 3):
        expected = usual_logits(model, image, size, window, stride, None)
        np.testing.assert_array_equal(labels, expected.argmax(0).numpy())
        return
    assert_same_labels(labels, usual_logits(model, image, size, window, stride, None))


@torch.inference_mode()
def test_flips_and_scales_average_probabilities(tiny_model: Make) -> None:
    model = tiny_model().eval()
    image = random_image(47, 66)
    predictor = ms.Predictor(
        model, window=32, window_stride=20, short_side=40, long_side=80, scales=(0.75, 1.5), flip=True
    )
    total = torch.zeros(model.label_space.num_classes, 47, 66, dtype=torch.float64)
    for scale in (0.75, 1.5):
        size = fitted_size(47, 66, short_side=40, long_side=80, scale=scale)
        total += usual_logits(model, image, size, 32, 20, None).softmax(0)
        # The mirror image of the resized image, as bilinear resizing is symmetric up to rounding to uint8.
        scaled = resize(image, size)[:, ::-1]
        mirrored = usual_logits(model, scaled, size, 32, 20, None)
        back = F.interpolate(mirrored.flip(-1)[None], size=(47, 66), mode="bilinear", align_corners=False)[0]
        total += back.softmax(0)
    assert_same_labels(predictor(image).labels, total / 4)


@torch.inference_mode()
def test_label_maps_at_several_depths_use_one_encoder_pass(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(layers=2, channels=12).eval()
    image = random_image(45, 51)
    expected = [usual_logits(model, image, (45, 51), 32, 24, steps) for steps in (3, 0, 2)]
    passes = []
    encode = model.encode

    def counting(images: Tensor) -> Any:
        passes.append(len(images))
        return encode(images)

    monkeypatch.setattr(model, "encode", counting)
    predictor = ms.Predictor(model, window=32, window_stride=24, short_side=None, batch_size=4)
    maps = predictor.label_maps(image, [3, 0, None])
    assert sum(passes) == 4
    for labels, scores in zip(maps, expected, strict=True):
        assert_same_labels(labels, scores)


def test_segmentations_at_several_depths_equal_those_of_separate_predictors(tiny_model: Make) -> None:
    model, image = tiny_model(layers=2, channels=12), random_image(45, 51)
    asked: dict[str, Any] = {"window": 32, "window_stride": 24, "short_side": None, "confidence": ["margin"]}
    asked["probabilities"] = model.label_space.names[:1]
    found = ms.Predictor(model, mean_shift_layers=1, **asked)(image, mean_shift_layers=[3, 0, None, 3])
    assert list(found) == [3, 0, 1]
    for steps, segmentation in found.items():
        alone = ms.Predictor(model, mean_shift_layers=steps, **asked)(image)
        np.testing.assert_array_equal(segmentation.labels, alone.labels)
        np.testing.assert_array_equal(segmentation.confidence["margin"], alone.confidence["margin"])
        for name, shares in alone.probabilities.items():
            np.testing.assert_array_equal(segmentation.probabilities[name], shares)
    single = ms.Predictor(model, **asked)(image, mean_shift_layers=3)
    np.testing.assert_array_equal(single.labels, found[3].labels)
    with pytest.raises(InputError, match="mean_shift_layers: 0 entries"):
        ms.Predictor(model)(image, mean_shift_layers=[])


def test_many_classes_make_uint16_labels(tiny_model: Make) -> None:
    model = tiny_model("segmenter-ti16", num_classes=300)
    labels = ms.Predictor(model, window=32, window_stride=24, short_side=None)(random_image(40, 40)).labels
    assert labels.dtype == np.uint16
    with torch.inference_mode():
        assert_same_labels(labels, usual_logits(model.eval(), random_image(40, 40), (40, 40), 32, 24, None))


def test_path_pil_image_and_array_give_one_result(tiny_model: Make, tmp_path: Path) -> None:
    predictor = ms.Predictor(tiny_model(), window=32, window_stride=24, short_side=40)
    image = random_image(30, 44)
    Image.fromarray(image).save(tmp_path / "photo.png")
    expected = predictor(image)
    for given in (tmp_path / "photo.png", str(tmp_path / "photo.png"), Image.fromarray(image)):
        segmentation = predictor(given)
        np.testing.assert_array_equal(segmentation.labels, expected.labels)
        np.testing.assert_array_equal(segmentation.image, image)


def test_pil_images_are_converted_and_turned_upright(tiny_model: Make, tmp_path: Path) -> None:
    picture = Image.fromarray(random_image(30, 44))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "turned.png", exif=exif)
    predictor = ms.Predictor(tiny_model(), window=32, window_stride=24, short_side=None)
    with Image.open(tmp_path / "turned.png") as turned:
        np.testing.assert_array_equal(predictor(turned).image, predictor(tmp_path / "turned.png").image)
        assert predictor(turned).labels.shape == (44, 30)
    palette = picture.quantize(16)
    palette.info["transparency"] = bytes(16)
    for other in (picture.convert("L"), picture.convert("CMYK"), picture.convert("RGBA"), palette):
        assert predictor(other).image.shape == (30, 44, 3)
    with pytest.raises(InputError, match=r"image: .* mode I;16"):
        predictor(Image.fromarray(np.zeros((4, 4), np.uint16)))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), r"float32; .*astype\(np.uint8\)"),
        (np.zeros((4, 4), np.uint8), r"shape \(4, 4\).*np.stack"),
        (np.zeros((3, 4, 5), np.uint8), r"shape \(3, 4, 5\).*transpose\(1, 2, 0\)"),
        (np.zeros((4, 5, 4), np.uint8), r"shape \(4, 5, 4\).*image\[..., :3\]"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"shape \(1, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), r"shape \(0, 5, 3\)"),
        (torch.zeros(3, 4, 5), r"float32; .*astype\(np.uint8\)"),
    ],
)
def test_other_arrays_are_refused_with_the_remedy(tiny_model: Make, image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ms.Predictor(tiny_model())(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_stride": 600}, "window_stride: 600 is above the window of 512"),
        ({"window": 0}, "window: 0 pixels"),
        ({"short_side": 0}, "short_side: 0 pixels"),
        ({"long_side": 100}, "long_side: 100 is below short_side 512"),
        ({"scales": ()}, "scales: none given"),
        ({"scales": (1.0, 0.0)}, "scales: 0.0;"),
        ({"scales": (0.001,)}, "scales: 0.001 "),
        ({"mean_shift_layers": -1}, "mean_shift_layers: -1;"),
        ({"mean_shift_layers": 1.5}, "mean_shift_layers: 1.5;"),
        ({"precision": "fp8"}, "precision: 'fp8'; use one of auto, fp32, bf16, fp16"),
        ({"batch_size": 0}, "batch_size: 0 windows"),
        ({"merge_tokens": 1.5}, "merge_tokens: 1.5; it must be a share"),
        ({"merge_tokens": True}, "merge_tokens: True; it must be a share"),
        ({"device": "abacus"}, "device: abacus cannot be used"),
    ],
)
def test_arguments_outside_their_range_are_refused(tiny_model: Make, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ms.Predictor(tiny_model(), **arguments)


def test_merging_tokens_is_that_of_a_model_with_the_same_setting(tiny_model: Make) -> None:
    model, image = tiny_model(), random_image(70, 90)
    settings: dict[str, Any] = {"window": 48, "window_stride": 32, "short_side": None}
    dense = ms.Predictor(model, **settings)(image).labels
    predictor = ms.Predictor(model, merge_tokens=0.75, **settings)
    merged = predictor(image).labels

    assert predictor.protocol()["merge_tokens"] == 0.75
    assert (merged != dense).any()
    assert np.array_equal(ms.Predictor(model, **settings)(image).labels, dense)
    assert np.array_equal(ms.Predictor(model, merge_tokens=0, **settings)(image).labels, dense)
    config = replace(model.config, token_merging=TokenMergingConfig(0, 0.75))
    other = ms.Segmenter(config, model.label_space)
    other.load_state_dict(model.state_dict())
    assert np.array_equal(ms.Predictor(other, **settings)(image).labels, merged)
    both = ms.Predictor([model, model], merge_tokens=0.75, **settings)
    assert np.mean(both(image).labels == merged) > 0.99


def test_steps_asked_of_a_model_without_the_block_are_refused(tiny_model: Make) -> None:
    model = tiny_model("segmenter-ti16")
    assert ms.Predictor(model, mean_shift_layers=0).mean_shift_layers == 0
    with pytest.raises(InputError, match="mean_shift_layers: 2"):
        ms.Predictor(model, mean_shift_layers=2)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 683), (512, 683)),
        ((360, 480), (512, 683)),
        ((100, 1000), (205, 2048)),
        ((1, 5000), (1, 2048)),
        ((3000, 2000), (768, 512)),
    ],
)
def test_sides_fit_as_mmcv_rescales(size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert fitted_size(*size, short_side=512, long_side=2048, scale=1.0) == expected


def test_half_precision_is_that_of_autocast_and_changes_close_calls_only(tiny_model: Make) -> None:
    model, image = tiny_model().eval(), random_image(48, 48)
    full = ms.Predictor(model, short_side=None)(image).labels
    half = ms.Predictor(model, short_side=None, precision="bf16")(image).labels
    config = model.config
    x = (torch.from_numpy(image) / 255 - torch.tensor(config.mean)) / torch.tensor(config.std)
    model.encoder.set_attention(fused=False)  # as the predictor does for bf16 on a CPU, where it is faster
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cast = model(x.permute(2, 0, 1)[None])
    with torch.no_grad():
        exact = model(x.permute(2, 0, 1)[None])
    assert (full != half).any()
    scores = [
        F.interpolate(z.float(), scale_factor=float(model.output_stride), mode="bilinear")[0] for z in (cast, exact)
    ]
    assert_same_labels(half, scores[0])
    error = (scores[0] - scores[1]).abs().max()
    top = scores[1].topk(2, dim=0).values
    clear = (top[0] - top[1] > 2 * error).numpy()
    assert clear.mean() > 0.5
    assert (full == half)[clear].all()


def test_prediction_in_bfloat16_restores_the_attention_backend(
    tiny_model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, image = tiny_model(), random_image(48, 48)
    attention: Any = model.encoder.vit.blocks[0].attn
    seen = []
    attention.register_forward_hook(lambda module, *_: seen.append(module.fused_attn))
    predictor = ms.Predictor(model, short_side=None, precision="bf16")
    before = attention.fused_attn
    predictor(image)
    assert seen == [False]
    assert attention.fused_attn == before
    monkeypatch.setattr("meanshifter.inference.precision.PLAIN_ATTENTION_BYTES", 100)
    predictor(image)
    assert seen == [False, True], "N × N weights are held only where they are small"


def test_bands_of_any_height_give_the_same_label_map(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("meanshifter-ti16")
    image = random_image(101, 70)
    predictor = ms.Predictor(model, window=32, window_stride=19, short_side=130, flip=True, scales=(1.0, 0.6))
    whole = predictor(image).labels
    for band in (1, 37):
        monkeypatch.setattr("meanshifter.inference.predictor.BAND", band)
        np.testing.assert_array_equal(predictor(image).labels, whole)


@pytest.mark.parametrize(
    "settings",
    [
        {"window": 32, "window_stride": 19, "short_side": 40},
        {"window": None, "short_side": None},
        {"window": 32, "window_stride": 32, "short_side": None, "flip": True, "confidence": ["margin"]},
        {"window": 64, "window_stride": 64, "short_side": None, "compat": "segmenter"},
    ],
)
def test_images_of_a_batch_get_the_labels_of_single_calls(tiny_model: Make, settings: dict[str, Any]) -> None:
    predictor = ms.Predictor(tiny_model("meanshifter-ti16"), **{"batch_size": 3, **settings})
    images = [random_image(45, 70) // (number + 1) for number in range(4)]
    batch = predictor.segment_batch(images)
    for image, found in zip(images, batch, strict=True):
        alone = predictor(image)
        assert np.mean(found.labels != alone.labels) < 0.002  # where two classes are equal up to rounding
        np.testing.assert_array_equal(found.image, image)
        for name in predictor.confidence:
            np.testing.assert_allclose(found.confidence[name], alone.confidence[name], atol=1e-4)
    assert predictor.segment_batch([]) == []


def test_windows_of_a_batch_share_passes(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = ms.Predictor(tiny_model(), window=32, window_stride=32, short_side=None, batch_size=6)
    sizes: list[int] = []
    encode = WindowEncoder.logits

    def counted(self: WindowEncoder, model: Any, windows: Any, *args: Any) -> Any:
        sizes.append(len(windows))
        return encode(self, model, windows, *args)

    monkeypatch.setattr(WindowEncoder, "logits", counted)
    assert predictor.images_per_pass((32, 60)) == 3
    predictor.segment_batch([random_image(32, 60)] * 4)
    assert sizes == [6, 2]
    assert predictor.images_per_pass((320, 320)) == 1


def test_images_of_two_sizes_are_no_batch(tiny_model: Make) -> None:
    with pytest.raises(ms.InputError, match="images: sizes 20×30 and 30×20"):
        ms.Predictor(tiny_model()).segment_batch([random_image(20, 30), random_image(30, 20)])


def test_only_the_logits_that_a_band_needs_are_kept(tiny_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("segmenter-ti16", num_classes=9)
    P, image = model.patch_size, random_image(900, 64)
    predictor = ms.Predictor(model, window=32, window_stride=32, short_side=None)
    monkeypatch.setattr("meanshifter.inference.predictor.BAND", 64)
    heights = [view.z.shape[1] for _, (views,) in predictor.bands(image, [0]) for view in views]
    assert max(heights) <= (64 + 32) // P
    assert len(heights) == -(-900 // 64)


@torch.inference_mode()
def test_prediction_never_holds_full_resolution_logits(tiny_model: Make, largest: Any) -> None:
    K, (H, W) = 150, (300, 400)
    model = tiny_model("meanshifter-ti16", num_classes=K)
    predictor = ms.Predictor(model, window=64, window_stride=48, short_side=None, flip=True)
    with largest:
        predictor(random_image(H, W))
    assert largest.elements <= max(K * H * W / 8, 2 * 3 * H * W)


def named(make: Make, *classes: str) -> ms.Segmenter:
    """A small model with the given class names."""
    model = make("segmenter-ti16", num_classes=len(classes))
    model.label_space = LabelSpace(classes, model.label_space.palette)
    return model


def test_scores_and_probabilities_come_with_the_label_map(tiny_model: Make) -> None:
    model = named(tiny_model, "sky", "road", "tree")
    image = random_image(60, 90)
    plain = ms.Predictor(model, window=32, window_stride=24, short_side=None)
    asked = ms.Predictor(
        model,
        window=32,
        window_stride=24,
        short_side=None,
        confidence=("probability", "margin", "entropy"),
        probabilities=("sky", "road", "tree"),
    )
    seg = asked(image)
    np.testing.assert_array_equal(seg.labels, plain(image).labels)
    p = np.stack([seg.probabilities[name] for name in ("sky", "road", "tree")])
    ranked = np.sort(p, axis=0)
    np.testing.assert_allclose(p.sum(0), 1, atol=1e-5)
    np.testing.assert_allclose(seg.confidence["probability"], ranked[-1], atol=1e-6)
    np.testing.assert_allclose(seg.confidence["margin"], ranked[-1] - ranked[-2], atol=1e-6)
    np.testing.assert_allclose(seg.confidence["entropy"], -(p * np.log(p)).sum(0), atol=1e-5)
    assert plain(image).confidence == {}


def test_scores_and_classes_that_do_not_exist_are_refused(tiny_model: Make) -> None:
    model = named(tiny_model, "sky", "road")
    with pytest.raises(InputError, match="has no class 'raod'; did you mean 'road'"):
        ms.Predictor(model, probabilities=("raod",))
    with pytest.raises(InputError, match="confidence: 'certainty'; use one of probability, margin, entropy"):
        ms.Predictor(model, confidence=["certainty"])  # type: ignore[list-item]


def test_files_above_max_pixels_are_refused(tiny_model: Make, tmp_path: Path) -> None:
    Image.fromarray(random_image(20, 30)).save(tmp_path / "a.png")
    predictor = ms.Predictor(tiny_model("segmenter-ti16"), max_pixels=599)
    with pytest.raises(InputError, match=r"a.png: 30×20 is 600 pixels, above max_pixels 599; raise max_pixels"):
        predictor(tmp_path / "a.png")
