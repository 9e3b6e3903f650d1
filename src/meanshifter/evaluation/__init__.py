"""Evaluation on a dataset: scores from a confusion matrix, with the conditions they were measured under."""

from meanshifter.evaluation.evaluate import evaluate
from meanshifter.evaluation.metrics import confusion_matrix
from meanshifter.evaluation.result import ClassScore, Protocol, Result, save_results
from meanshifter.model.saving import weights_hash

__all__ = ["ClassScore", "Protocol", "Result", "confusion_matrix", "evaluate", "save_results", "weights_hash"]
