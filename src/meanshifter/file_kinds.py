"""What a file is that was taken for weights, from its first bytes or its name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_IMAGE: Final = "give a model, and images where they are asked for"
_BEGINNINGS: Final = (
    (b"\xff\xd8\xff", "a JPEG image", _IMAGE),
    (b"\x89PNG", "a PNG image", _IMAGE),
    (b"II*\x00", "a TIFF image", _IMAGE),
    (b"MM\x00*", "a TIFF image", _IMAGE),
    (b"version https://git-lfs", "a pointer of Git LFS", "fetch the file that it stands for with `git lfs pull`"),
    (b"\x1f\x8b", "compressed", "unpack it with gunzip"),
    (b"<", "a web page", "fetch the file itself, as a browser that is logged in where that is needed"),
)
_SUFFIXES: Final = {
    ".onnx": ("a program of ONNX", "give the folder that `meanshifter export` wrote"),
    ".xml": ("a program of OpenVINO", "give the folder that `meanshifter export` wrote"),
    ".py": ("a configuration", "give the checkpoint that was trained with it"),
    ".yml": ("a configuration", "give the checkpoint beside it"),
    ".yaml": ("a configuration", "give the checkpoint beside it"),
    ".json": ("a configuration", "give the folder of a whole model"),
}
_SAFETENSORS: Final = (
    "tensors as safetensors, without the config.json of a model of ours",
    "for the weights of an encoder alone use `backbone_weights`, with the ending .safetensors",
)


def other_kind(path: Path) -> tuple[str, str] | None:
    """What a file is that `torch.save` did not write, and the remedy; None for what may be one of its files.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        return "empty", "copy it again"
    if path.suffix.lower() in _SUFFIXES:
        return _SUFFIXES[path.suffix.lower()]
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return _SAFETENSORS
    return next((found[1:] for found in _BEGINNINGS if head.lstrip().startswith(found[0])), None)
