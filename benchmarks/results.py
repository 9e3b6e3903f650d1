"""Write the tables of a finished study into a page, between comments that name them.

python benchmarks/results.py FOLDER [--page docs/results.md] [--name NAME]

What stands in the page between `<!-- study: NAME PART -->` and `<!-- end -->` is replaced. PART is `made` (the command,
the machine, the day and the protocol), `table 1` (with the trained number of steps), `table 2` (over L'_ms), `table`
(table.md) or `cost` (cost.md); a split behind it, as in `table 1 val`, takes that split alone. NAME is the study's, or
what `--name` says.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import sys
from pathlib import Path

from meanshifter.utils.files import write_text

PART = re.compile(
    r"(<!-- study: (?P<name>[^\n>]+?) (?P<part>made|cost|table(?: [12])?)(?: (?P<split>\S+))? -->\n).*?(<!-- end -->)",
    re.S,
)
FILES = {"table": "table.md", "table 1": "table_1.md", "table 2": "table_2.md", "cost": "cost.md"}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("folder", type=Path)
    options.add_argument("--page", type=Path, default=Path("docs/results.md"))
    options.add_argument("--name")
    args = options.parse_args()
    name = json.loads((args.folder / "study.json").read_text("utf-8"))["name"] if args.name is None else args.name
    text, count = fill(args.page.read_text("utf-8"), name, args.folder)
    if not count:
        sys.exit(f"{args.page}: has no <!-- study: {name} PART --> … <!-- end -->; put one where a table belongs")
    write_text(args.page, text)
    print(f"{args.page}: {count} parts of {name} written")


def fill(page: str, name: str, folder: Path) -> tuple[str, int]:
    """The page with the parts of one study replaced, and their number."""
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        if match["name"] != name:
            return match[0]
        count += 1
        return f"{match[1]}{part(folder, match['part'], match['split'])}\n{match[5]}"

    return PART.sub(replace, page), count


def part(folder: Path, what: str, split: str | None) -> str:
    if what == "made":
        return made(folder)
    _, *paragraphs = (folder / FILES[what]).read_text("utf-8").rstrip().split("\n\n")
    return "\n\n".join(re.sub(r"^## (.*)", r"**\1**", each) for each in _of_split(paragraphs, split))


def _of_split(paragraphs: list[str], split: str | None) -> list[str]:
    """What stands above the first heading, and under the headings that end in the split's name."""
    kept, wanted = [], True
    for each in paragraphs:
        if each.startswith("## "):
            wanted = split is None or re.search(rf"\b{re.escape(split)}$", each) is not None
        if wanted:
            kept.append(each)
    return kept


def made(folder: Path) -> str:
    """How the study was made; of folders that only this machine has, the last part."""
    told = json.loads((folder / "study.json").read_text("utf-8"))["made"]
    words = [Path(word).name if word.startswith("/") else word for word in shlex.split(told["command"])]
    protocol = (folder / "table.md").read_text("utf-8").split("\n\n")[1]
    return f"`{shlex.join(words)}`\n\n{told['machine']}\n\n{protocol}"


if __name__ == "__main__":
    main()
