"""How fast the package is, beside the same work written out in plain PyTorch and beside its peers."""
