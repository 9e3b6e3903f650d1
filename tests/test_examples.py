"""The Python examples of docs/loops.md and the session of the README run."""

from __future__ import annotations

import doctest
import importlib.util
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import meanshifter as ms

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "loops.md"
EXAMPLES = dict(re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE.read_text("utf-8"), re.M | re.S))
NEEDS = {"PyTorch Lightning": "pytorch_lightning", "Hugging Face's Trainer": "transformers"}


def test_the_page_has_three_examples() -> None:
    assert set(EXAMPLES) == {"A plain loop", *NEEDS}


@pytest.mark.filterwarnings("ignore")  # what other packages warn of
@pytest.mark.parametrize("title", EXAMPLES)
def test_examples_run(title: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = NEEDS.get(title)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    exec(EXAMPLES[title], {"dataset": ms.datasets.Shapes(size=(96, 96), length=4), "__name__": "example"})
    if title == "A plain loop":
        assert ms.load_model("finetuned").label_space == ms.datasets.Shapes().label_space


@pytest.mark.usefixtures("user")  # checks of symbolic shapes would specialize an export
def test_the_session_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxscript")
    (session,) = re.findall(r"```pycon\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.S)
    encoder = {"depth": 1, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
    short: dict[str, Any] = {
        "steps": 2,
        "batch_size": 2,
        "quiet": True,
        "evaluation": {"limit": 1},
        "augment": {"crop": [64, 64]},
    }
    train = partial(ms.train, **short, model={"encoder_args": encoder}, data={"workers": 0})
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ms, "train", train)
    names: dict[str, Any] = {"ms": ms}
    for example in doctest.DocTestParser().get_examples(session):
        exec(example.source, names)
    assert names["result"].per_class["disc"].pixels > 0
    assert (tmp_path / "exported" / "config.json").is_file()
