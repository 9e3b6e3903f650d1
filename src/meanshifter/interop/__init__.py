"""Other people's checkpoints and runtimes."""
