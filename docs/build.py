"""Build the site into build/site, with warnings as errors and without a network.

python docs/build.py [--serve]

Needs `pip install ".[docs]"`. Zensical checks the links between pages and their anchors. This script checks the rest:
every page is in the navigation, every file that a page shows or links is there, and no page loads anything from another
host.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

ROOT: Final = Path(__file__).resolve().parents[1]
SITE: Final = ROOT / "build/site"
SHIM: Final = "https://unpkg.com/iframe-worker/shim"
"""What Zensical's plugin `offline` takes from another host, for the search of pages opened from disk."""
COLOR: Final = re.compile(r"\x1b\[[\d;]*m")


def main() -> int:
    """Build or serve the site; the exit status is 1 if anything is amiss."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--serve", action="store_true", help="serve the site on this machine, and rebuild on changes")
    if options.parse_args().serve:
        return subprocess.run([sys.executable, "-m", "zensical", "serve"], cwd=ROOT, check=False).returncode
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    built = subprocess.run(command, cwd=ROOT, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    print(built.stdout if sys.stdout.isatty() else COLOR.sub("", built.stdout), end="", flush=True)
    if built.returncode:
        return built.returncode
    localize(SITE)
    faults = [*not_in_navigation(ROOT), *faults_of(SITE)]
    for fault in faults:
        print(fault, file=sys.stderr)
    print(f"{SITE / 'index.html'}: {sum(1 for _ in SITE.rglob('*.html'))} pages")
    return 1 if faults else 0


def localize(site: Path) -> None:
    """Replace the one script that Zensical takes from another host with ours."""
    for page in site.rglob("*.html"):
        up = "../" * (len(page.relative_to(site).parts) - 1)
        text = page.read_text("utf-8")
        if SHIM in text:
            page.write_text(text.replace(SHIM, f"{up}offline.js"), "utf-8")


def not_in_navigation(root: Path) -> Iterator[str]:
    """A line for each page below docs/ that mkdocs.yml does not list."""
    listed = set(re.findall(r"[\w/-]+\.md", (root / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]))
    for page in sorted((root / "docs").rglob("*.md")):
        name = page.relative_to(root / "docs").as_posix()
        if name not in listed:
            yield f"docs/{name}: not in the navigation; add it to `nav` in mkdocs.yml"


def faults_of(site: Path) -> Iterator[str]:
    """A line for each thing that a built page loads from elsewhere, and for each file that it misses."""
    for page in sorted(site.rglob("*.html")):
        parser = _Addresses()
        parser.feed(page.read_text("utf-8"))
        for address, is_loaded in parser.found:
            parts = urlsplit(address)
            if is_loaded and parts.netloc:
                yield f"{page.relative_to(site)}: loads {address}; pages must work without a network"
            is_file = not (parts.netloc or parts.scheme) and parts.path and page.name != "404.html"
            if is_file and not (page.parent / unquote(parts.path)).exists():
                yield f"{page.relative_to(site)}: {address} is not there"
    for sheet in sorted(site.rglob("*.css")):
        for address in re.findall(r"""(?:url\(|@import\s+)["']?((?:https?:)?//[^"')]+)""", sheet.read_text("utf-8")):
            yield f"{sheet.relative_to(site)}: loads {address}; pages must work without a network"


class _Addresses(HTMLParser):
    """Collects the addresses of a page, and whether a browser fetches each of them on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, bool]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value for name, value in attrs if value}
        if tag == "a" and "href" in given:
            self.found.append((given["href"], False))
        if tag == "link" and "href" in given:
            self.found.append((given["href"], given.get("rel") in ("stylesheet", "preload", "icon")))
        if tag in ("script", "img", "iframe", "source") and "src" in given:
            self.found.append((given["src"], True))


if __name__ == "__main__":
    sys.exit(main())
