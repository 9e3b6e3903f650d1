"""What a score was measured under; no score is written without it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Protocol:
    """Everything that decides a score besides the method itself. `str` says it in one line."""

    dataset: str
    """Name of the data set, for example camvid."""
    split: str
    """Name of the split, for example val."""
    images: int
    """Images scored."""
    images_in_split: int
    """Images in the split; above `images` where only the first ones were scored."""
    short_side: int | None
    """Shorter side into which images are resized, keeping their ratio; None: not resized."""
    long_side: int | None
    """Longer side into which images are resized; None: not resized."""
    window: int | None
    """Side of the sliding windows in pixels; None: whole images."""
    stride: int | None
    """Distance between windows in pixels; None: whole images."""
    flip: bool
    """Whether probabilities were averaged with those of the mirrored image."""
    scales: tuple[float, ...]
    """Factors on the image size over which probabilities were averaged."""
    mean_shift_layers: int
    """Mean shift steps at inference."""
    precision: str
    """Arithmetic of the model: fp32, bf16 or fp16."""
    weights: str
    """`weights_hash` of the model."""
    version: str
    """Version of meanshifter."""
    tool: str | None = None
    """The tool whose reading of images is repeated to the pixel; None: our own."""
    predictions: str | None = None
    """The folder of label maps that were scored, made by whatever tool: how images were read is not known then."""

    def __str__(self) -> str:
        images = (
            f"{self.images}"
            if self.images == self.images_in_split
            else f"first {self.images} of {self.images_in_split}"
        )
        if self.predictions is not None:
            images = images.removeprefix("first ")
            made = f"label maps in {self.predictions}, however they were made"
            return f"{self.dataset} {self.split}, {images} images; {made}; meanshifter {self.version}"
        parts = [
            f"{self.dataset} {self.split}, {images} images",
            "not resized" if self.short_side is None else f"sides fitted into {self.long_side}×{self.short_side}",
            "whole image" if self.window is None else f"window {self.window}, stride {self.stride}",
            "with flip" if self.flip else "no flip",
            f"scales {', '.join(f'{scale:g}' for scale in self.scales)}",
            f"{self.mean_shift_layers} mean-shift layer{'' if self.mean_shift_layers == 1 else 's'}",
            self.precision,
            f"weights {self.weights}",
            f"meanshifter {self.version}",
            *([] if self.tool is None else [f"as {self.tool} reads images"]),
        ]
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers for JSON."""
        return {**asdict(self), "scales": list(self.scales)}
