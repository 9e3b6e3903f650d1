from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from meanshifter.analysis.html import IGNORED, Page, colorize
from meanshifter.data.labels import LabelSpace

VOID = {"meta", "img", "br"}


class Balance(HTMLParser):
    """Fails on tags that are not closed in order; collects tags and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_page_is_one_wellformed_file_that_needs_nothing_else(tmp_path: Path) -> None:
    space = LabelSpace(("ground", "star"))
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    page = Page("A & B")
    page.heading("1 < 2")
    page.text("<script>alert(1)</script>")
    page.code("a\nb")
    page.table(["", "mIoU"], [["Segmenter", "70.1"]], caption="In %")
    page.legend(space)
    page.pictures([{"Image": picture, "Truth": colorize(np.array([[0, 1, 255]], np.uint8), space)}])
    page.save(tmp_path / "new" / "page.html")
    text = (tmp_path / "new" / "page.html").read_text("utf-8")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert text == page.html()
    parsed = Balance()
    parsed.feed(text)
    assert parsed.open == []
    assert not {"script", "link", "iframe"} & {tag for tag, _ in parsed.seen}
    assert not re.search(r"https?:|@import|url\(", text)
    sources = [attributes["src"] or "" for tag, attributes in parsed.seen if tag == "img"]
    first, _ = (np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))) for uri in sources)
    assert np.array_equal(first, picture)
    assert all(attributes["alt"] for tag, attributes in parsed.seen if tag == "img")
    assert "A &amp; B" in text
    assert "prefers-color-scheme: dark" in text


def test_label_maps_take_the_palette_and_gray_where_ignored() -> None:
    space = LabelSpace(("a", "b"), ((1, 2, 3), (4, 5, 6)))
    assert colorize(np.array([[0, 1, 255]], np.uint8), space).tolist() == [[[1, 2, 3], [4, 5, 6], list(IGNORED)]]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="every row needs 2 cells"):
        Page("x").table(["a", "b"], [["1"]])
