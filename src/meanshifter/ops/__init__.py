"""Operations on patch logits that give the results of upsampling without storing the upsampled logits."""

from meanshifter.ops.argmax import Confidence, PixelConfidence, label_map, pixel_confidence, upsampled_argmax
from meanshifter.ops.loss_terms import LossTerms, upsampled_loss
from meanshifter.ops.losses import upsampled_cross_entropy
from meanshifter.ops.upsampling import View, bilinear_matrix

__all__ = [
    "Confidence",
    "LossTerms",
    "PixelConfidence",
    "View",
    "bilinear_matrix",
    "label_map",
    "pixel_confidence",
    "upsampled_argmax",
    "upsampled_cross_entropy",
    "upsampled_loss",
]
