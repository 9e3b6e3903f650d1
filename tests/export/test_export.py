"""Exports agree with their model for any batch and image size, which is checked before they are put in place."""

from __future__ import annotations

import errno
import functools
import gc
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.export import ExportedProgram
from torch.torch_version import TorchVersion

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data import Shapes
from meanshifter.export import export as exporting
from meanshifter.export import onnx_format, runtime, torch_format
from meanshifter.export import program as label_graph
from meanshifter.export.encoder import resample_grid
from meanshifter.export.export import agreement, export
from meanshifter.export.program import PatchLogits
from meanshifter.export.program import exported as trace
from meanshifter.export.torch_format import EXPORTER
from meanshifter.inference.protocol import PatchModel
from meanshifter.model import saving
from meanshifter.model.saving import weights_hash
from meanshifter.utils import environment as packages

# graphs of torch.export and of ONNX's quantizers drop weak references in odd orders when they are collected
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.skipif(torch.__version__ < TorchVersion(EXPORTER), reason="needs a newer torch"),
]
BACKBONE = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8}


def needs(*packages: str) -> pytest.MarkDecorator:
    absent = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"not installed: {', '.join(absent)}")


ONNX = pytest.param("onnx", marks=needs("onnx", "onnxscript", "onnxruntime"))
OPENVINO = pytest.param("openvino", marks=needs("openvino"))


@pytest.fixture(scope="module", autouse=True)
def _plain_shapes() -> Iterator[None]:
    """Disable jaxtyping, whose checks of symbolic shapes would specialize them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


PROGRAMS: dict[object, ExportedProgram] = {}
CONVERTED: dict[object, Any] = {}
LOADED: dict[bytes, ExportedProgram] = {}


@pytest.fixture(autouse=True)
def _traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Share programs and their conversions, which take seconds each, between exports of equal models."""
    to_onnx = onnx_format.to_onnx

    def exported(module: Any, example: torch.Tensor, **sides: int) -> ExportedProgram:
        logits = getattr(module, "logits", module)
        model = logits.model
        key = (
            type(module),
            logits.layers,
            repr(model.config),
            weights_hash(model.state_dict()),
            example.shape,
            *sides.items(),
        )
        if key not in PROGRAMS:
            PROGRAMS[key] = trace(module, example, **sides)
        return PROGRAMS[key]

    def converted(program: ExportedProgram, *names: Sequence[str]) -> Any:
        key = (id(program), *map(tuple, names))
        if program not in PROGRAMS.values():
            return to_onnx(program, *names)
        if key not in CONVERTED:
            CONVERTED[key] = to_onnx(program, *names)
        return deepcopy(CONVERTED[key])

    monkeypatch.setattr(exporting, "exported", exported)
    monkeypatch.setattr(label_graph, "exported", exported)
    monkeypatch.setattr(onnx_format, "to_onnx", converted)
    if find_spec("openvino") is None:
        return
    import openvino

    convert = openvino.convert_model

    def of_openvino(program: ExportedProgram) -> Any:
        if id(program) not in CONVERTED:
            CONVERTED[id(program)] = convert(program)
        return CONVERTED[id(program)].clone()

    monkeypatch.setattr(openvino, "convert_model", of_openvino)


@pytest.fixture(autouse=True)
def _read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load equal files of torch once, since loading takes seconds."""
    load = torch.export.load

    def loaded(path: Path) -> ExportedProgram:
        content = hashlib.sha256(path.read_bytes()).digest()
        if content not in LOADED:
            LOADED[content] = load(path)
        return deepcopy(LOADED[content])

    monkeypatch.setattr(torch.export, "load", loaded)


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Collect garbage within the last of these tests, where its warnings are expected."""
    yield
    for kept in (PROGRAMS, CONVERTED, LOADED):
        kept.clear()
    gc.collect()


def tiny(preset: str = "meanshifter-ti16", classes: int = 7, **more: Any) -> ms.Segmenter:
    """A model whose logits are far enough apart that rounding decides no pixel."""
    torch.manual_seed(0)
    labels = Shapes().label_space if classes == Shapes().label_space.num_classes else ms.LabelSpace.unnamed(classes)
    model = ms.create_model(preset, classes=labels, image_size=32, drop_path=0.0, **{"encoder_args": BACKBONE, **more})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


