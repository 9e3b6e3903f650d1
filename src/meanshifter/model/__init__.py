"""Models: encoder, mean shift block, decoders, presets, and how they are stored."""
