"""Training fewer weights: a frozen encoder, adapters, gradient checkpointing; what is saved, and that all resume."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import meanshifter as ms
from meanshifter.data import Shapes
from meanshifter.training import loop
from meanshifter.training.adapters import (
    SampledDropout,
    adapted_layers,
    add_adapters,
    choose_trained,
    enable_checkpointing,
    frozen_names,
    sharing_frozen,
    without_adapters,
)
from meanshifter.training.config import TrainConfig
from meanshifter.training.loop import train
from meanshifter.training.optimizer import SampledDropPaths, create_optimizer, step_seed
from meanshifter.training.parsing import parse_recipe
from meanshifter.training.sections import LoraConfig
from meanshifter.training.setup import prepare

LORA = "--lora={rank: 3, alpha: 6, dropout: 0.3, targets: [qkv, fc1]}"
FREEZE = "--optimizer.freeze=encoder"


def toy(preset: str = "segmenter-ti16", depth: int = 2, drop_path: float = 0.0) -> ms.Segmenter:
    torch.manual_seed(0)
    args = {"depth": depth, "embed_dim": 24, "num_heads": 2}
    return ms.create_model(
        preset, classes=Shapes().label_space, image_size=64, encoder_args=args, drop_path=drop_path
    ).train()


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to start from, as pretrained weights stand in for."""
    path = tmp_path_factory.mktemp("source") / "model"
    toy().save(path)
    return path


Configure = Callable[..., TrainConfig]


@pytest.fixture
def configured(source: Path, tiny_text: str, tmp_path: Path) -> Configure:
    (tmp_path / "recipe.yaml").write_text(tiny_text.replace("steps: 8", "steps: 5"))

    def make(*words: str, out: str = "run") -> TrainConfig:
        short = ["--evaluation.interval=0", "--evaluation.limit=1", f"--model.init_from={source}"]
        return parse_recipe(tmp_path / "recipe.yaml", [*short, *words, "--out", str(tmp_path / out)])

    return make


