"""Kernels compiled by numba, where numba is there."""

from __future__ import annotations

from collections.abc import Callable, Set
from functools import cache
from typing import Any


@cache
def has_numba() -> bool:
    """Whether numba is there, and accepts the NumPy that is."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def kernel(
    *, fast: Set[str] = frozenset(), inline: str = "never", inner: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function on its first call, for threads that run beside Python, and keep it for later processes.

    `fast` are LLVM's flags of floating-point arithmetic; `inner` says that only kernels call it, so that no entry from
    Python is compiled. Where neither the package's folder nor the user's cache folder can be written, as in locked
    containers, nothing is kept and every process compiles anew.
    """
    from numba import njit

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "inline": inline}
    options |= {"no_cpython_wrapper": inner, "no_cfunc_wrapper": True}
    if fast:
        options["fastmath"] = set(fast)

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # numba found no place for its cache
            return njit(**options)(function)

    return compiled
