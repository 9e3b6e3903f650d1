"""Pretrained weights with terms of their own. Everything else that timm has for plain ViTs is Apache-2.0 or MIT."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final


@dataclass(frozen=True)
class Terms:
    """The license of weights that are not under a permissive one."""

    license: str
    """Its name."""
    commercial: bool = True
    """Whether it allows commercial use; read it for its conditions."""
    url: str | None = None
    """Its text; None: see the model card on the Hub."""

    def describe(self, encoder: str) -> str:
        """Name, kind and address in one phrase."""
        kind = "" if self.commercial else " (noncommercial)"
        return f"{self.license}{kind}, {self.url or card_of(encoder)}"


_DINOV3: Final = Terms("DINOv3 License", url="https://ai.meta.com/resources/models-and-libraries/dinov3-license")
_BY_NC: Final = Terms("CC BY-NC 4.0", commercial=False, url="https://creativecommons.org/licenses/by-nc/4.0/")
_TERMS: Final = {
    "*.eupe_*": Terms("FAIR Noncommercial Research License", commercial=False),
    "*dinov3*.lvd1689m": _DINOV3,
    "*dinov3*.sat493m": _DINOV3,
    "*.mae": _BY_NC,
    "*_ijepa": _BY_NC,
    "*.metaclip*": _BY_NC,
    "*.dfn[25]b*": Terms("Apple Sample Code License"),
    "*.apple_mclip*": Terms("Apple Machine Learning Research Model License", commercial=False),
    "*.c_radio": Terms("NVIDIA Open Model License"),
    "*sapiens2.*": Terms("Sapiens2 License"),
    "aimv2_*.apple_pt*": Terms("Apple Sample Code License"),
    "*.bamboo": Terms("no license stated"),
}
"""Pattern of timm's names with their tag → terms; the first match counts. Source: `license` of timm 1.0.31."""
PERMISSIVE_RECIPE: Final = "folder_dinov2_s"
"""The recipe whose weights, of the same size, are under Apache-2.0."""


def terms_of(encoder: str) -> Terms | None:
    """The terms of the weights that timm downloads for a name with a tag; None if they are permissive."""
    return next((terms for pattern, terms in _TERMS.items() if fnmatchcase(encoder, pattern)), None)


def card_of(encoder: str) -> str:
    """Address of the model card of timm's weights."""
    return f"https://huggingface.co/timm/{encoder}"


def terms_hint(encoder: str) -> str:
    """What the message of a failed download adds about weights with terms of their own; else empty."""
    terms = terms_of(encoder)
    if terms is None:
        return ""
    return (
        f". These weights are under the {terms.describe(encoder)}; if access is denied, accept its terms at "
        f"{card_of(encoder)} with an account and log in with `hf auth login`. The recipe {PERMISSIVE_RECIPE} has "
        "weights under Apache-2.0"
    )