def interrupt_after(step: int, config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train until a step is done, of which the last checkpoint, after step 3, knows nothing."""
    with monkeypatch.context() as patch:
        take_step = loop.take_step

        def interrupting(*args: Any, **options: Any) -> Any:
            taken = take_step(*args, **options)
            if args[2].state.progress.step == step:
                raise KeyboardInterrupt
            return taken

        patch.setattr(loop, "take_step", interrupting)
        with pytest.raises(KeyboardInterrupt):
            train(config, quiet=True)


@pytest.mark.parametrize(
    "words",
    [
        [FREEZE],
        [LORA],
        [LORA, "--ema=null", "--optimizer.layer_decay=0.6", "--gradient_checkpointing=true"],
        ["--optimizer.layer_decay=0.6", "--optimizer.name=novograd", "--optimizer.args={betas: [0.9, 0.98]}"],
        ["--gradient_checkpointing=true", "--optimizer.name=lamb"],
    ],
)
def test_every_mode_resumes_to_the_same_bytes(
    words: list[str], configured: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(configured(*words, out="whole"), quiet=True).path
    config = configured(*words)
    interrupt_after(4, config, monkeypatch)
    run = train(config, resume=True, quiet=True).path
    for name in ("last/training.safetensors", "last/model.safetensors", "best/model.safetensors"):
        ours, theirs = (load_file(path / "checkpoints" / name) for path in (run, whole))
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(ours[key], value), (name, key)


def test_a_frozen_encoder_stays_as_it_was_and_takes_no_room_in_the_state(configured: Configure, source: Path) -> None:
    run = train(configured(FREEZE), quiet=True).path
    before, after = load_file(source / "model.safetensors"), ms.load_model(run)
    assert isinstance(after, ms.Segmenter)
    for key, value in after.state_dict().items():
        assert torch.equal(value, before[key]) == key.startswith("encoder."), key
    state = load_file(run / "checkpoints" / "last" / "training.safetensors")
    trained = [key for key in before if not key.startswith("encoder.")]
    assert {key for key in state if key.startswith("average.")} == {f"average.{key}" for key in trained}
    moments = [key for key in state if key.startswith("optimizer.") and key.endswith("exp_avg")]
    assert len(moments) == len(trained)


def test_a_frozen_encoder_keeps_nothing_for_a_gradient_and_has_no_stochastic_depth() -> None:
    model = toy(drop_path=0.9)
    model.encoder.freeze()
    model.train()
    tokens, _ = model.encode(images := torch.randn(2, 3, 64, 64))
    assert not tokens.requires_grad
    assert torch.equal(tokens, model.evaluation_view().encode(images)[0])
    assert SampledDropPaths(model).paths == []
    average = sharing_frozen(model)
    assert average.encoder.vit.cls_token is model.encoder.vit.cls_token
    assert average.decoder.head.weight is not model.decoder.head.weight  # type: ignore[union-attr]
    assert frozen_names(model) == {name for name, _ in model.named_parameters() if name.startswith("encoder.")}


@pytest.mark.parametrize("preset", ["segmenter-ti16", "meanshifter-ti16", "meanshifter-pixel-ti16"])
def test_merged_adapters_equal_separate_ones(preset: str, tmp_path: Path) -> None:
    model = toy(preset)
    add_adapters(model, LoraConfig(rank=3, alpha=5.0, targets=["qkv", "proj", "fc1", "fc2"]), seed=1)
    model.eval()
    images = torch.randn(2, 3, 64, 80)
    start = model(images)
    with torch.no_grad():
        for _, layer in adapted_layers(model):
            nn.init.normal_(layer.lora_B["default"].weight, std=0.2)
    separate, merged = model(images), without_adapters(model)
    assert not list(adapted_layers(merged))
    assert (separate - start).abs().max() > 1e-2, "the adapters have an effect"
    torch.testing.assert_close(merged(images), separate, rtol=1e-5, atol=1e-5)
    # the formula of the paper, in float64
    name, layer = next(adapted_layers(model))
    A, B = (part["default"].weight.double() for part in (layer.lora_A, layer.lora_B))
    expected = layer.base_layer.weight.double() + 5.0 / 3 * B @ A
    torch.testing.assert_close(merged.get_parameter(f"{name}.weight").double(), expected, rtol=1e-6, atol=1e-7)
    merged.save(tmp_path / "merged")
    again = ms.load_model(tmp_path / "merged")
    assert isinstance(again, ms.Segmenter)
    assert torch.equal(again(images), merged(images))


def test_adapters_start_as_the_model_without_them() -> None:
    model, plain = toy().eval(), toy().eval()
    add_adapters(model, LoraConfig(), seed=0)
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(model(images), plain(images))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(name.startswith("decoder.") or ".lora_" in name for name in trained)
    assert sum(name.startswith("encoder.") for name in trained) == 2 * 2 * 2, "A and B of qkv and proj in two blocks"


def test_a_run_with_adapters_keeps_them_to_resume_and_leaves_plain_weights(
    configured: Configure, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(configured(LORA), quiet=True).path
    state = load_file(run / "checkpoints" / "last" / "training.safetensors")
    plain = load_file(source / "model.safetensors")
    assert any(".lora_A." in key for key in state)
    for kind in ("best", "last"):
        weights = load_file(run / "checkpoints" / kind / "model.safetensors")
        assert weights.keys() == plain.keys()
        changed = {key for key in plain if not torch.equal(weights[key], plain[key])}
        adapted = {f"encoder.vit.blocks.{n}.{name}.weight" for n in (0, 1) for name in ("attn.qkv", "mlp.fc1")}
        assert changed == adapted | {key for key in plain if key.startswith("decoder.")}
    # another run starts from it, without peft
    monkeypatch.setitem(sys.modules, "peft", None)
    again = train(configured("--steps=1", f"--model.init_from={run}", out="again"), quiet=True).path
    assert load_file(again / "checkpoints" / "last" / "model.safetensors").keys() == plain.keys()


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([FREEZE, "--optimizer.layer_decay=0.5"], "optimizer.layer_decay: 0.5"),
        ([FREEZE, "--lora.rank=4"], "lora: .*optimizer.freeze is encoder"),
        ([FREEZE, "--gradient_checkpointing=true"], "gradient_checkpointing: .*optimizer.freeze is encoder"),
        (["--lora.rank=0"], "lora.rank: 0 must be at least 1"),
        (["--lora={dropout: 1.0, targets: []}"], r"lora.dropout: 1.0 .*lora.targets: \[\]"),
        (["--lora.rang=3"], "'lora.rang', did you mean 'lora.rank'"),
        (["--lora={rank: many}"], "lora.rank: 'many' is not an integer"),
        (["--optimizer.layer_decay=0"], "optimizer.layer_decay: 0"),
        (["--optimizer.name=lion", "--optimizer.betas=0.9 0.99"], r"optimizer.args.betas"),
        (["--optimizer.freeze=decoder"], "optimizer.freeze: 'decoder'"),
    ],
)
def test_contradictions_are_refused_when_the_recipe_is_parsed(
    words: list[str], named: str, configured: Configure
) -> None:
    with pytest.raises(ms.InputError, match=named):
        configured(*words)


def test_a_layer_that_the_encoder_lacks_is_named(configured: Configure) -> None:
    config = configured("--lora.targets=[qkv, fc]")
    with pytest.raises(ms.InputError, match=r"lora\.targets: 'fc' .*did you mean 'fc[12]'"):
        train(config, quiet=True)
    assert not Path(str(config.out)).exists()


def test_an_adapter_without_effect_is_refused() -> None:
    """Some encoders of timm multiply by the weight of a layer without calling it."""
    model = toy()
    for block in model.encoder.vit.blocks.children():
        layer = block.attn.proj
        block.attn.proj = nn.Sequential(nn.Identity())
        block.attn.unused = nn.ModuleDict({"proj": layer})
    with pytest.raises(ms.InputError, match=r"lora\.targets: 'proj' has no effect"):
        add_adapters(model, LoraConfig(), seed=0)


def test_peft_is_asked_for_where_it_is_missing(configured: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meanshifter.utils.environment.find_spec", lambda name: None)
    with pytest.raises(ms.InputError, match=r"lora needs the package peft.*\[lora\]"):
        train(configured("--lora={}"), quiet=True)


def test_random_weights_that_stay_random_are_told(tiny: TrainConfig) -> None:
    tiny.optimizer.freeze = "encoder"
    with pytest.warns(UserWarning, match=r"optimizer\.freeze: .*random.*model\.encoder_weights"):
        choose_trained(toy(), tiny)


@pytest.mark.parametrize("positions", ["antialias", "bilinear"])
def test_gradient_checkpointing_gives_the_same_gradient(positions: str) -> None:
    """With stochastic depth and the dropout of adapters, in both ways of embedding positions."""
    gradients = []
    for enabled in (False, True):
        model = toy(drop_path=0.5)
        model.encoder.positions = positions
        add_adapters(model, LoraConfig(rank=2, dropout=0.4), seed=0)
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        with torch.no_grad():
            for _, layer in adapted_layers(model):
                nn.init.normal_(layer.lora_B["default"].weight, std=0.2, generator=torch.Generator().manual_seed(1))
        drops = SampledDropPaths(model)
        if enabled:
            enable_checkpointing(model)
        torch.manual_seed(step_seed(0, 3))
        drops.draw(4)
        drops.use(slice(0, 4), model.device)
        images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(2))
        model(images).square().mean().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        if gradient is not None:
            assert torch.equal(gradient, gradients[1][name]), name  # type: ignore[arg-type]


def test_dropout_of_a_crop_depends_on_no_other_crop() -> None:
    whole, parts = SampledDropout(0.4).train(), SampledDropout(0.4).train()
    x = torch.randn(4, 50, 8)
    whole.seeds = [5, 6, 7, 8]
    expected = whole(x)
    kept = expected != 0
    torch.testing.assert_close(expected, torch.where(kept, x / 0.6, 0.0))
    assert 0.5 < kept.float().mean() < 0.7
    parts.seeds = [6, 7]
    assert torch.equal(parts(x[1:3]), expected[1:3])
    assert torch.equal(whole.eval()(x), x)


def test_split_steps_train_adapters_alike(configured: Configure) -> None:
    """Two passes of one crop, as one pass of two: the masks belong to the crops."""
    one = train(configured(LORA, "--steps=2", out="one"), quiet=True).path
    two = train(configured(LORA, "--steps=2", "--batch_size=1", "--accumulate=2", out="two"), quiet=True).path
    ours, theirs = (load_file(path / "checkpoints" / "last" / "model.safetensors") for path in (two, one))
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-5)


def test_the_first_lines_count_what_is_trained(configured: Configure) -> None:
    from meanshifter.training.display import summary

    setup = prepare(config := configured(FREEZE), resume=False)
    model = setup.learner.state.model
    whole, head = (sum(p.numel() for p in part.parameters()) for part in (model, model.decoder))
    setup.run.release()
    assert f"{whole:,} parameters, {head:,} of them trained (frozen encoder)" in summary(config, setup)[1]


def test_layer_decay_scales_each_layer_once_more() -> None:
    model = toy(depth=3)
    config = replace(TrainConfig().optimizer, lr=0.1, head_lr=0.3, layer_decay=0.5, weight_decay=0.1)
    optimizer = create_optimizer(model, config)
    scale = {id(p): group.get("lr_scale", 1.0) for group in optimizer.param_groups for p in group["params"]}
    base = {id(p): group["base_lr"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        part = name.removeprefix("encoder.vit.")
        if part.startswith("blocks."):
            expected = 0.5 ** (3 - int(part.split(".")[1]))
        else:
            expected = 1.0 if part == name else 0.5 if part.startswith("norm.") else 0.5**4
        assert scale[id(parameter)] == expected, name
        assert base[id(parameter)] == (0.3 if part == name else 0.1)