@functools.cache
def _made() -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory()
    export(tiny(), Path(folder.name) / "out", format="torch")
    return folder


def made(out: Path) -> Path:
    """An export of `tiny()` in torch's format at `out`."""
    shutil.copytree(Path(_made().name) / "out", out)
    return out


def picture(height: int = 70, width: int = 93) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def read(model: PatchModel, image: Any, **settings: Any) -> Any:
    return ms.Predictor(model, **{"window": 36, "window_stride": 29, "short_side": None, **settings})(image).labels


MERGING = {"token_merging": {"after_layer": 0, "ratio": 0.5}}
WITH_CLASSES = {"mean_shift": {"layers": 2, "with_classes": "after_layers"}}


@pytest.mark.parametrize(
    ("preset", "block", "form"),
    [
        pytest.param("meanshifter-mask-ti16", WITH_CLASSES, *ONNX.values, marks=ONNX.marks),
        pytest.param("meanshifter-joint-ti16", MERGING, *OPENVINO.values, marks=OPENVINO.marks),
        pytest.param("meanshifter-pixel-ti16", MERGING, *ONNX.values, marks=ONNX.marks),
        ("meanshifter-pixel-ti16", {}, "torch"),
    ],
)
def test_an_export_gives_the_same_logits_and_label_maps(
    tmp_path: Path, form: str, preset: str, block: dict[str, Any]
) -> None:
    model = tiny(preset, **block)
    export(model, tmp_path / "out", format=form)
    exported = ms.load_model(tmp_path / "out")
    assert exported.label_space == model.label_space
    of_one_patch = () if form == "torch" else ((1, 3, 8, 8), (2, 3, 3, 5))
    close = (
        5e-4 if preset == "meanshifter-pixel-ti16" else 1e-4
    )  # these random steps differ by 1e-4 from float64 in torch too
    for size in ((1, 3, 32, 32), (3, 3, 50, 17), (2, 3, 9, 64), *of_one_patch):
        images = torch.randn(*size)
        with torch.no_grad():
            torch.testing.assert_close(exported(images), model(images), atol=close, rtol=close)
    np.testing.assert_array_equal(read(exported, picture()), read(model, picture()))
    np.testing.assert_array_equal(
        read(exported, picture(), window=None, flip=True, scales=(1.0, 1.5)),
        read(model, picture(), window=None, flip=True, scales=(1.0, 1.5)),
    )
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@needs("openvino")
def test_real_weights_on_a_photograph_differ_by_rounding_only(shared: Path, tmp_path: Path) -> None:
    (weights,) = (shared / "weights").glob("*.safetensors")
    image = shared / "data" / "ade20k_sample" / "images" / "validation" / "ADE_val_00000003.jpg"
    torch.manual_seed(0)
    model = ms.create_model("meanshifter-ti16", num_classes=150, encoder_weights=str(weights)).eval()
    del model.encoder.vit.blocks[4:]  # the others take seconds and add nothing
    export(model, tmp_path / "out", format="openvino")
    found = agreement(ms.Predictor(model), ms.Predictor(ms.load_model(tmp_path / "out")), [str(image)])
    assert found.logits < 2e-4  # 7.7e-5 was measured with all 12 blocks; processors round in different orders
    assert found.percent < 0.01


@pytest.mark.parametrize(
    ("form", "positions"),
    [
        pytest.param(*ONNX.values, "bilinear", marks=ONNX.marks),
        ("torch", "bicubic"),
    ],
)
def test_positions_are_not_resampled_for_equal_numbers_of_patches(form: str, positions: Any, tmp_path: Path) -> None:
    model = tiny()
    model.config, model.encoder.positions = replace(model.config, positions=positions), positions
    export(model, tmp_path / "out", format=form)
    exported = ms.load_model(tmp_path / "out")
    for size in ((32, 32), (16, 64), (61, 15), (24, 40)):  # 4×4 patches is the model's grid; 2×8 and 8×2 have as many
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(images), model(images), atol=1e-4, rtol=1e-4)


SAM = {"embed_dim": 24, "depth": 2, "num_heads": 2, "global_attn_indexes": [1], "window_size": 5, "neck_chans": 16}
"""Traced with one window along each axis, and run with more."""


