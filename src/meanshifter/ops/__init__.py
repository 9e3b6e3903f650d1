"""Arithmetic on patch logits, knowing no model: what upsampling would give, without the upsampled logits."""

from meanshifter.ops.cross_entropy import upsampled_cross_entropy
from meanshifter.ops.label_map import PixelScores, Score, View, label_map, pixel_scores, upsampled_argmax
from meanshifter.ops.upsampling import bilinear_matrix

__all__ = [
    "PixelScores",
    "Score",
    "View",
    "bilinear_matrix",
    "label_map",
    "pixel_scores",
    "upsampled_argmax",
    "upsampled_cross_entropy",
]
