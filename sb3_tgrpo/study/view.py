"""What a study is doing, on the terminal: a live panel with rich, or plain lines where the output is no terminal."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from sb3_tgrpo.train.view import duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PLAIN_INTERVAL = 60.0


@dataclass(frozen=True)
class RunningCell:
    """
    A cell under way.

    :param name: method, task and seed.
    :param seconds: since it began or went on.
    :param line: what it said last, empty if nothing yet.
    """

    name: str
    seconds: float
    line: str


@dataclass(frozen=True)
class StudyProgress:
    """
    How a study stands.

    :param done: cells that have ended, those of earlier calls and those that failed among them.
    :param total: all cells.
    :param running: those under way.
    :param seconds_left: about; None before a cell tells how long one takes.
    """

    done: int
    total: int
    running: Sequence[RunningCell]
    seconds_left: float | None = None


def seconds_left(taken: Sequence[float], running: Sequence[float], waiting: int, workers: int) -> float | None:
    """
    How long a study will take, if all cells take what those took that have ended.

    :param taken: seconds of cells that have ended.
    :param running: seconds that cells under way have taken so far.
    :param waiting: number of cells to come.
    :param workers: cells at once.
    :return: None if no cell has ended.
    """
    if not taken:
        return None
    mean = sum(taken) / len(taken)
    rest = [max(0.0, mean - seconds) for seconds in running]
    return max(max(rest, default=0.0), (sum(rest) + waiting * mean) / workers)


class StudyView:
    """
    Plain lines: one for whatever happens, and each minute one for every cell under way. Also the base of
    :class:`LiveStudyView`.

    :param stream: where to; None = standard output.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._printed = time.monotonic()

    def __enter__(self) -> "StudyView":
        return self

    def __exit__(self, *details: object) -> None:
        pass

    def print(self, text: str) -> None:
        """A line that stays."""
        print(text, file=self._stream or sys.stdout, flush=True)

    def refresh(self, progress: StudyProgress) -> None:
        """
        :param progress: as it is now.
        """
        if time.monotonic() - self._printed < _PLAIN_INTERVAL:
            return
        self._printed = time.monotonic()
        for cell in progress.running:
            self.print(f"{cell.name}: {cell.line or 'starting'}")


class LiveStudyView(StudyView):
    """
    A panel that is redrawn in place; what has happened is printed above it.

    :param title: of the panel.
    :param console: rich's console; None = standard output.
    """

    def __init__(self, title: str = "", console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__()
        self.title = title
        self.progress = StudyProgress(0, 0, ())
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=2, get_renderable=self.render, transient=True)

    def __enter__(self) -> "LiveStudyView":
        self._live.start()
        return self

    def __exit__(self, *details: object) -> None:
        self._live.stop()

    def print(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))

    def refresh(self, progress: StudyProgress) -> None:
        """rich redraws by itself, twice a second."""
        self.progress = progress

    def render(self) -> "RenderableType":
        """The panel."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        now = self.progress
        if not now.total:
            return Text("")  # before the first refresh
        left = "" if now.seconds_left is None else f"about {duration(now.seconds_left)} left"
        head = Table.grid(padding=(0, 1))
        head.add_row(
            ProgressBar(total=now.total, completed=now.done, width=40),
            Text(f"{now.done} of {now.total} cells"),
            Text(left, style="dim"),
        )
        cells = Table.grid(padding=(0, 2), expand=True)
        cells.add_column(no_wrap=True, style="bold cyan")
        cells.add_column(no_wrap=True, style="dim", justify="right")
        cells.add_column(no_wrap=True, overflow="ellipsis", ratio=1)  # what is too long is cut here, not in the names
        for cell in now.running:
            cells.add_row(Text(cell.name), duration(cell.seconds), Text(cell.line or "starting"))
        return Panel(Group(head, cells), title=Text(self.title), title_align="left", border_style="blue")


def make_study_view(title: str) -> StudyView:
    """
    A live view on a terminal, plain lines elsewhere.

    :param title: of the panel.
    """
    return LiveStudyView(title) if sys.stdout.isatty() else StudyView()