@pytest.mark.parametrize(
    ("form", "encoder", "arguments"),
    [
        pytest.param(*ONNX.values, "vit_small_patch16_dinov3", BACKBONE, marks=ONNX.marks),
        ("torch", "beit_base_patch16_224", BACKBONE),
        ("torch", "samvit_base_patch16", SAM),
    ],
)
def test_encoders_of_other_families_keep_any_size(
    form: str, encoder: str, arguments: dict[str, Any], tmp_path: Path
) -> None:
    model = tiny(encoder=encoder, encoder_args=arguments)
    with torch.no_grad():
        for parameter in model.encoder.parameters():  # timm starts bias tables at zero
            parameter.normal_(std=0.3)
    export(model, tmp_path / "out", format=form)
    exported, P = ms.load_model(tmp_path / "out"), model.patch_size
    for size in ((4 * P, 4 * P), (2 * P, 7 * P), (6 * P, 6 * P), (5 * P - 3, 3 * P + 1)):
        images = torch.randn(2, 3, *size)
        with torch.no_grad():
            torch.testing.assert_close(exported(images), model(images), atol=1e-4, rtol=1e-4)


@needs("openvino")
def test_openvino_sums_are_short(tmp_path: Path) -> None:
    import openvino

    model = tiny(encoder_args={**BACKBONE, "mlp_ratio": 33.0})
    export(model, tmp_path / "out", format="openvino")
    program = openvino.Core().read_model(tmp_path / "out" / "model.xml")
    sums = [
        op.input_value(1).get_node().data.shape[1]
        for op in program.get_ops()
        if op.get_type_name() == "MatMul" and op.input_value(1).get_node().get_type_name() == "Constant"
    ]
    assert sums.count(264) == 3  # 792 inputs
    assert max(sums) == 264
    images = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        torch.testing.assert_close(ms.load_model(tmp_path / "out")(images), model(images), atol=1e-4, rtol=1e-4)


def test_torch_names_images_that_are_too_small(tmp_path: Path) -> None:
    made(tmp_path / "out")
    with pytest.raises(ms.InputError, match=r"^model\.pt2: images of 3×30 pixels, .* --format onnx$"):
        ms.load_model(tmp_path / "out")(torch.randn(1, 3, 3, 30))


@pytest.mark.parametrize("grid", [(24, 24), (9, 40), (41, 7), (1, 1)])
def test_positions_are_resampled_as_in_torch(grid: tuple[int, int]) -> None:
    values = torch.randn(1, 24 * 24, 5)
    square = values.reshape(1, 24, 24, 5).permute(0, 3, 1, 2)
    expected = F.interpolate(square, grid, mode="bicubic", antialias=True).permute(0, 2, 3, 1).reshape(1, -1, 5)
    torch.testing.assert_close(resample_grid(values, (24, 24), grid), expected, atol=1e-5, rtol=1e-5)
    if grid == (24, 24):
        assert torch.equal(resample_grid(values, (24, 24), grid), values)


@needs("onnx", "onnxscript", "onnxruntime")
def test_one_graph_ends_in_the_label_map(tmp_path: Path) -> None:
    import onnx
    import onnxruntime

    model = tiny()
    export(model, tmp_path / "out", label_graph=True)
    graph = onnx.load(tmp_path / "out" / "labels.onnx").graph
    assert not [node.op_type for node in graph.node if node.op_type in ("Resize", "ArgMax")]
    (scan,) = [node for node in graph.node if node.op_type == "Scan"]
    (count,) = [attribute.i for attribute in scan.attribute if attribute.name == "num_scan_inputs"]
    assert len(scan.output) == len(scan.input) - count  # states only: nothing is stacked over classes
    session = onnxruntime.InferenceSession(tmp_path / "out" / "labels.onnx")
    for image in (picture(64, 40), picture(33, 50)):
        (labels,) = session.run(None, {"images": np.stack([image, image[:, ::-1]])})
        expected = np.stack([read(model, view, window=None) for view in (image, image[:, ::-1].copy())])
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, expected)


