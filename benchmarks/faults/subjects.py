"""The kinds of file that are broken: whole ones to begin with, and what reads them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mutators import BINARY, TEXT, Mutator
from PIL import Image

import meanshifter as ms
from meanshifter.checkpoints.writing import write_mmsegmentation, write_segmenter
from meanshifter.data.download import unpack
from meanshifter.data.label_files import read_classes, read_labels_json
from meanshifter.data.labels import LabelSpace
from meanshifter.data.reading import MAX_PIXELS, mask_values, read_image, read_mask, read_sample
from meanshifter.data.rows import large_file
from meanshifter.model.segmenter import Segmenter
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.recipes import ALIASES, recipe_names
from meanshifter.training.sections import OptimizerConfig
from meanshifter.training.state import STATE, RunFolder
from meanshifter.utils.distributed import Processes

SIZE = (48, 40)
SPACE = LabelSpace(("a", "b", "c"), colors={(0, 0, 0): 0, (255, 0, 0): 1, (0, 0, 255): 2}, raw={0: 0, 1: 1, 2: 2})


@dataclass(frozen=True)
class Subject:
    """One kind of file."""

    name: str
    file: str
    """Where it lies in a case's folder."""
    wholes: Sequence[bytes]
    read: Callable[[Path], object]
    """Reads the file in that folder."""
    ways: tuple[Mutator, ...] = BINARY
    frame: Path | None = None
    """Files that lie beside it."""
    command: tuple[str, ...] = ()
    """What the `meanshifter` command reads it with; {file}, {folder} and {out} are filled in."""

    def place(self, folder: Path, content: bytes) -> Path:
        if self.frame is not None:
            shutil.copytree(self.frame, folder, dirs_exist_ok=True)
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path


def subjects(store: Path) -> list[Subject]:
    """All kinds; `store` keeps the models and folders that they need."""
    torch.manual_seed(0)
    model = store / "model"
    tiny("meanshifter-ti16").save(model)
    return [*images(model), *masks(store, model), *texts(store, model), *checkpoints(store, model), *archives()]


def tiny(preset: str = "segmenter-ti16") -> Segmenter:
    arguments = {"depth": 2, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
    return ms.create_model(preset, num_classes=3, image_size=32, encoder="vit_tiny_patch16_224", encoder_args=arguments)


def pixels(kind: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(0)
    if kind == "I;16":
        return Image.fromarray(rng.integers(0, 65536, SIZE, dtype=np.uint16))
    return Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).convert(kind)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def images(model: Path) -> list[Subject]:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "text"
    rgb, palette, deep = pixels(), pixels("P"), pixels("I;16")
    text = {"exif": exif, "icc_profile": b"profile" * 40}
    wholes = {
        "png": [encoded(p, "PNG", **text) for p in (rgb, palette, deep, pixels("1"), pixels("RGBA"))],
        "jpg": [encoded(rgb, "JPEG", **text), encoded(rgb, "JPEG", progressive=True), encoded(pixels("CMYK"), "JPEG")],
        "tif": [
            encoded(p, "TIFF", compression=c)
            for c in (None, "tiff_lzw", "tiff_deflate", "jpeg", "packbits")
            for p in ([rgb] if c == "jpeg" else [rgb, palette, deep])
        ],
        "webp": [encoded(rgb, "WEBP"), encoded(rgb, "WEBP", lossless=True), encoded(pixels("RGBA"), "WEBP")],
        "bmp": [encoded(p, "BMP") for p in (rgb, palette, pixels("1"))],
    }
    wholes["gif.png"] = [encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(90)] * 3)]

    def read(path: Path) -> object:
        large_file(path, MAX_PIXELS)
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # that of several pictures one is read
            return read_image(path)

    command = ("predict", str(model), "{file}", "--out", "{out}")
    return [Subject(f"image {kind}", f"a.{kind}", found, read, command=command) for kind, found in wholes.items()]


def masks(store: Path, model: Path) -> list[Subject]:
    values = np.random.default_rng(0).integers(0, 3, SIZE, dtype=np.uint8)
    gray = Image.fromarray(values)
    palette = gray.convert("P")
    deep = Image.fromarray(values.astype(np.uint16))
    colors = Image.fromarray(np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]], np.uint8)[values])
    frame = store / "pair"
    (frame / "images").mkdir(parents=True)
    pixels().save(frame / "images/a.png")
    wholes = {
        "png": [encoded(picture, "PNG") for picture in (gray, palette, deep, colors)],
        "tif": [encoded(picture, "TIFF", compression="tiff_lzw") for picture in (gray, deep, colors)],
        "webp": [encoded(colors, "WEBP", lossless=True)],
        "bmp": [encoded(gray, "BMP")],
        "gif": [encoded(palette, "GIF")],
    }

    def read(path: Path) -> None:
        refused: list[ms.InputError] = []
        ways = (
            lambda: mask_values(path),
            lambda: read_mask(path, LabelSpace(SPACE.names, colors=SPACE.colors)),
            lambda: read_sample(path.parents[1] / "images/a.png", path, SPACE),
        )
        for way in ways:
            try:
                way()
            except ms.InputError as error:
                refused.append(error)
        if len(refused) == len(ways):
            raise refused[0]

    command = ("evaluate", str(model), "{folder}", "--split", "all")
    return [
        Subject(f"mask {kind}", f"masks/a.{kind}", found, read, frame=frame, command=command)
        for kind, found in wholes.items()
    ]


