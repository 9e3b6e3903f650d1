"""The share of pixels on which a model's bfloat16 label maps agree with its float32 ones.

python benchmarks/agreement.py MODEL IMAGE…
"""

from __future__ import annotations

import argparse

import numpy as np

import meanshifter as ms
from meanshifter.utils import environment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("images", nargs="+")
    args = parser.parse_args()
    model = ms.load_model(args.model)
    full, half = (ms.Predictor(model, short_side=None, precision=precision) for precision in ("fp32", "bf16"))
    shares = [float(np.mean(full(image).labels == half(image).labels)) for image in args.images]
    print(environment.describe())
    print(
        f"{len(shares)} images: {100 * np.mean(shares):.2f} % of the pixels agree, at least {100 * min(shares):.2f} %"
    )


if __name__ == "__main__":
    main()