@needs("onnx", "onnxruntime")
@pytest.mark.parametrize(("classes", "kind"), [(255, np.uint8), (256, np.uint16), (300, np.uint16)])
def test_labels_of_a_graph_have_the_smallest_data_type(classes: int, kind: type) -> None:
    import onnxruntime
    from onnx import TensorProto, helper

    shapes = {"by_class": "KBhw", "rows": "Hh", "cols": "wW", "nothing": "BHW"}
    types = {name: (TensorProto.FLOAT, list(axes)) for name, axes in shapes.items()}
    ends = [[helper.make_tensor_value_info(end + name, *types[name]) for name in shapes] for end in ("in_", "")]
    nodes = [helper.make_node("Identity", ["in_" + name], [name]) for name in shapes]
    graph = helper.make_graph(nodes, "parts", *ends)
    label_graph._append_argmax(graph, classes)
    program = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    rng = np.random.default_rng(0)
    sides = {"K": classes, "B": 2, "h": 3, "w": 4, "H": 11, "W": 13}
    made = {name: rng.standard_normal([sides[axis] for axis in axes], np.float32) for name, axes in shapes.items()}
    made["nothing"][:] = -np.inf
    session = onnxruntime.InferenceSession(program.SerializeToString())
    (labels,) = session.run(None, {"in_" + name: value for name, value in made.items()})
    full = np.einsum("Hh,kbhw,wW->kbHW", made["rows"], made["by_class"], made["cols"])
    assert labels.dtype == kind
    np.testing.assert_array_equal(labels, full.argmax(0))


@pytest.mark.parametrize("steps", [0, 3])
def test_the_requested_steps_are_built_in(tmp_path: Path, steps: int) -> None:
    model = tiny()
    export(model, tmp_path / "out", format="torch", mean_shift_layers=steps)
    exported = ms.load_model(tmp_path / "out")
    images = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        expected, other = model(images, mean_shift_layers=steps), model(images, mean_shift_layers=1)
    torch.testing.assert_close(exported(images), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, other, atol=1e-3)
    assert exported.steps(None) == steps
    with pytest.raises(ms.InputError, match=rf"mean_shift_layers: 1, but the export has {steps} built in"):
        ms.Predictor(exported, mean_shift_layers=1)


@pytest.mark.parametrize(
    ("form", "precision", "calibrated"),
    [
        pytest.param("onnx", "fp16", False, marks=needs("onnx", "onnxscript", "onnxruntime")),
        pytest.param("onnx", "int8", False, marks=needs("onnx", "onnxscript", "onnxruntime")),
        pytest.param("onnx", "int8", True, marks=needs("onnx", "onnxscript", "onnxruntime")),
        pytest.param("openvino", "fp16", False, marks=needs("openvino")),
        pytest.param("openvino", "bf16", False, marks=needs("openvino")),
        pytest.param("openvino", "int8", False, marks=needs("openvino", "nncf")),
        pytest.param("openvino", "int8", True, marks=needs("openvino", "nncf")),
    ],
)
def test_lower_precisions_stay_close(
    tmp_path: Path, form: str, precision: str, calibrated: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    model = tiny()
    calibration = [torch.randn(1, 3, 36, 36) for _ in range(3)] if calibrated else []
    export(model, tmp_path / "out", format=form, precision=precision, calibration=calibration)
    exported = ms.load_model(tmp_path / "out")
    images = torch.randn(2, 3, 50, 40)
    with torch.no_grad():
        error = (exported(images) - model(images)).square().mean() / model(images).square().mean()
    assert 0 < error < (0.1 if precision == "int8" else 0.01)  # sums of int8 saturate on processors without VNNI
    assert ms.Predictor(exported).protocol()["precision"] == precision
    assert capfd.readouterr().out == ""
    with pytest.raises(ms.InputError, match=f"precision: .* has {precision} built in"):
        ms.Predictor(exported, precision="fp16" if precision == "bf16" else "bf16")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"format": "tflite"}, "format: .*'tflite'; use one of onnx, openvino, torch"),
        ({"format": "torch", "precision": "int8"}, "precision: format torch .* int8; use one of fp32"),
        ({"format": "torch", "label_graph": True}, "label_map: given for format torch"),
        ({"format": "torch", "calibration": [torch.zeros(1, 3, 8, 8)]}, "calibrate: given for precision fp32"),
        ({"format": "torch", "mean_shift_layers": -1}, "mean_shift_layers: -1"),
    ],
)
def test_unsupported_options_are_refused(tmp_path: Path, options: dict[str, Any], line: str) -> None:
    with pytest.raises(ms.InputError, match=line):
        export(tiny(), tmp_path / "out", **options)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("form", "package"), [("onnx", "onnxruntime"), ("onnx", "onnxscript"), ("openvino", "openvino")]
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, package: str
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == package else find_spec("json"))
    line = rf'needs the package {package}, which is not installed; pip install "\.\[{form}\]"'
    with pytest.raises(ms.InputError, match=line):
        export(tiny(), tmp_path / "out", format=form)