def texts(store: Path, model: Path) -> list[Subject]:
    from importlib import resources

    recipes = resources.files("meanshifter") / "recipes"
    whole = [(recipes / f"{name}.yaml").read_bytes() for name in recipe_names() if name not in ALIASES]
    labels = {**SPACE.to_dict(), "palette": [[0, 0, 0], [255, 0, 0], [0, 0, 255]]}
    frame = store / "pair_whole"
    shutil.copytree(store / "pair", frame)
    (frame / "masks").mkdir()
    pixels("L").point(lambda value: value % 3).save(frame / "masks/a.png")

    def read_labels(path: Path) -> object:
        space = read_labels_json(path) if path.suffix == ".json" else read_classes(path)
        return read_mask(path.parent / "masks/a.png", space)

    evaluate = ("evaluate", str(model), "{folder}", "--split", "all")
    printed = ("train", "{file}", "--print-config")
    return [
        Subject("recipe", "r.yaml", whole, parse_recipe, TEXT, command=printed),
        Subject("labels.json", "labels.json", [json.dumps(labels).encode()], read_labels, TEXT, frame, evaluate),
        Subject("classes.txt", "classes.txt", [b"a\nb\nc\n"], read_labels, TEXT[:4], frame, evaluate),
    ]


def checkpoints(store: Path, model: Path) -> list[Subject]:
    image = np.asarray(pixels())

    def predict(path: Path) -> object:
        place = path if path.suffix == ".pth" and path.name != "checkpoint.pth" else path.parent
        return ms.Predictor(ms.load_model(place))(image).labels

    plain = tiny()
    (store / "foreign").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what those tools compute otherwise
        write_mmsegmentation(plain, store / "foreign/mm.pth")
        write_segmenter(plain, store / "official")
    torch.save(torch.load(store / "foreign/mm.pth"), store / "legacy.pth", _use_new_zipfile_serialization=False)
    beside = store / "official_frame"
    shutil.copytree(store / "official", beside)
    weights = (model / "model.safetensors").read_bytes()
    mm = [(store / name).read_bytes() for name in ("foreign/mm.pth", "legacy.pth")]
    given = ("predict", "{file}", str(store / "pair/images/a.png"), "--out", "{out}")
    folder = ("predict", "{folder}", str(store / "pair/images/a.png"), "--out", "{out}")
    config = [(model / "config.json").read_bytes()]
    return [
        Subject("config.json", "config.json", config, predict, TEXT, model, folder),
        Subject("model.safetensors", "model.safetensors", [weights], predict, frame=model, command=folder),
        Subject("checkpoint zip", "mm.pth", mm[:1], predict, command=given),
        Subject("checkpoint legacy", "mm.pth", mm[1:], predict, command=given),
        Subject("variant.yml", "variant.yml", [(beside / "variant.yml").read_bytes()], predict, TEXT, beside, folder),
        run_state(store),
    ]


def run_state(store: Path) -> Subject:
    """`last` of a training, which a resumed run goes on from."""
    from meanshifter.training.optimizer import create_optimizer
    from meanshifter.training.state import Progress, TrainState

    model = tiny()
    optimizer = create_optimizer(model, OptimizerConfig(name="adamw"))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = TrainState(model, optimizer, None, Progress(3, 1.0, (0.5, 2)))
    RunFolder(store / "run").save_last(state, Processes())
    (store / "run/metrics.jsonl").write_text('{"step": 2, "loss": 1.0}\n')

    def read(path: Path) -> object:
        fresh = tiny()
        optimizer = create_optimizer(fresh, OptimizerConfig(name="adamw"))
        state = TrainState(fresh, optimizer, None, Progress())
        RunFolder(path.parents[2]).restore(state, is_main=False)
        return state

    whole = store / "run/checkpoints/last" / STATE
    return Subject("training state", f"checkpoints/last/{STATE}", [whole.read_bytes()], read, frame=store / "run")


def archives() -> list[Subject]:
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with (
        zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive,
        tarfile.open(fileobj=tarred, mode="w:gz") as tar,
    ):
        for k in range(4):
            archive.writestr(f"top/data/{k}.txt", "text" * 100)
            info = tarfile.TarInfo(f"top/data/{k}.txt")
            info.size = 400
            tar.addfile(info, io.BytesIO(b"text" * 100))

    def read(path: Path) -> object:
        unpack(path, "top/data", path.with_name("unpacked"))
        return shutil.rmtree(path.with_name("unpacked"))

    wholes = {"zip": [zipped.getvalue()], "tar.gz": [tarred.getvalue()]}
    return [Subject(f"archive {kind}", f"a.{kind}", found, read) for kind, found in wholes.items()]
