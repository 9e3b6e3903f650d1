"""Weights with terms of their own are known by name, as timm states them, and named where a download fails."""

from __future__ import annotations

import socket

import pytest
import timm

import meanshifter as ms
from meanshifter.errors import InputError
from meanshifter.model.licenses import terms_hint, terms_of
from meanshifter.model.vits import plain_names

PERMISSIVE = {"apache-2.0", "mit", "bsd-3-clause"}
WORDS = {
    "dinov3-license": "DINOv3",
    "fair-noncommercial-research-license": "FAIR Noncommercial",
    "cc-by-nc-4.0": "CC BY-NC 4.0",
    "apple-ascl": "Apple Sample Code",
    "apple-amlr": "Apple Machine Learning Research",
    "nvidia-open-model-license": "NVIDIA Open Model",
    "sapiens2-license": "Sapiens2",
    None: "no license",
}


def test_the_terms_are_those_that_timm_states() -> None:
    wrong, seen = [], set()
    plain = set(plain_names())
    for name in (name for name in timm.list_pretrained() if name.split(".")[0] in plain):
        stated = timm.get_pretrained_cfg(name)
        assert stated is not None
        terms = terms_of(name)
        seen.add(stated.license)
        known = stated.license in PERMISSIVE if terms is None else WORDS.get(stated.license, "?") in terms.license
        if not known:
            wrong.append((name, stated.license, terms))
    assert not wrong
    assert "apache-2.0" in seen


def test_noncommercial_terms_say_so() -> None:
    for name in ("vit_tiny_patch16_dinov3_qkvb.eupe_lvd1689m", "vit_base_patch16_224.mae"):
        terms = terms_of(name)
        assert terms is not None
        assert "(noncommercial)" in terms.describe(name)
    terms = terms_of("vit_small_patch16_dinov3.lvd1689m")
    assert terms is not None
    assert "noncommercial" not in terms.describe("")


def test_the_hint_names_license_card_and_a_permissive_recipe() -> None:
    hint = terms_hint("vit_small_patch16_dinov3.lvd1689m")
    for part in ("DINOv3 License", "huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m", "folder_dinov2_s"):
        assert part in hint
    assert "Apache-2.0" in hint
    assert terms_hint("vit_small_patch14_reg4_dinov2.lvd142m") == ""


@pytest.mark.parametrize(
    ("encoder", "terms"),
    [("vit_base_patch16_224.mae", "CC BY-NC 4.0 (noncommercial)"), ("vit_tiny_patch16_224.augreg_in21k", None)],
)
def test_a_failed_download_names_the_terms(encoder: str, terms: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", closed)
    small = {"depth": 1}
    with pytest.raises(InputError, match="is unreachable") as caught:
        ms.create_model("segmenter-ti16", 2, encoder=encoder, encoder_weights="timm", encoder_args=small)
    assert ("folder_dinov2_s" in str(caught.value)) == (terms is not None)
    assert terms is None or terms in str(caught.value)