@pytest.mark.parametrize("form", [ONNX, OPENVINO])
def test_an_outdated_package_is_named_with_the_required_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.2.1")
    line = rf'format: {form} needs \w+>=[0-9.]+, but 0\.2\.1 is installed; pip install "\.\[{form}\]"'
    with pytest.raises(ms.InputError, match=line):
        export(tiny(), tmp_path / "out", format=form)
    assert not any(tmp_path.iterdir())


def test_an_export_with_a_missing_or_damaged_file_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made(tmp_path / "out")
    program = tmp_path / "out" / "model.pt2"
    program.write_bytes(program.read_bytes()[:3000])
    with pytest.raises(ms.InputError, match="torch cannot read it"):
        ms.load_model(tmp_path / "out")
    assert capfd.readouterr().err == ""  # torch would log a traceback
    program.unlink()
    with pytest.raises(ms.InputError, match=r"model\.pt2: missing"):
        ms.load_model(tmp_path / "out")


def test_files_of_different_exports_are_refused(tmp_path: Path) -> None:
    for classes in (5, 7):
        export(tiny(classes=classes), tmp_path / str(classes), format="torch")
    (tmp_path / "5" / "model.pt2").replace(tmp_path / "7" / "model.pt2")
    with pytest.raises(ms.InputError, match=r"config\.json: names 7 classes, but the program .* has 5"):
        ms.load_model(tmp_path / "7")(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize("form", [ONNX, OPENVINO, "torch"])
def test_a_full_disk_is_reported_in_one_line(
    folder: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) if form != "openvino" else RuntimeError("iostream error")

    target = {
        "onnx": "onnx.save",
        "openvino": "openvino.save_model",
        "torch": f"{torch_format.__name__}.write_atomically",
    }
    monkeypatch.setattr(target[form], full)
    before = sorted(tmp_path.iterdir())
    assert main(["export", str(folder), str(tmp_path / "out"), "--format", form]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"meanshifter: {tmp_path / 'out'}: cannot be written (")
    assert line.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("place", [".", "mount"])
def test_folders_that_cannot_be_replaced_are_refused_before_any_work(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mount").mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path.name == "mount")
    monkeypatch.setattr(exporting, "exported", lambda *_, **__: pytest.fail("it was worked on"))
    with pytest.raises(ms.InputError, match=f"^{place}: is .*, which cannot be replaced"):
        export(tiny(), place, format="torch")


def test_only_an_earlier_export_is_replaced_and_only_if_asked(tmp_path: Path) -> None:
    out = made(tmp_path / "out")
    with pytest.raises(ms.InputError, match=r"out: .* --overwrite"):
        export(tiny(), out, format="torch")
    export(tiny(), out, format="torch", mean_shift_layers=3, overwrite=True)
    assert ms.load_model(out).steps(None) == 3
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ms.InputError, match="notes: already exists"):
        export(tiny(), tmp_path / "notes", format="torch", overwrite=True)
    (out / "photos").mkdir()
    with pytest.raises(ms.InputError, match="out: contains 'photos'"):
        export(tiny(), out, format="torch", overwrite=True)
    assert (out / "photos").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "out"]


def test_options_that_an_export_has_built_in_are_refused(tmp_path: Path) -> None:
    export(tiny("segmenter-ti16"), tmp_path / "out", format="torch")
    for option in ({"allow_missing": True}, {"mean_shift_layers": 1}):
        with pytest.raises(ms.InputError, match="third-party checkpoints only"):
            ms.load_model(tmp_path / "out", **option)
    with pytest.raises(ms.InputError, match=r"mean_shift_layers: 2, but .*out has no mean shift block; leave it out$"):
        ms.load_model(tmp_path / "out").steps(2)
    (tmp_path / "out" / "model.bin").touch()
    for file in ("model.pt2", "model.bin"):
        with pytest.raises(ms.InputError, match=f"{file}: a single file of a model"):
            ms.load_model(tmp_path / "out" / file)


