"""Both operations as torch operators: derivatives, registration, compilation, meta tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.library import opcheck

import meanshifter as ms
from tests import commands
from tests.ops.cases import IMPLEMENTATIONS, Recorded, implementation, upsample

LOSS, PRODUCT, ARGMAX = (
    getattr(torch.ops.meanshifter, name).default
    for name in ("upsampled_cross_entropy", "upsampled_cross_entropy_hessian", "upsampled_argmax")
)
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
]
COMPILED = """
import sys
import torch
import meanshifter as ms

def both(function):
    def run(x, labels):
        logits = function(x)
        loss = ms.ops.upsampled_cross_entropy(logits, labels, label_smoothing=0.1)
        return loss, ms.ops.upsampled_argmax(logits, labels.shape[-2:])
    return run

def check(module, run, fast, x, labels):
    found = []
    for function in (run, fast):
        module.zero_grad()
        loss, chosen = function(x, labels)
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in module.parameters()), chosen])
    one, other = (several.pop() for several in found)
    assert one.dtype == other.dtype and (one != other).float().mean() < 0.01  # nearly equal classes
    for ours, other in zip(*found, strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-4, atol=1e-6)

torch.manual_seed(0)
torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False
D = sys.argv[1]
model = ms.create_model("meanshifter-ti16", num_classes=5, image_size=32, encoder_args={"depth": 1}).eval().to(D)
run = both(model)
check(model, run, torch.compile(run, fullgraph=True, backend="eager"), torch.randn(1, 3, 32, 32, device=D),
      torch.randint(0, 5, (1, 32, 32), dtype=torch.uint8, device=D))
head = torch.nn.Conv2d(4, 5, 1).to(D)
run = both(head)
fast = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
for B, h, w in ((2, 3, 4), (2, 5, 4), (3, 6, 7)):
    labels = torch.randint(0, 5, (B, 8 * h - 1, 8 * w), device=D)
    check(head, run, fast, torch.randn(B, 4, h, w, device=D), labels)
    torch.compiler.set_stance("fail_on_recompile")
labels[0, 0, 0] = 9
try:
    print(fast(torch.randn(B, 4, h, w, device=D), labels)[0].item())
except ms.InputError as error:
    print(error)
if D == "cuda":
    torch.compiler.set_stance("default")
    for mode in ("default", "reduce-overhead"):
        fast = torch.compile(run, fullgraph=True, mode=mode)
        for _ in range(4):
            torch.compiler.cudagraph_mark_step_begin()
            check(head, run, fast, torch.randn(B, 4, h, w, device=D), torch.randint(0, 5, (B, 8 * h, 8 * w), device=D))
"""


def small() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits, labels with some ignored, and weights."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 2, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.randint(0, 3, (2, 7, 9), generator=generator)
    labels[:, :2] = 255
    return logits, labels, torch.rand(3, dtype=torch.float64, generator=generator) + 0.5


@pytest.mark.parametrize("reduction", ["mean_valid", "mean_all"])
def test_first_and_second_derivatives_are_those_of_the_loss(reduction: Any) -> None:
    logits, labels, weight = small()

    def loss(z: torch.Tensor) -> torch.Tensor:
        return ms.ops.upsampled_cross_entropy(
            z, labels, padded_size=(8, 9), reduction=reduction, weight=weight, label_smoothing=0.1
        )

    assert torch.autograd.gradcheck(loss, logits)
    assert torch.autograd.gradgradcheck(loss, logits)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_gradient_penalty_has_the_same_gradient_as_in_torch(name: str) -> None:
    exact, labels, _ = small()
    full = upsample_with_gradient(exact, (7, 9))
    (first,) = torch.autograd.grad(F.cross_entropy(full, labels, ignore_index=255), exact, create_graph=True)
    (expected,) = torch.autograd.grad(first.square().sum(), exact)
    logits = exact.detach().float().requires_grad_()
    with implementation(name):
        loss = ms.ops.upsampled_cross_entropy(logits, labels)
        (first,) = torch.autograd.grad(loss, logits, create_graph=True)
        (found,) = torch.autograd.grad(first.square().sum(), logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def upsample_with_gradient(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Upsample with matrices, since torch's interpolation has only first derivatives."""
    rows, cols = (
        ms.ops.bilinear_matrix(n, out, out, torch.float64) for n, out in zip(logits.shape[-2:], size, strict=True)
    )
    full = rows @ logits @ cols.T
    torch.testing.assert_close(full, upsample(logits, size, size))
    return full


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # which forward mode calls
def test_third_and_forward_derivatives_are_refused() -> None:
    logits, labels, _ = small()
    (first,) = torch.autograd.grad(ms.ops.upsampled_cross_entropy(logits, labels), logits, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="upsampled_cross_entropy_hessian"):
        torch.autograd.grad(second.sum(), logits)
    still = logits.detach()
    with pytest.raises(ms.InputError, match=r"logits: .*forward-mode"):
        torch.func.jvp(lambda z: ms.ops.upsampled_cross_entropy(z, labels), (still,), (still,))


