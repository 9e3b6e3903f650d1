"""Packages of the extras: whether they are installed, in a version that was tried."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from packaging.requirements import Requirement

from meanshifter.errors import InputError


def require_installed(what: str, extra: str | None, *packages: str) -> None:
    """Make sure that the packages of an extra are installed.

    Raises:
        InputError: one is not; the line says which and how to get it.
    """
    for package in packages:
        if find_spec(package) is None:
            raise InputError(f"{what} needs the package {package}, which is not installed; {install_hint(extra)}")


def require_versions(what: str, extra: str | None, *packages: str) -> None:
    """Make sure that the versions of these packages are among those that the extra asks for.

    A package under another distribution's name (onnxruntime-gpu) passes, as does a copy of this one without metadata.

    Raises:
        InputError: one is older or newer.
    """
    for requirement in _requirements(extra):
        if requirement.name not in packages:
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            asked = f"{requirement.name}{requirement.specifier}"
            raise InputError(f"{what} needs {asked}, and {installed} is installed; {install_hint(extra)}")


def install_hint(extra: str | None) -> str:
    """What to type for the packages of an extra.

    No package index has meanshifter, so that its name alone installs nothing; to one that is installed, pip adds the
    extra all the same.
    """
    if extra is None:
        return "pip install . in a clone of meanshifter"
    return (
        f'pip install ".[{extra}]" in a clone of meanshifter, or pip install "meanshifter[{extra}]" where it is '
        "installed; it is on no package index"
    )


def _requirements(extra: str | None) -> list[Requirement]:
    try:
        lines = requires("meanshifter")
    except PackageNotFoundError:
        return []
    every = [Requirement(line) for line in lines] if lines is not None else []
    return [one for one in every if extra and one.marker is not None and one.marker.evaluate({"extra": extra})]
