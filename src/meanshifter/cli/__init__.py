"""The command line: one thin file per command, which parses, calls the library and prints."""

SEGMENTER_HELP = "model or run folder, Hub id, published name, or another tool's .pth"
"""What `meanshifter.interop.loading.load_segmenter` takes."""
MODEL_HELP = "model, run or export folder, Hub id, published name, or another tool's .pth"
"""What `meanshifter.load_model` takes."""
