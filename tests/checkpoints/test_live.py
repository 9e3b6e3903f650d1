"""Our files in MMSegmentation itself, if it is installed; docs/interop.md records a run."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import meanshifter as ms
from meanshifter.checkpoints.foreign import read_checkpoint
from meanshifter.checkpoints.writing import write_mmsegmentation
from tests.checkpoints.foreign import Toy, mmsegmentation_state

mmseg = pytest.importorskip("mmseg", reason="MMSegmentation is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("preset", ["segmenter-ti16", "segmenter-mask-ti16"])
@pytest.mark.parametrize("size", [(600, 700), (100, 683), (40, 60)], ids=["larger", "narrower", "smaller"])
def test_mmsegmentation_loads_our_file_and_gives_our_label_map(
    preset: str, size: tuple[int, int], tmp_path: Path
) -> None:
    from mmseg.apis import inference_model, init_model

    torch.manual_seed(0)
    model = ms.create_model(preset, num_classes=150)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    write_mmsegmentation(model, tmp_path / "model.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = init_model(str(tmp_path / "model.py"), str(tmp_path / "model.pth"), device="cpu")
    ours = read_checkpoint(tmp_path / "model.pth")
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    found = ms.Predictor(ours, compat="mmsegmentation")(image).labels
    expected = inference_model(theirs, image[:, :, ::-1].copy()).pred_sem_seg.data[0].numpy()
    assert (found == expected).mean() >= 0.9999
    x = torch.randn(1, 3, 96, 160)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs.decode_head(theirs.backbone(x)), rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("preset", ["segmenter-ti16", "segmenter-mask-ti16"])
def test_label_maps_of_photographs_agree(preset: str, shared: Path, tmp_path: Path) -> None:
    from mmseg.apis import inference_model, init_model

    torch.manual_seed(0)
    weights = next((shared / "weights").glob("*.safetensors"))
    write_mmsegmentation(ms.create_model(preset, num_classes=150, encoder_weights=weights), tmp_path / "model.pth")
    theirs = init_model(str(tmp_path / "model.py"), str(tmp_path / "model.pth"), device="cpu")
    predictor = ms.Predictor(read_checkpoint(tmp_path / "model.pth"), compat="mmsegmentation")
    for path in sorted((shared / "data" / "ade20k_sample").rglob("*.jpg")):
        expected = inference_model(theirs, str(path)).pred_sem_seg.data[0].numpy()
        assert (predictor(path).labels == expected).mean() >= 0.9999


def test_runner_state_in_a_checkpoint_is_ignored(tmp_path: Path) -> None:
    from mmengine.logging import MessageHub

    state = mmsegmentation_state(Toy(), "linear")
    hub = MessageHub.get_instance("meanshifter")
    hub.update_scalar("train/loss", 0.25)
    hub.update_info("iter", np.int64(3))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(value) for value in state.values()])
    whole = {"state_dict": state, "message_hub": hub.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**whole, "param_schedulers": [{"last_step": np.int64(3), "base_values": [0.1]}]}, tmp_path / "iter.pth")
    model = read_checkpoint(tmp_path / "iter.pth")
    assert torch.equal(model.state_dict()["encoder.vit.cls_token"], state["backbone.cls_token"])


CONFIGS = sorted((Path(mmseg.__file__).parent / ".mim" / "configs" / "segmenter").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_segmenter_configurations_of_mmsegmentation_need_no_assumptions(path: Path, tmp_path: Path) -> None:
    from mmengine.config import Config

    config = Config.fromfile(path)
    encoder, head = config.model.backbone, config.model.decode_head
    toy = Toy(encoder.embed_dims, 1, encoder.num_heads, encoder.patch_size, encoder.img_size[0], head.num_classes, 1)
    state = mmsegmentation_state(toy, "mask" if "mask" in path.stem else "linear")
    torch.save({"meta": {"cfg": config.pretty_text}, "state_dict": state}, tmp_path / "model.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = read_checkpoint(tmp_path / "model.pth")
    reading = config.model.test_cfg
    assert (model.config.window, model.config.window_stride) == (reading.crop_size[0], reading.stride[0])
    (resize,) = (step for step in config.test_pipeline if step.type == "Resize")
    assert (model.config.short_side, model.config.norm_eps, model.encoder.heads) == (
        min(resize.scale),
        1e-6,
        encoder.num_heads,
    )
