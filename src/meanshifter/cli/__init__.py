"""The command line: one thin file per command that parses arguments, calls the library and prints."""

SEGMENTER_HELP = "model or run folder, Hub id, published model, or another tool's .pth"
"""Models that `meanshifter.checkpoints.load.load_segmenter` accepts."""
MODEL_HELP = "model, run, cross-validation or export folder, Hub id, published model, or another tool's .pth"
"""Models that `meanshifter.load_model` accepts."""
