"""Load models by name or path, and convert checkpoints from and to other tools."""
