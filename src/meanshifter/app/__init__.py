"""The explorer: a local page on which models label images, step by step and patch by patch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from meanshifter.app.explorer import Explorer
    from meanshifter.app.server import explore

__all__ = ["Explorer", "explore"]

_HOMES = {"Explorer": "meanshifter.app.explorer", "explore": "meanshifter.app.server"}


def __getattr__(name: str) -> Any:  # on first use, since the server's packages are an extra
    if name not in _HOMES:
        raise AttributeError(f"module 'meanshifter.app' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
