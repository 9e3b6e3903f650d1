"""The installation: optional packages, numba kernels, and hardware."""

from __future__ import annotations

import datetime
import math
import os
import platform
from collections.abc import Callable, Set
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import meanshifter
from meanshifter.errors import InputError, counted

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement


def require_installed(what: str, extra: str | None, *packages: str) -> None:
    """Raise an InputError with install instructions if a package of an extra is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f"{what} needs the package {package}, which is not installed; {install_hint(extra)}")


def require_versions(what: str, extra: str | None, *packages: str) -> None:
    """Raise an InputError if an installed version is outside the range that the extra requires.

    Accepts packages under another distribution name (onnxruntime-gpu), and copies of meanshifter without metadata.
    """
    from importlib.metadata import PackageNotFoundError, version

    for requirement in _requirements(extra):
        if requirement.name not in packages:
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            asked = f"{requirement.name}{requirement.specifier}"
            raise InputError(f"{what} needs {asked}, but {installed} is installed; {install_hint(extra)}")


def install_hint(extra: str | None) -> str:
    """How to install the packages of an extra.

    meanshifter is not on a package index, so its name alone installs nothing; if it is installed, pip adds the extra.
    """
    if extra is None:
        return "pip install . in a clone of meanshifter"
    return (
        f'pip install ".[{extra}]" in a clone of meanshifter, or pip install "meanshifter[{extra}]" if it is installed '
        "already; it is not on a package index"
    )


def _requirements(extra: str | None) -> list[Requirement]:
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    try:
        lines = requires("meanshifter")
    except PackageNotFoundError:
        return []
    every = [Requirement(line) for line in lines] if lines is not None else []
    return [one for one in every if extra and one.marker is not None and one.marker.evaluate({"extra": extra})]


@cache
def has_numba() -> bool:
    """Whether numba is installed and supports the installed NumPy."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def kernel(
    *, fast: Set[str] = frozenset(), inline: str = "never", inner: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function with numba on its first call, without the GIL, and cache it for later processes.

    `fast`: LLVM fast-math flags. `inner`: only kernels call it, so no Python entry point is compiled. If neither the
    package folder nor the user's cache folder is writable, as in read-only containers, every process compiles again.
    Without numba the function is returned unchanged, and callers check `has_numba` before using it.
    """
    if not has_numba():
        return lambda function: function
    from numba import njit

    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "inline": inline}
    options |= {"no_cpython_wrapper": inner, "no_cfunc_wrapper": True}
    if fast:
        options["fastmath"] = set(fast)

    def compiled(function: Callable[..., Any]) -> Any:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # no writable cache folder
            return njit(**options)(function)

    return compiled


def has_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices in hardware."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return any(known.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


def peak_memory(device: torch.device) -> float:
    """Peak bytes so far: allocated by torch on a CUDA device, else of this process; NaN where unknown (Windows)."""
    import torch

    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    try:
        import resource
    except ImportError:
        return math.nan
    unit = 1 if platform.system() == "Darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def describe() -> str:
    """Date, versions, processor and threads, in one line."""
    import torch

    cpu = torch.device("cpu")
    units = "bfloat16 units" if has_bfloat16(cpu) else "no bfloat16 units"
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    threads = counted(torch.get_num_threads(), "thread")
    return (
        f"{datetime.date.today().isoformat()} · meanshifter {meanshifter.__version__} · torch {torch.__version__} · "
        f"Python {platform.python_version()} · {processor()}, {os.cpu_count()} cores, "
        f"{torch.backends.cpu.get_cpu_capability()}, {units}{accelerator} · {threads}"
    )


def processor() -> str:
    """The name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")
