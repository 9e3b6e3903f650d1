"""The progress bar of all commands: on standard error, on a terminal only, removed when done."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Self

from meanshifter.errors import printable

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


class ProgressBar:
    """A bar with title, count, status and time left.

    Args:
        title: what is counted.
        total: the total count; None shows an indeterminate bar.
        shown: False shows nothing, for all processes but the main one.
        unit: "items", or "bytes" for downloads.
        time_left: estimate the time left; off if `status` contains it.
        transient: remove the bar at the end.
    """

    def __init__(
        self,
        title: str,
        total: int | None = None,
        *,
        shown: bool = True,
        unit: Literal["items", "bytes"] = "items",
        time_left: bool = True,
        transient: bool = True,
    ) -> None:
        # imported here, since it takes 60 ms
        from rich import progress
        from rich.console import Console

        self._console = Console(stderr=True, quiet=not shown)
        columns: list[ProgressColumn] = [
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn() if unit == "bytes" else progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[status]}", markup=False),
            *([progress.TimeRemainingColumn()] if time_left else []),
        ]
        self._bar = progress.Progress(
            *columns, console=self._console, transient=transient, disable=not (shown and self.is_terminal)
        )
        self._task = self._bar.add_task(title, total=total, status="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    @property
    def is_terminal(self) -> bool:
        """Whether standard error is a terminal, which can show a bar."""
        return self._console.is_terminal

    def advance(self, count: int = 1) -> None:
        """Increase the count."""
        self._bar.advance(self._task, count)

    def update(self, done: int | None = None, total: int | None = None, *, status: str | None = None) -> None:
        """Set the count, the total, and the text next to the bar; None leaves a value unchanged."""
        fields: dict[str, Any] = {} if status is None else {"status": printable(status)}
        self._bar.update(self._task, completed=done, total=total, **fields)

    def second(self, title: str, *, least: int) -> Callable[[int, int], None]:
        """A second bar for parts of one item, shown for totals of at least `least`; call it with done and total."""
        task = self._bar.add_task(title, visible=False, status="")
        return lambda done, total: self._bar.update(
            task, completed=done, total=total, visible=least <= total and done < total
        )

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._console.print(printable(text), highlight=False, soft_wrap=True, markup=False)
