"""Models: encoder, mean shift block, decoders, presets and storage."""
