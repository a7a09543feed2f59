"""What a study is doing, on the terminal."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sb3_tgrpo.train.view import View, bar, duration

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class RunningCell:
    """A cell under way: its method, task and seed, seconds since it began or went on, and the last line of its log."""

    name: str
    seconds: float
    line: str


@dataclass(frozen=True)
class StudyProgress:
    """
    How a study stands.

    :param done: Number of cells that have ended, in earlier calls and with a failure too.
    :param total: Number of all cells.
    :param running: Cells under way.
    :param seconds_left: Seconds left, about; None before a cell has ended.
    """

    done: int
    total: int
    running: Sequence[RunningCell]
    seconds_left: float | None = None


def seconds_left(taken: Sequence[float], running: Sequence[float], waiting: int, workers: int) -> float | None:
    """
    Seconds that a study will take, if all cells take as long as the ones that have ended; None if none has. Of the cells that
    have ended and the ones under way the seconds are given, of the ones to come their number.
    """
    if not taken:
        return None
    mean = sum(taken) / len(taken)
    rest = [max(0.0, mean - seconds) for seconds in running]
    return max(max(rest, default=0.0), (sum(rest) + waiting * mean) / workers)


class StudyView(View):
    """A study: a line for whatever happens, and its cells under way; in plain lines each minute."""

    interval = 60.0
    progress = StudyProgress(0, 0, ())

    def refresh(self, progress: StudyProgress) -> None:
        """Show how the study stands."""
        self.progress = progress
        if self.is_due():
            for cell in progress.running:
                self.print(f"{cell.name}: {cell.line or 'starting'}")

    def render(self) -> "RenderableType":
        """The panel: a bar, and a row for each cell under way."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        now = self.progress
        if not now.total:
            return Text("")  # before the first refresh
        left = "" if now.seconds_left is None else f"about {duration(now.seconds_left)} left"
        head = Table.grid(padding=(0, 1))
        head.add_row(bar(now.done, now.total, "cells"), Text(left, style="dim"))
        cells = Table.grid(padding=(0, 2), expand=True)
        cells.add_column(no_wrap=True, style="bold cyan")
        cells.add_column(no_wrap=True, style="dim", justify="right")
        cells.add_column(no_wrap=True, overflow="ellipsis", ratio=1)  # what is too long is cut here, not in the names
        for cell in now.running:
            cells.add_row(Text(cell.name), duration(cell.seconds), Text(cell.line or "starting"))
        return Panel(Group(head, cells), title=Text(self.title), title_align="left", border_style="blue")
