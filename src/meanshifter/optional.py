"""Packages that may be missing."""

from __future__ import annotations

from functools import cache


@cache
def has_numba() -> bool:
    """Whether numba is there, and accepts the NumPy that is."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True
