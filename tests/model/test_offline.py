"""Weights without a network: from the cache, or an error within seconds that names the option for a file."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import meanshifter as ms
from meanshifter.data.download import why_unreachable

NAME = "vit_tiny_patch16_384.augreg_in21k_ft_in1k"


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address without a server."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{server.getsockname()[1]}"


def run(endpoint: str, home: Path, code: str, *words: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    return subprocess.run([sys.executable, "-c", code, *words], env=env, capture_output=True, text=True, check=False)


def test_a_server_that_refuses_or_is_silent_is_unreachable(closed: str, silent: str) -> None:
    for address in (closed, silent):
        start = time.monotonic()
        assert why_unreachable(address, seconds=0.5)
        assert time.monotonic() - start < 5


def test_without_network_one_line_names_the_option_for_a_file(silent: str, tmp_path: Path) -> None:
    code = (
        "import sys, time, meanshifter.training.loop; from meanshifter.cli.main import main; start = time.monotonic();"
        "status = main(sys.argv[1:]); print(status, time.monotonic() - start)"
    )
    words = ("train", "shapes", "--model.encoder_weights", "timm", "--model.encoder_args", "{}")
    done = run(silent, tmp_path, code, *words, "--model.encoder", NAME, "--out", str(tmp_path / "run"))
    status, seconds = done.stdout.split()
    assert (status, len(done.stderr.splitlines())) == ("2", 1), done.stderr
    assert "--model.encoder_weights FILE" in done.stderr
    assert silent in done.stderr
    assert float(seconds) < 10
    assert not (tmp_path / "run").exists()


def test_cached_weights_need_no_network(closed: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(0)
    source = ms.create_model("segmenter-ti16", num_classes=2, image_size=384, encoder=NAME)
    folder = tmp_path / "hub" / f"models--timm--{NAME}"
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    state = {name: value.contiguous() for name, value in source.encoder.vit.state_dict().items()}
    save_file(state, folder / "snapshots" / "abc" / "model.safetensors")
    code = (
        "import sys, meanshifter as ms, torch; from safetensors.torch import load_file;"
        f"made = ms.create_model('segmenter-ti16', num_classes=2, image_size=384, encoder='{NAME}', "
        "encoder_weights='timm').encoder.vit.state_dict();"
        "kept = load_file(sys.argv[1]); print(all(torch.equal(made[name], kept[name]) for name in kept), len(kept))"
    )
    done = run(closed, tmp_path, code, str(folder / "snapshots" / "abc" / "model.safetensors"))
    assert done.stdout.split() == ["True", str(len(state))], done.stderr
