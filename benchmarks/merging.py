"""What merging tokens at inference costs a trained model: rules, layers and shares side by side, on the same weights.

python benchmarks/merging.py RUN… --data camvid --root DIR [--split val] [--after 2 3 4] [--merge 0.5 0.6 0.7]
    [--rules cosine mean-shift] [--adaptive] [--short-side PIXELS] [--limit N]

Whole images, at their own size unless a short side is given. Each line has the difference of mIoU to the model without
merging, averaged over the runs (seeds of one recipe), with its 95 % interval if there are several. The rules order 2×2
windows:

cosine: by the mean cosine of the four tokens and their mean (ALGM's first stage, Norouzi et al., CVPR 2024).
mean-shift: by how far apart two steps of Gaussian mean shift among the four leave them, with the median distance of the
    image as the bandwidth, on normalized tokens: tokens that reach one mode are one token.
distance: by their mean squared distance from the mean, without steps.

With --adaptive, images merge as many windows as are above one threshold, as in ALGM, in place of a fixed share; it is
the one with which the mean share over the images is that of the line.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

import meanshifter as ms
from meanshifter.analysis.findings import over_seeds
from meanshifter.data.catalog import open_dataset
from meanshifter.inference.protocol import as_segmenter
from meanshifter.model import token_merging
from meanshifter.model.config import TokenMergingConfig
from meanshifter.utils import environment as machine

Rule = Callable[[Tensor, Tensor], Tensor]


def mean_shift(windows: Tensor, means: Tensor, steps: int = 2) -> Tensor:
    z = F.layer_norm(windows, windows.shape[-1:])
    bandwidth = torch.cdist(z, z).square().flatten(1).median(1).values[:, None, None, None]
    for _ in range(steps):
        z = (-torch.cdist(z, z).square() / bandwidth).softmax(-1) @ z
    return -(z - z.mean(2, keepdim=True)).square().sum(-1).mean(-1)


def distance(windows: Tensor, means: Tensor) -> Tensor:
    return mean_shift(windows, means, steps=0)


class Watched:
    """A rule that keeps what it returned, for one image at a time."""

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._seen: list[Tensor] = []
        self.last = torch.empty(0)

    def __call__(self, windows: Tensor, means: Tensor) -> Tensor:
        self.last = self._rule(windows, means)
        self._seen.append(self.last.flatten())
        return self.last

    def threshold(self, share: float) -> float:
        """What this share of all windows so far is above."""
        values = torch.cat(self._seen).sort().values
        return float(values[round((1 - share) * (len(values) - 1))])


RULES: dict[str, Rule] = {"cosine": token_merging.uniformity, "mean-shift": mean_shift, "distance": distance}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("runs", nargs="+", metavar="RUN")
    options.add_argument("--data", required=True)
    options.add_argument("--root")
    options.add_argument("--split", default="val")
    options.add_argument("--after", type=int, nargs="+", default=[3], metavar="LAYER")
    options.add_argument("--merge", type=float, nargs="+", default=[0.6], metavar="SHARE")
    options.add_argument("--rules", nargs="+", choices=tuple(RULES), default=["cosine"])
    options.add_argument("--adaptive", action="store_true")
    options.add_argument("--short-side", type=int)
    options.add_argument("--limit", type=int)
    args = options.parse_args()
    models = [as_segmenter(ms.load_model(run)) for run in args.runs]
    dataset = open_dataset(args.data, args.root, args.split)

    def score(model: ms.Segmenter, merging: TokenMergingConfig | None) -> float:
        model = model.evaluation_view()
        model.encoder.merge_tokens(merging)
        predictor = ms.Predictor(model, window=None, short_side=args.short_side, batch_size=1)
        return float(ms.evaluate(predictor, dataset, limit=args.limit).mIoU)

    def compared(model: ms.Segmenter, merging: TokenMergingConfig, rule: Rule) -> float:
        watched = Watched(rule)
        with mock.patch.object(token_merging, "uniformity", watched):
            found = score(model, merging)
            if not args.adaptive:
                return found
            threshold = watched.threshold(merging.ratio)

            def above(self: TokenMergingConfig, windows: int) -> int:
                return int((watched.last > threshold).sum())

            with mock.patch.object(TokenMergingConfig, "merged", above):
                return score(model, merging)

    print(machine.describe())
    dense = [score(model, None) for model in models]
    print(f"{dataset.name} {args.split}; without merging {', '.join(f'{value:.2f}' for value in dense)}\n")
    print("| rule | after layer | windows merged | Δ mIoU vs. dense |\n| --- | ---: | ---: | ---: |", flush=True)
    for rule in args.rules:
        for after in args.after:
            for share in args.merge:
                found = []
                for model, base in zip(models, dense, strict=True):
                    found.append(compared(model, TokenMergingConfig(after, share), RULES[rule]) - base)
                print(
                    f"| {rule}{', adaptive' if args.adaptive else ''} | {after} | {share:.0%} | {over_seeds(found)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
