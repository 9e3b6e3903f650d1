"""Pages as a browser lays them out, on the screen of a telephone and on that of a desk."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from meanshifter.analysis.html import Bar, Page
from meanshifter.data.labels import LabelSpace
from meanshifter.evaluation.diagnostics import DIAGNOSTICS

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--virtual-time-budget=5000",
    "--dump-dom",
]
MEASURE = """
const found = {};
for (const frame of document.querySelectorAll("iframe")) {
  const page = frame.contentDocument, root = page.documentElement, torn = [];
  const walker = page.createTreeWalker(page.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    if (!walker.currentNode.parentElement.closest("th")) continue;
    for (const word of walker.currentNode.data.matchAll(/\\S+/g)) {
      const range = page.createRange();
      range.setStart(walker.currentNode, word.index);
      range.setEnd(walker.currentNode, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(box => box.top)).size !== 1) torn.push(word[0]);
    }
  }
  const hidden = [...page.querySelectorAll(".wide")].map(box => box.scrollWidth - box.clientWidth);
  const heads = page.querySelectorAll("th").length;
  found[frame.width] = {overflow: root.scrollWidth - root.clientWidth, torn, hidden, heads};
}
document.title = JSON.stringify(found);
"""


def laid_out(page: Page, folder: Path, widths: tuple[int, ...]) -> dict[str, dict[str, Any]]:
    """By width of the screen: pixels by which the page, and each of its tables, are too wide; words of heads broken."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    frames = "".join(
        f'<iframe width="{width}" height="900" srcdoc="{escape(page.html())}"></iframe>' for width in widths
    )
    (folder / "frames.html").write_text(
        f"<title></title>{frames}<script>onload = () => {{{MEASURE}}}</script>", "utf-8"
    )
    command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", (folder / "frames.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr
    found: dict[str, dict[str, Any]] = json.loads(unescape(title[1]))
    return found


def everything() -> Page:
    """All that pages are made of, with the heads and names that are hardest to fit."""
    page = Page("Modes of a-photograph-with-a-name-that-never-ends-and-has-no-space-to-break-at-anywhere.jpg")
    page.table(["after step", *DIAGNOSTICS.values()], [["1 (as trained)", *["0.008414"] * len(DIAGNOSTICS)]])
    page.table(["", "mIoU", "mAcc", "aAcc", "wrong pixels", "image mIoU"], [["checkpoints/best", *["28.75"] * 5]])
    page.table(
        ["quantile", "bandwidth", "bandwidth / spread", "clusters", "largest cluster"], [["0.05", *["3.18"] * 4]]
    )
    page.bars(
        ["value", "pixels", "", "class", "pixels"], [["255", Bar(1, (0, 0, 0)), "→", "ignored", Bar(1, (9, 9, 9))]]
    )
    page.code("weights_" + "0123456789abcdef" * 20)
    page.legend(LabelSpace(tuple(f"class-{k}-of-many" for k in range(40))))
    picture = np.zeros((20, 30, 3), np.uint8)
    page.pictures([{f"{k}-{'name' * 20}.png": picture for k in range(6)}])
    page.plots({"a": np.zeros((880, 1000, 3), np.uint8), "b": picture})
    return page


def test_no_page_is_wider_than_its_screen_and_no_word_of_a_head_is_broken(tmp_path: Path) -> None:
    found = laid_out(everything(), tmp_path, (400, 800, 1400))
    assert sorted(found) == ["1400", "400", "800"]
    for layout in found.values():
        assert layout["heads"] > 20
        assert layout["torn"] == []
        assert layout["overflow"] <= 0
    assert found["1400"]["hidden"] == [0, 0, 0, 0]
    assert found["400"]["hidden"][0] > 0  # nine columns of numbers: they scroll in a box of their own
