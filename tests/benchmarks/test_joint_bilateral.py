"""The fixed kernel of benchmarks/joint_bilateral.py against its equation, cell by cell."""

from __future__ import annotations

import numpy as np
import torch
from joint_bilateral import JointBilateral


def test_logits_are_averaged_with_the_weights_of_the_equation() -> None:
    torch.manual_seed(0)
    position, color, s, P, (h, w) = 0.6, 0.7, 2, 8, (3, 2)
    block = JointBilateral(P, s, position, color).double()
    images = torch.randn(1, 3, h * P, w * P, dtype=torch.float64)
    logits = torch.randn(1, 4, h, w, dtype=torch.float64)
    found = block.readouts(images, torch.empty(1, 0, 1), (h, w), logits, [0, 1])[1][0].numpy()
    pixels, z = images[0].numpy(), logits[0].numpy()
    side = P // s
    for y, x in np.ndindex(s * h, s * w):
        own = pixels[:, y * side : (y + 1) * side, x * side : (x + 1) * side].mean((1, 2))
        total, mean = 0.0, np.zeros(4)
        for i, j in np.ndindex(3, 3):
            row, col = y // s + i - 1, x // s + j - 1
            away = ((y + 0.5) / s - row - 0.5) ** 2 + ((x + 0.5) / s - col - 0.5) ** 2
            row, col = min(max(row, 0), h - 1), min(max(col, 0), w - 1)
            patch = pixels[:, row * P : (row + 1) * P, col * P : (col + 1) * P].mean((1, 2))
            weight = np.exp(-away / (2 * position**2) - ((own - patch) ** 2).sum() / (2 * color**2))
            total, mean = total + weight, mean + weight * z[:, row, col]
        np.testing.assert_allclose(found[:, y, x], mean / total, atol=1e-6)