@pytest.mark.usefixtures("user")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # caused by opcheck
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_the_operators_pass_opcheck(device: str, dtype: torch.dtype) -> None:
    z, labels, w = (tensor.detach().to(device) for tensor in small())
    logits = z.to(dtype).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2)
    weight = w.to(torch.float64 if dtype == torch.float64 else torch.float32)
    settings = [8, 9], 255, "mean_valid", 0.1
    tests = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if dtype == torch.float32:
        tests.append("test_aot_dispatch_dynamic")
    opcheck(LOSS, (logits.clone().requires_grad_(), labels, weight, *settings, True), test_utils=tests)
    opcheck(LOSS, (logits, labels, weight, *settings, False), test_utils=tests)
    opcheck(PRODUCT, (logits, labels, weight, logits, *settings), test_utils=tests)
    opcheck(ARGMAX, (logits, [7, 9], [8, 9]), test_utils=tests)


@pytest.mark.parametrize("device", DEVICES)
def test_the_operators_compile_into_one_graph_with_equal_results(device: str) -> None:
    done = commands.run(device, code=COMPILED)
    assert done.returncode == 0, done.stderr[-2000:]
    assert ("value 9 in 1 pixels" if device == "cpu" else "nan") in done.stdout


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_no_gradient_is_computed_if_none_can_be_requested(name: str, mode: Any) -> None:
    logits, labels, _ = small()
    single = logits.detach().float().requires_grad_()
    expected = ms.ops.upsampled_cross_entropy(single, labels)
    with implementation(name), mode(), Recorded() as recorded:
        loss = ms.ops.upsampled_cross_entropy(single, labels)
    torch.testing.assert_close(loss, expected.detach())
    ((_, gradient),) = recorded.outputs(LOSS)
    assert gradient.numel() == 0


def test_meta_tensors_give_shapes_and_types() -> None:
    logits, labels = torch.empty(2, 300, 4, 4, device="meta"), torch.empty(2, 9, 8, dtype=torch.int64, device="meta")
    chosen = ms.ops.upsampled_argmax(logits, (9, 8))
    assert (chosen.shape, chosen.dtype, chosen.device.type) == ((2, 9, 8), torch.uint16, "meta")
    loss = ms.ops.upsampled_cross_entropy(logits.requires_grad_(), labels)
    assert (loss.shape, loss.dtype) == ((), torch.float32)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad.shape == logits.shape


@pytest.mark.parametrize("K", [3, 300])
def test_an_empty_batch_gives_no_labels_and_zero_loss(K: int) -> None:
    logits = torch.empty(0, K, 2, 2, requires_grad=True)
    chosen = ms.ops.upsampled_argmax(logits, (8, 8))
    assert (chosen.shape, chosen.dtype) == ((0, 8, 8), torch.uint8 if K == 3 else torch.uint16)
    assert ms.ops.upsampled_cross_entropy(logits, torch.empty(0, 8, 8, dtype=torch.uint8)) == 0
