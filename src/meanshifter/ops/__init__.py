"""Arithmetic on patch logits, knowing no model: what upsampling would give, without the upsampled logits."""

from meanshifter.ops.cross_entropy import upsampled_cross_entropy
from meanshifter.ops.label_map import View, label_map, upsampled_argmax
from meanshifter.ops.upsampling import bilinear_matrix

__all__ = ["View", "bilinear_matrix", "label_map", "upsampled_argmax", "upsampled_cross_entropy"]
