"""The script that writes a study's tables into a page of the documentation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "results.py"
PAGE = """# Results

Written by hand. Tables are between `<!-- study: … -->` and `<!-- end -->`.

<!-- study: mine made -->
old
<!-- end -->
<!-- study: mine table 1 -->
<!-- end -->
<!-- study: mine table 2 test -->
old
<!-- end -->
<!-- study: other table 1 -->
kept
<!-- end -->
"""


def write(page: Path, folder: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(folder), "--page", str(page), *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_parts_between_comments_are_replaced_and_nothing_else(tmp_path: Path) -> None:
    command = "meanshifter study mine --rows 'a b*' --data.root /somewhere/private/CamVid"
    made = {"command": command, "machine": "2026-01-01 · 2 cores"}
    (tmp_path / "study.json").write_text(json.dumps({"name": "mine", "made": made}))
    (tmp_path / "table.md").write_text("# Study: mine\n\ncamvid; 300 steps.\n\n## Scores on val\n\n| x |\n")
    for n in (1, 2):
        splits = "".join(f"\n## {split}\n\n| {n} {split} |\n" for split in ("val", "test"))
        (tmp_path / f"table_{n}.md").write_text(f"# mine: table {n}\n\nCaption {n}.\n{splits}")
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    done = write(page, tmp_path)
    assert done.returncode == 0, done.stderr
    text = page.read_text()
    assert (
        "`meanshifter study mine --rows 'a b*' --data.root CamVid`\n\n2026-01-01 · 2 cores\n\ncamvid; 300 steps."
        in text
    )
    assert "Caption 1.\n\n**val**\n\n| 1 val |\n\n**test**\n\n| 1 test |\n<!-- end -->" in text
    assert "Caption 2.\n\n**test**\n\n| 2 test |\n<!-- end -->" in text
    assert "old" not in text
    assert "Written by hand." in text
    assert "<!-- study: other table 1 -->\nkept\n<!-- end -->" in text
    assert write(page, tmp_path).returncode == 0
    assert page.read_text() == text
    again = write(page, tmp_path, "--name", "third")
    assert again.returncode == 1
    assert "has no <!-- study: third PART -->" in again.stderr
