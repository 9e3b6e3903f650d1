"""Folders made to harm: names, links, pipes and files that are not what they say, through the command."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
import zlib
from pathlib import Path
from struct import pack
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import meanshifter as ms
from meanshifter.cli.main import main
from meanshifter.data.reading import read_image, read_mask, read_sample
from meanshifter.errors import InputError
from tests import commands

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    arguments = {"depth": 1, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
    ms.create_model(
        "segmenter-ti16", num_classes=3, image_size=32, encoder="vit_tiny_patch16_224", encoder_args=arguments
    ).save(tmp_path / "model")
    return tmp_path / "model"


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, form)
    return buffer.getvalue()


def png(width: int, height: int, *chunks: tuple[bytes, bytes], data: bytes = b"") -> bytes:
    """A gray PNG with any size in its header."""
    whole = b"\x89PNG\r\n\x1a\n"
    for name, content in (
        (b"IHDR", pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        *chunks,
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ):
        whole += pack(">I", len(content)) + name + content + pack(">I", zlib.crc32(name + content))
    return whole


def test_odd_names_are_labeled_and_odd_files_are_told(model: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    names = [b"a\nb.png", b"quote'\".png", b"\x1b[2Jclear.png", b"\xff\xfe.png", b"x" * 251 + b".png"]
    for odd in names:
        (folder / os.fsdecode(odd)).write_bytes(encoded("PNG"))
    (folder / "a\nmeanshifter: forged\x1b[2J.jpg").write_text("no image")
    os.mkfifo(folder / "pipe.png")
    (folder / "zero.png").symlink_to("/dev/zero")
    (folder / "loop.png").symlink_to("loop.png")
    for name in ("up", "down"):
        (folder / name).symlink_to(".")
    for given in (f"{folder}/**/*.*",):
        done = commands.run("predict", model, given, "--out", out)
        assert done.returncode == 2, done.stderr
        assert f"5 of 6 label maps written to {out}" in done.stdout
        passed, line = done.stderr.splitlines()
        assert "skipped" in passed
        assert line.startswith("meanshifter: ")
        assert "forged\\x1b[2J.jpg: not an image" in line
        assert sorted(os.listdir(os.fsencode(out))) == sorted(names)  # noqa: PTH208


def test_what_is_no_file_is_refused_at_once(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(InputError):
            ms.Predictor(ms.load_model(model))(path)
        assert main(["predict", str(model), str(path), "--out", str(tmp_path / "out")]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    (model / "model.safetensors").unlink()
    os.mkfifo(model / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: is a pipe"):
        ms.load_model(model)


def test_a_result_that_is_a_link_is_replaced_and_not_followed(model: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to(victim)
    PICTURE.save(tmp_path / "a.png")
    assert main(["predict", str(model), str(tmp_path / "a.png"), "--out", str(tmp_path / "out")]) == 0
    assert victim.read_text() == "precious"
    assert not (tmp_path / "out/a.png").is_symlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(60_000, 60_000, data=bytes(1000)), "60000×60000 is 3,600,000,000 pixels, above max_pixels"),
        (png(30_000, 30_000, data=bytes(1000)), ".*30000×30000 pixels"),
        (png(0, 0), "cannot be decoded|not an image|0×0"),
        (png(2**31, 2**31), ".* above max_pixels"),
        (png(4, 4, (b"zTXt", b"a\0\0" + zlib.compress(bytes(80_000_000))), data=bytes(20)), "cannot be decoded"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ],
    ids=["bomb", "lie", "empty", "huge", "text", "postscript"],
)
def test_images_that_claim_too_much_are_refused_before_they_are_decoded(
    tmp_path: Path, content: bytes, message: str
) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.png: ({message})"):
        read_image(tmp_path / "a.png")


def test_a_file_is_what_its_content_says(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as inner:
        inner.writestr("evil.html", "<script>")
    (tmp_path / "a.png").write_bytes(encoded("JPEG") + archive.getvalue())
    assert zipfile.is_zipfile(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").shape == (20, 24, 3)
    labels = ms.data.labels.LabelSpace(("a", "b"))
    with pytest.raises(InputError, match="a JPEG mask"):
        read_mask(tmp_path / "a.png", labels)


def test_samples_have_a_lower_limit_than_single_images(tmp_path: Path) -> None:
    labels = ms.data.labels.LabelSpace(("a", "b"))
    flat = Image.new("1", (16_000, 16_000))
    flat.save(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"a\.png: 16000×16000 is 256,000,000 pixels.*into tiles"):
        read_mask(tmp_path / "a.png", labels)
    with pytest.raises(InputError, match="into tiles"):
        read_sample(tmp_path / "a.png", tmp_path / "a.png", labels)


class Trap:
    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.place}",)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "model.pth", "model.pt2"])
def test_pickles_in_disguise_do_not_run(model: Path, tmp_path: Path, name: str) -> None:
    trap = pickle.dumps(Trap(tmp_path / "ran"))
    if name == "model.pt2":
        config = model / "config.json"
        described = config.read_text().rstrip().rstrip("}")
        stated = (
            '{"format": "torch", "file": "model.pt2", "precision": "fp32", "mean_shift_layers": 0, "output_stride": 8}'
        )
        config.write_text(f'{described}, "runtime": {stated}}}')
        trap = _program_with(trap)
    (model / name).write_bytes(trap)
    with pytest.raises(InputError, match=name):
        ms.load_model(model / name if name == "model.pth" else model)
    assert not (tmp_path / "ran").exists()


def _program_with(trap: bytes) -> bytes:
    """A `torch.export` archive of which every pickle is the trap."""
    whole = io.BytesIO()
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),)), whole)
    changed = io.BytesIO()
    with zipfile.ZipFile(whole) as old, zipfile.ZipFile(changed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            content = content.replace(b'"use_pickle": false', b'"use_pickle": true')
            new.writestr(name, trap if "weight_" in name else content)
    return changed.getvalue()


def test_headers_of_weights_that_lie_about_sizes_are_refused(model: Path) -> None:
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    overlapping = (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    )
    endless = b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,18446744073709551615]}}'
    for content in (
        (2**63).to_bytes(8, "little") + whole[8:],
        *(len(header).to_bytes(8, "little") + header + bytes(12) for header in (overlapping, endless)),
        whole[:100],
        b"",
    ):
        weights.write_bytes(content)
        with pytest.raises(InputError, match=r"model\.safetensors: not a valid safetensors file"):
            ms.load_model(model)


def test_a_checkpoint_that_unpacks_to_more_than_it_has_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1_000_000)}}, tmp_path / "plain.pth")
    plain, bomb = tmp_path / "plain.pth", tmp_path / "bomb.pth"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(InputError, match=r"bomb\.pth: an archive that unpacks to 4,0\d\d,\d\d\d bytes"):
        ms.load_model(tmp_path / "bomb.pth")
