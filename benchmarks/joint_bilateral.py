"""What edges alone are worth: the patch logits of a trained Segmenter under a fixed joint bilateral kernel.

python benchmarks/joint_bilateral.py RUN [--splits held_out test] [--factor 4]

The cells, neighbors and averages are those of mean shift from pixels, but nothing is learned: with p in patches and the
mean colors c of cells and patches in standard deviations of the pixels,
w_xj ∝ exp(-‖p_x - p_j‖²/2σ_p² - ‖c_x - c_j‖²/2σ_c²)
(Kopf et al., Joint Bilateral Upsampling, SIGGRAPH 2007, equation 3). Both σ are chosen on the first split by mIoU,
among those of a grid; the other splits are read once, with these. Printed beside bilinear upsampling.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

import meanshifter as ms
from meanshifter.evaluation.result import Result
from meanshifter.model.config import PixelShiftConfig
from meanshifter.model.pixel_shift import PixelShift, _around, _square_distances
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.setup import open_split

POSITIONS = (0.35, 0.5, 0.7, 1.0)
COLORS = (0.1, 0.2, 0.4, 0.8, 1.6)


class JointBilateral(PixelShift):
    """One step from pixels whose kernel is fixed."""

    def __init__(self, patch_size: int, factor: int, sigma_position: float, sigma_color: float) -> None:
        super().__init__(1, patch_size, PixelShiftConfig(1, factor, channels=3))
        distances = _square_distances(factor) / (2 * sigma_position**2)
        self.register_buffer("distances", distances)
        self.sigma_color = sigma_color

    def readouts(
        self, images: Tensor, tokens: Tensor, grid: tuple[int, int], logits: Tensor, wanted: Collection[int]
    ) -> dict[int, Tensor]:
        """The cells' logits, for any number of steps above 0 those of one step."""
        s = self.factor
        cells = F.avg_pool2d(images, images.shape[-1] // grid[1] // s)
        patches = _around(F.avg_pool2d(cells, s))
        own = rearrange(cells, "b c (h i) (w j) -> b c i j h w", i=s, j=s)
        away = torch.stack([(own - patches[:, n, :, None, None]).square().sum(1) for n in range(9)], 1)
        scores = -away / (2 * self.sigma_color**2) - self.get_buffer("distances")[..., None, None]
        fine = torch.einsum("b n i j h w, b n k h w -> b k i j h w", scores.softmax(1), _around(logits))
        upsampled = F.interpolate(logits, scale_factor=float(s), mode="bilinear")
        mean = rearrange(fine, "b k i j h w -> b k (h i) (w j)")
        return {steps: mean if steps else upsampled for steps in wanted}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("run", type=Path, help="run folder of a model without a mean shift block")
    options.add_argument("--splits", nargs="+", default=["held_out", "test"])
    options.add_argument("--factor", type=int, default=4)
    args = options.parse_args()
    config, model = parse_recipe(args.run / "config.yaml"), ms.load_model(args.run)
    assert isinstance(model, ms.Segmenter)
    first = args.splits[0]

    def score(split: str) -> Result:
        reading = config.evaluation.reading
        predictor = ms.Predictor(model, **reading)
        return ms.evaluate(predictor, open_split(config.data, split))

    plain = {split: score(split) for split in args.splits}
    chosen, best = (0.0, 0.0), -1.0
    for sigmas in itertools.product(POSITIONS, COLORS):
        model.pixel_shift = JointBilateral(model.patch_size, args.factor, *sigmas)
        found = score(first).mIoU
        print(f"σ_p {sigmas[0]} patches, σ_c {sigmas[1]}: {found:.2f} on {first}", flush=True)
        chosen, best = (sigmas, found) if found > best else (chosen, best)
    model.pixel_shift = JointBilateral(model.patch_size, args.factor, *chosen)
    fixed = {split: score(split) for split in args.splits}
    print("\n| | " + " | ".join(args.splits) + " |\n| --- |" + " ---: |" * len(args.splits))
    for name, scores in (("bilinear", plain), (f"joint bilateral, σ_p {chosen[0]}, σ_c {chosen[1]}", fixed)):
        print(f"| {name} | " + " | ".join(f"{scores[split].mIoU:.2f}" for split in args.splits) + " |")
    print(f"\n{plain[first].protocol}")


if __name__ == "__main__":
    main()
