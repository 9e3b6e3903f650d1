"""The built-in recipes: their files, what each is for, and what it costs.

Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from meanshifter.errors import counted
from meanshifter.model.licenses import terms_of
from meanshifter.utils.files import parse_json, parse_yaml

ALIASES: Final = {"folder": "folder_pixel_ti12"}
"""Name → recipe. `folder` is the one for `meanshifter train DIR`."""
COSTS: Final = "costs.json"
"""What benchmarks/recipes.py measured."""


@dataclass(frozen=True)
class Cost:
    """What a recipe takes on a CPU. GPUs have not been measured."""

    step_seconds: float
    """CPU seconds of one optimizer step on one core, augmentation included."""
    peak_gb: float
    """Largest resident memory of the process in 10⁹ bytes, over steps and an evaluation."""
    steps: int
    """Steps of the recipe when it was measured."""
    random_weights: bool
    """Whether the encoder had random weights, which take the same time and memory."""
    image_seconds: float | None = None
    """CPU seconds of the tokens of one training image and its mirror image, on one core; None: they are not cached."""
    image_mb: float | None = None
    """Size of these tokens, with the labels, in 10⁶ bytes; the memory above has those of eight images."""


@dataclass(frozen=True)
class About:
    """A recipe as `meanshifter train --list` shows it."""

    name: str
    purpose: str
    """The first sentence of its header below the command, up to a colon."""
    steps: int
    """Optimizer steps."""
    weights: str
    """Initial weights of the encoder, with their license."""
    cost: Cost | None
    """None if it has not been measured."""

    def lines(self) -> Iterator[str]:
        """The entry of the list."""
        names = [alias for alias, name in ALIASES.items() if name == self.name]
        yield self.name + "".join(f", or {alias}: what `meanshifter train DIR` uses" for alias in names)
        yield f"  {self.purpose}"
        yield f"  weights: {self.weights}"
        if self.cost is None:
            yield "  CPU: not measured; GPU: not measured"
        else:
            cost, hours = self.cost, self.cost.step_seconds * self.steps / 3600
            first = "" if cost.image_seconds is None else f", after {cost.image_seconds:.2g} s per image for its tokens"
            more = "" if cost.image_mb is None else f", and {cost.image_mb:.2g} MB per image"
            yield (
                f"  CPU: {cost.step_seconds:.2g} s per step on one core, {spell_hours(hours)} for {self.steps:,} steps"
                f"{first}; {cost.peak_gb:.1f} GB of memory{more}; GPU: not measured"
            )


def spell_hours(hours: float) -> str:
    """A duration in the largest fitting unit, such as "20 minutes" or "3.1 hours"."""
    if hours < 1:
        return counted(max(round(60 * hours), 1), "minute")
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.0f} days"


def recipe_names() -> list[str]:
    """Names of the built-in recipes, and other names of theirs."""
    files = (entry.name for entry in _folder().iterdir())
    return sorted([*(name.removesuffix(".yaml") for name in files if name.endswith(".yaml")), *ALIASES])


def recipe_text(name: str) -> str:
    """The YAML of a built-in recipe."""
    text: str = (_folder() / f"{ALIASES.get(name, name)}.yaml").read_text("utf-8")
    return text


def list_recipes() -> list[str]:
    """The lines of `meanshifter train --list`."""
    entries = (about(name) for name in recipe_names() if name not in ALIASES)
    return [
        *(line for entry in entries for line in (*entry.lines(), "")),
        f"CPU: processor time, measured {_costs()['machine']}.",
        "Initial weights were random, which take the same time and memory; `python benchmarks/recipes.py` measures it.",
    ]


def about(name: str) -> About:
    """What the list says about a recipe, from its file and the measured costs."""
    text = recipe_text(name)
    values = parse_yaml(text, name)
    header = [line.removeprefix("#").strip() for line in text.split("format_version")[0].splitlines()]
    described = " ".join(line for line in header[1:] if not line.startswith("…"))
    stored = _costs()["recipes"].get(ALIASES.get(name, name))
    return About(
        name=name,
        purpose=re.split(r"\. |: ", described)[0].rstrip(".") + ".",
        steps=int(values.get("steps", 160_000)),
        weights=_weights(values.get("model") or {}),
        cost=None if stored is None else Cost(**stored),
    )


def _weights(model: dict[str, Any]) -> str:
    name = model.get("encoder")
    if model.get("encoder_weights") is None or name is None:
        return "none, trained from scratch"
    terms = terms_of(name)
    return f"{name}, {'Apache-2.0' if terms is None else terms.describe(name)}"


@cache
def _costs() -> dict[str, Any]:
    found: dict[str, Any] = parse_json((_folder() / COSTS).read_text("utf-8"), COSTS)
    return found


def _folder() -> Any:
    return resources.files("meanshifter") / "recipes"
