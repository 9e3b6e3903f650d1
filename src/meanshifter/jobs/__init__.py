"""Labeling archives: inputs, results, and the workers in between."""
