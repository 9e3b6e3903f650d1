"""From a model to label maps: sliding windows, flips and scales, and what to do with the result."""

from meanshifter.inference.predictor import Predictor
from meanshifter.inference.segmentation import Segmentation

__all__ = ["Predictor", "Segmentation"]
