"""Parts of pages that the code knows best: options of commands, fields of recipes, recipes, presets.

A line `<!-- generated: NAME -->` of a page is replaced when the site is built. NAME is a function below, with arguments
after it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Final

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

from meanshifter.cli.main import COMMANDS
from meanshifter.model.presets import ENCODERS, PRESETS, parse_preset, size_of
from meanshifter.training.fields import FieldHelp, describe_fields

ROOT: Final = Path(__file__).resolve().parents[1]
MARKER: Final = re.compile(r"<!-- generated: ([\w-]+)((?: [\w./-]+)*) -->")
RECIPES: Final = ROOT / "src/meanshifter/recipes"
WIDTH: Final = 96
"""Columns of the usage of a command."""
BEFORE_CODE: Final = 28
"""Priority of a preprocessor that runs after Markdown has normalized the lines, and before it looks for code."""


def options() -> str:
    """All commands, with a table of the options of each group."""
    parts = []
    for name, meaning in COMMANDS.items():
        parser = argparse.ArgumentParser(prog=f"meanshifter {name}")
        import_module(f"meanshifter.cli.{name}").configure(parser)
        parts += [f"## meanshifter {name}", f"{meaning[0].upper()}{meaning[1:]}.", *_describe(parser)]
    return "\n\n".join(parts)


def _describe(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Usage, groups of options and subcommands of a parser."""
    parser.formatter_class = partial(argparse.HelpFormatter, width=WIDTH)
    yield f"```text\n{parser.format_usage().removeprefix('usage: ').replace(' [-h]', '').rstrip()}\n```"
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not _is_plumbing(action)]
        if not actions:
            continue
        if group.title not in ("positional arguments", "options"):
            yield f"**{str(group.title).capitalize()}.** {_escape(group.description or '')}"
        yield _table(
            ("argument" if actions[0].option_strings == [] else "option", "meaning"),
            ((_spelling(action), _escape(_meaning(action, parser))) for action in actions),
        )
    if parser.epilog:
        yield _escape(parser.epilog)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for subparser in dict.fromkeys(action.choices.values()):
                yield f"### {subparser.prog}"
                yield from _describe(subparser)


def _is_plumbing(action: argparse.Action) -> bool:
    return isinstance(action, argparse._HelpAction | argparse._SubParsersAction)


def _spelling(action: argparse.Action) -> str:
    """The option as it is typed, with what follows it."""
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if not action.option_strings or action.nargs == 0:
        return f"`{name}`"
    choices = ",".join(map(str, action.choices)) if action.choices else None
    value = action.metavar or (action.dest.upper() if choices is None else f"{{{choices}}}")
    several = {"+": " …", "*": " …"}.get(str(action.nargs), "")
    return f"`{name} {value if isinstance(value, str) else ' '.join(value)}{several}`".replace("|", "\\|")


def _meaning(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    return parser._get_formatter()._expand_help(action) if action.help else ""


def fields() -> str:
    """A table of the fields of each section of a recipe."""
    parts = []
    for section, entries in groupby(_in_sections(), key=_section_of):
        parts.append(f"## {section or 'The run'}")
        parts.append(_table(("field, type and default", "meaning"), map(_field_row, entries)))
    return "\n\n".join(parts)


def _in_sections() -> list[FieldHelp]:
    """All fields with those of no section first, and the other sections in their order."""
    entries = list(describe_fields())
    order = list(dict.fromkeys(["", *map(_section_of, entries)]))
    return sorted(entries, key=lambda entry: order.index(_section_of(entry)))


def _section_of(entry: FieldHelp) -> str:
    return entry.name.rpartition(".")[0]


def _field_row(entry: FieldHelp) -> tuple[str, str]:
    default = f"`{entry.default}`" if entry.default else '`""`'
    return f"`{entry.name}`<br>{_escape(entry.kind)}, {default}", _escape(entry.meaning)


def recipes() -> str:
    """The file of each built-in recipe, whose header says what it costs and why it is as it is."""
    return "\n\n".join(
        f"## {path.stem}\n\n```yaml\n{path.read_text('utf-8').rstrip()}\n```" for path in sorted(RECIPES.glob("*.yaml"))
    )


def presets() -> str:
    """Parameters and multiply-adds of each preset with 150 classes at 512×512."""
    rows = []
    for preset in PRESETS:
        size = size_of(preset, num_classes=150, image_size=512)
        encoder = ENCODERS[parse_preset(preset)[2]]
        rows.append((f"`{preset}`", f"`{encoder}`", f"{size.parameters:,}", f"{size.multiply_adds / 1e9:.2f}"))
    return _table(("preset", "encoder", "parameters", "GMACs"), rows, numbers=2)


def file(name: str) -> str:
    """A page of the top folder, with its links to docs/ as links between pages."""
    return (ROOT / name).read_text("utf-8").replace("](docs/", "](")


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]], *, numbers: int = 0) -> str:
    """A table in Markdown, the last `numbers` columns of which are aligned right."""
    rule = ("---",) * (len(header) - numbers) + ("---:",) * numbers
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, rule, *rows))


def _escape(text: str) -> str:
    """Text of a help message as Markdown: placeholders in capitals and brackets are no markup."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(
        part.replace("|", "\\|") if part.startswith("`") else re.sub(r"([\\*_<>\[\]{}|#])", r"\\\1", part)
        for part in parts
    )


PARTS: Final[dict[str, Callable[..., str]]] = {
    "options": options,
    "fields": fields,
    "recipes": recipes,
    "presets": presets,
    "file": file,
}


def expand(text: str) -> str:
    """The text of a page with everything generated in place.

    Raises:
        KeyError: a marker that names no part.
    """
    return MARKER.sub(lambda marker: PARTS[marker[1]](*marker[2].split()), text)


class _Expand(Preprocessor):
    def run(self, lines: list[str]) -> list[str]:
        return expand("\n".join(lines)).split("\n")


class _Generated(Extension):
    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        md.preprocessors.register(_Expand(md), "generated", BEFORE_CODE)


def makeExtension(**options: object) -> _Generated:  # noqa: N802
    """The extension, under the name by which Markdown asks for it."""
    return _Generated(**options)  # type: ignore[no-untyped-call]