@needs("openvino")
def test_a_text_file_instead_of_a_program_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export(tiny(), tmp_path / "out", format="openvino")
    (tmp_path / "out" / "model.xml").write_text("hello")
    capfd.readouterr()
    assert main(["predict", str(tmp_path / "out"), str(tmp_path), "--out", str(tmp_path / "labels")]) == 2
    Image.fromarray(picture()).save(tmp_path / "a.png")
    capfd.readouterr()
    assert main(["predict", str(tmp_path / "out"), str(tmp_path / "a.png"), "--out", str(tmp_path / "labels")]) == 2
    error = capfd.readouterr().err
    assert "model.xml: not an OpenVINO model" in error
    assert len(error.splitlines()) == 1


def test_official_preprocessing_is_kept_by_an_export(tmp_path: Path) -> None:
    """An export that was made with `segm.inference`'s preprocessing predicts with it."""
    model = tiny("segmenter-ti16")
    model.config = replace(model.config, window=48, window_stride=40, short_side=40, long_side=160)
    model.save(tmp_path / "model")
    Image.fromarray(picture(70, 130)).save(tmp_path / "a.png")
    command = ["export", str(tmp_path / "model"), str(tmp_path / "out"), "--format", "torch", "--compat", "segmenter"]
    assert main([*command, "--images", str(tmp_path / "a.png")]) == 0
    for name, more in (("model", ["--compat", "segmenter"]), ("out", []), ("out", ["--compat", "segmenter"])):
        words = ["predict", str(tmp_path / name), str(tmp_path / "a.png"), "--out", str(tmp_path / "labels"), *more]
        assert main(words) == 0
        expected = ms.Predictor(model, compat="segmenter", window=48, window_stride=40, short_side=None)(
            picture(70, 130)
        )
        with Image.open(tmp_path / "labels" / "a.png") as labels:
            np.testing.assert_array_equal(np.asarray(labels), expected.labels)


