"""Scores: one confusion matrix over a data set, and what it was measured under."""

from meanshifter.evaluation.confusion import confusion_matrix
from meanshifter.evaluation.evaluate import evaluate
from meanshifter.evaluation.protocol import Protocol
from meanshifter.evaluation.result import ClassScore, Result, save_results
from meanshifter.interop.weights import weights_hash

__all__ = ["ClassScore", "Protocol", "Result", "confusion_matrix", "evaluate", "save_results", "weights_hash"]