def test_invalid_preprocessing_in_an_export_names_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    described = json.loads((made(tmp_path / "out") / "config.json").read_text())
    described["runtime"]["reading"] = {"window": -1}
    (tmp_path / "out" / "config.json").write_text(json.dumps(described))
    Image.fromarray(picture()).save(tmp_path / "a.png")
    Image.fromarray(picture(3, 30)).save(tmp_path / "small.png")
    command = ["predict", str(tmp_path / "out"), str(tmp_path / "a.png"), "--out", str(tmp_path / "labels")]
    assert main(command) == 2
    assert re.search("out, .*: window: -1 pixels", capsys.readouterr().err)
    assert main([*command, "--window", "-2", "--window-stride", "1"]) == 2
    assert "meanshifter: window: -2 pixels" in capsys.readouterr().err
    command[2] = str(tmp_path / "small.png")
    assert main([*command, "--window", "none", "--short-side", "none"]) == 2
    assert re.search(r"small\.png: model\.pt2: images of 3×30 pixels", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [
        ("format", [], "its runtime is not one of onnx, openvino, torch"),
        ("output_stride", 4, r"runtime\.output_stride is 4, but the program computes 5×6 logits for 37×46 pixels"),
        ("output_stride", 16, r"runtime\.output_stride is 16, but"),
        ("reading", {"window": "x"}, r"reading\.window is 'x'"),
        ("reading", {"flip": 3}, r"reading\.flip is 3"),
        ("reading", 1, r"runtime\.reading is 1"),
    ],
)
def test_a_configuration_that_contradicts_its_program_is_refused(
    tmp_path: Path, field: str, value: Any, line: str
) -> None:
    made(tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    described = json.loads(config.read_text())
    described["runtime"][field] = value
    config.write_text(json.dumps(described))

    def use() -> None:
        ms.load_model(tmp_path / "out")(torch.zeros(1, 3, 37, 46))
        runtime.reading_of(tmp_path / "out")

    with pytest.raises(ms.InputError, match=line):
        use()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run whose recipe reads images at their own size, without windows."""
    tiny(classes=Shapes().label_space.num_classes).save(tmp_path / "run" / "checkpoints" / "best")
    reading = "{window: null, window_stride: 480, short_side: null, long_side: 2048}"
    (tmp_path / "run" / "config.yaml").write_text(f"evaluation: {reading}\n")
    for k in range(2):
        Image.fromarray(picture(40 + k, 60)).save(tmp_path / f"{k}.png")
    return tmp_path / "run"


def test_the_commands_take_an_export_as_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, image = tmp_path / "out", tmp_path / "1.png"
    assert main(["export", str(folder), str(out), "--format", "torch", "--images", str(tmp_path / "*.png")]) == 0
    assert "torch fp32 on 2 images: 100.0000 % of 4860 pixels agree" in capsys.readouterr().out
    for name in ("run", "out"):
        assert main(["predict", str(tmp_path / name), str(image), "--out", str(tmp_path / f"labels_{name}")]) == 0
        scores = str(tmp_path / f"{name}.json")
        assert main(["evaluate", str(tmp_path / name), "shapes", "--limit", "2", "--out", scores]) == 0
    with Image.open(tmp_path / "labels_run" / "1.png") as ours, Image.open(tmp_path / "labels_out" / "1.png") as theirs:
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))
    ours, theirs = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("run", "out"))
    assert scored(ours)["mIoU"] == scored(theirs)["mIoU"]
    assert scored(theirs)["protocol"]["window"] is None  # preprocessed as in the run's recipe
    assert scored(ours)["protocol"]["weights"] != scored(theirs)["protocol"]["weights"]


def scored(stored: Any) -> Any:
    return stored["results"][0] if isinstance(stored, dict) and "results" in stored else stored


def test_a_precision_other_than_the_one_built_in_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, image = made(tmp_path / "out"), str(tmp_path / "0.png")
    for asked, status in (("fp32", 0), ("auto", 0), ("bf16", 2)):
        command = ["predict", str(out), image, "--out", str(tmp_path / asked), "--precision", asked]
        assert main(command) == status
    assert "--precision: bf16, but the model was exported with fp32" in capsys.readouterr().err


@needs("onnx", "onnxscript", "onnxruntime")
def test_label_graphs_are_compared_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(folder), str(tmp_path / "out"), "--format", "onnx", "--label-map", "--images"]
    command += [str(tmp_path / "1.png")]
    read_labels = label_graph.read_labels
    monkeypatch.setattr(label_graph, "read_labels", lambda path, image: read_labels(path, image) + np.uint8(1))
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert "labels.onnx on 41×60 pixels of the first image: " in out
    assert "not written, since" in err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(label_graph, "read_labels", read_labels)
    assert main(command) == 0
    assert "labels.onnx on 41×60 pixels of the first image: 100.0000 % agree" in capsys.readouterr().out


def test_without_images_generated_ones_are_compared(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(folder), str(tmp_path / "out"), "--format", "torch"]) == 0
    assert "on 3 generated images (pass --images for real ones)" in capsys.readouterr().out


def test_an_export_that_differs_is_not_put_in_place(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Wrong(PatchLogits):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return -super().forward(images)

    monkeypatch.setattr(exporting, "PatchLogits", Wrong)
    out, before = tmp_path / "out", sorted(tmp_path.iterdir())
    command = ["export", str(folder), str(out), "--format", "torch", "--images", str(tmp_path / "0.png")]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "not written, since" in error
    assert "above 0.1 %" in error
    assert sorted(tmp_path.iterdir()) == before
    assert main([*command, "--max-disagreement", "100"]) == 0


def test_commands_that_need_the_model_itself_refuse_an_export(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = made(tmp_path / "out")
    with pytest.raises(ms.InputError, match="out: an export"):
        saving.read_model(out)
    for command in (
        ["export", str(out), str(tmp_path / "again"), "--format", "torch"],
        ["modes", str(tmp_path / "0.png"), "--model", str(out)],
        ["train", str(out)],
        ["train", "shapes", "--model.encoder_weights", str(out)],
    ):
        assert main(command) == 2, command
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1
        assert "export" in error or command[0] == "train"
        assert str(out) in error
