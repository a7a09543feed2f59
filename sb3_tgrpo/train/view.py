"""What is going on, on the terminal: a live panel with rich, or plain lines where the output is no terminal."""

import math
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
_TIMES = {"simulators": "time/env_seconds", "policy": "time/policy_seconds", "update": "time/update_seconds"}
_NUMBERS = (
    ("success of members", "rollout/member_success_rate", "{:.0%}"),
    ("mixed groups", "rollout/mixed_groups", "{:.0%}"),
    ("reward", "rollout/group_reward", "{:.2f}"),
    ("progress", "rollout/progress", "{:.0%}"),
    ("KL of the update", "train/approx_kl", "{:.4f} nats"),
    ("entropy", "train/entropy_loss", "{:.2f} nats"),
)


class View:
    """
    Lines that stay, and something that changes: a panel that is redrawn in place (``live``, on the ``console`` of rich), or
    now and then a plain line on the ``stream``. Both are standard output by default.
    """

    interval = 10.0
    """Seconds between plain lines."""

    def __init__(
        self, title: str = "", stream: TextIO | None = None, live: bool = False, console: "Console | None" = None
    ) -> None:
        self.title = title
        self._stream = stream
        self._printed = time.monotonic()
        self._live: Any = None
        if live or console is not None:
            from rich.console import Console
            from rich.live import Live

            console = console or Console()
            self._live = Live(console=console, refresh_per_second=4, get_renderable=self.render, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        elif self.title:
            self.print(self.title)
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        if self._live is not None:
            self._live.stop()

    def print(self, text: Any) -> None:
        """A line that stays: text, or something that rich shows."""
        if self._live is None:
            print(text, file=self._stream or sys.stdout, flush=True)
        else:
            from rich.text import Text

            self._live.console.print(Text(text) if isinstance(text, str) else text)

    def is_due(self, force: bool = False) -> bool:
        """Whether to print a plain line now, ``force``: however long ago the last one was. The panel needs none."""
        if self._live is not None or not (force or time.monotonic() - self._printed >= self.interval):
            return False
        self._printed = time.monotonic()
        return True

    def render(self) -> "RenderableType":
        """The content of the panel."""
        raise NotImplementedError


@dataclass
class Stage:
    """
    A part of the run, such as ``evaluate before, greedy``.

    :param total: How much there is to do, 0 if that is not known.
    :param first: How much an earlier call had done.
    :param first_round: How much is done at once: the pace is not known before, as simulators start meanwhile.
    """

    name: str
    total: float = 0
    unit: str = ""
    done: float = 0
    first: float = 0
    first_round: float = 1
    text: str = ""
    started: float = field(default_factory=lambda: time.monotonic())
    ended: float | None = None
    first_round_over: tuple[float, float] | None = None
    """Seconds and how much was done when the first round was over."""

    @property
    def seconds(self) -> float:
        """Time since it began, or taken."""
        return (self.ended if self.ended is not None else time.monotonic()) - self.started

    @property
    def seconds_left(self) -> float | None:
        """Time left by the pace so far, without the first round as soon as as much again is done; None before it is over."""
        if self.ended is not None:
            return 0.0
        if not self.total or self.first_round_over is None:
            return None
        seconds, since = 0.0, self.first
        if self.done - self.first_round_over[1] >= self.first_round_over[1] - self.first:
            seconds, since = self.first_round_over
        # The rollout in which the total is reached is completed, so more may be done than was asked for.
        return (self.seconds - seconds) * max(0, self.total - self.done) / (self.done - since)

    def advance(self, done: float, text: str = "", round_over: bool = False) -> None:
        """Note how much is done, and whether the first round is over in any case."""
        self.done, self.text = done, text or self.text
        advanced = done - self.first
        if self.first_round_over is None and advanced > 0 and (round_over or advanced >= self.first_round):
            self.first_round_over = (self.seconds, done)

    def __str__(self) -> str:
        parts = [self.name]
        if self.total:
            parts.append(f"{self.done:,.0f}/{self.total:,.0f} {self.unit}")
        left = self.seconds_left
        return "  ".join([*parts, *filter(None, [self.text, f"{duration(left)} left" if left else ""])])


class RunView(View):
    """A run: its parts, and the numbers of its updates."""

    later_seconds = 0.0
    """What comes after the current part takes about so long."""
    highest_return: float | None = None
    """Highest reward of an episode, if known."""

    def __init__(
        self, title: str = "", stream: TextIO | None = None, live: bool = False, console: "Console | None" = None
    ) -> None:
        self.stages: list[Stage] = []
        self.rows: list[dict[str, Any]] = []
        super().__init__(title, stream, live, console)

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        if error is None:
            self.end_stage()
        super().__exit__(error, *details)

    def begin_stage(
        self, name: str, total: float = 0, unit: str = "", done: float = 0, first_round: float = 1, text: str = ""
    ) -> None:
        """The run goes on to its next part, of which an earlier call has done ``done``; the rest as in :class:`Stage`."""
        self.end_stage()
        self.stages.append(Stage(name, total, unit, done, done, first_round, text))
        self._refresh(force=True)

    def end_stage(self, text: str | None = None) -> None:
        """The current part is done."""
        if self.stages and self.stages[-1].ended is None:
            stage = self.stages[-1]
            stage.text = stage.text if text is None else text
            stage.ended = time.monotonic()
            self._show_end(stage)

    def skip_stage(self, name: str, text: str) -> None:
        """A part that an earlier call has done."""
        self.end_stage()
        stage = Stage(name, text=f"{text} (done before)")
        stage.ended = stage.started
        self.stages.append(stage)
        self._show_end(stage)

    def resume(self, done: float, rows: list[dict[str, Any]]) -> None:
        """Training begins where an earlier call was, which has done so much, in these updates."""
        self.rows = rows
        self.stages[-1].done = self.stages[-1].first = done

    def advance(self, done: float, text: str = "") -> None:
        """The current part goes on."""
        self.stages[-1].advance(done, text)
        self._refresh()

    def sampling(self, timesteps: int, groups: int, groups_per_update: int | None) -> None:
        """
        Training goes on: so many groups have ended since the last update, of the ones that the next update needs. Episodes
        for a method without groups, whose ``groups_per_update`` is None.
        """
        sampled = count(groups, "episode") if groups_per_update is None else f"{groups} of {groups_per_update} groups"
        self.advance(timesteps, f"{sampled} for update {len(self.rows) + 1}")

    def updating(self) -> None:
        """A rollout has ended, its update begins."""
        stage = self.stages[-1]
        stage.text = f"update {len(self.rows) + 1} is computed"
        self._refresh(force=stage.done >= stage.total)  # nothing comes after the last one, so that it would seem to hang

    def update(self, row: dict[str, Any]) -> None:
        """An update is done."""
        self.rows.append(row)
        self.stages[-1].advance(row["timesteps"], describe_update(row, self.highest_return), round_over=True)
        self._refresh(force=True)

    def _refresh(self, force: bool = False) -> None:
        if self.is_due(force):
            self.print(str(self.stages[-1]))

    def _show_end(self, stage: Stage) -> None:
        if self._live is None:
            self.print(f"{stage.name}: {stage.text or 'done'} [{duration(stage.seconds)}]")
            return
        from rich.text import Text

        name, seconds = (stage.name, "bold"), (duration(stage.seconds), "dim")
        self.print(Text.assemble(("✓ ", "green"), name, f"  {stage.text}  ", seconds))

    def render(self) -> "RenderableType":
        """The panel: the current part, and the numbers of training."""
        from rich.panel import Panel
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 2))
        table.add_column(style="dim")
        table.add_column()
        if self.stages and self.stages[-1].ended is None:
            stage = self.stages[-1]
            left = stage.seconds_left
            timing = duration(stage.seconds)
            if left is not None:
                timing += f", about {duration(left + self.later_seconds)} left"
                timing += f" ({duration(self.later_seconds)} for what comes after)" if self.later_seconds else ""
            table.add_row("now", Text.assemble((stage.name, "bold cyan"), "   ", (timing, "dim")))
            if stage.total:
                table.add_row("", bar(stage.done, stage.total, stage.unit))
            if stage.text:
                table.add_row("", stage.text)
        for name, value in self._training_rows():
            table.add_row(name, value)
        return Panel(table, title=self.title or None, title_align="left", border_style="blue")

    def _training_rows(self) -> list[tuple[str, str]]:
        if not self.rows:
            return []
        last = self.rows[-1]
        found = [("update", f"{last['update']}  ({last['timesteps']:,} steps)")]
        for name, key, form in _numbers(self.highest_return):
            if key in last:
                sign = -1 if key == "train/entropy_loss" else 1
                history = [sign * row[key] for row in self.rows if key in row]
                found.append((name, f"{form.format(history[-1]):>12}  {sparkline(history)}"))
        if split := time_split(self.rows):
            found.append(("time", split))
        return found


def bar(done: float, total: float, unit: str) -> Any:
    """A row with a progress bar."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 1))
    row.add_row(ProgressBar(total=total, completed=done, width=40), Text(f"{done:,.0f} of {total:,.0f} {unit}"))
    return row


def make_view(title: str, plain: bool | None = None) -> RunView:
    """A live view on a terminal, plain lines elsewhere or where asked for."""
    return RunView(title, live=sys.stdout.isatty() if plain is None else not plain)


def describe_update(row: dict[str, Any], highest_return: float | None = None) -> str:
    """An update in a few words."""
    parts = [f"{name} {form.format(row[key])}" for name, key, form in _numbers(highest_return)[:-1] if key in row]
    if split := time_split([row]):
        parts.append(f"time: {split}")
    return f"update {row['update']}: {', '.join(parts)}"


def _numbers(highest_return: float | None) -> list[tuple[str, str, str]]:
    """Names, keys and forms of an update's numbers, the reward with the highest one of an episode, if that is known."""
    highest = "" if highest_return is None else f" of {highest_return:g}"
    return [(name, key, form + (highest if key == "rollout/group_reward" else "")) for name, key, form in _NUMBERS]


def time_split(rows: list[dict[str, Any]]) -> str:
    """Shares of the time of updates spent on simulators, sampling and updating, in words; empty if none was measured."""
    seconds = {name: sum(row.get(key, 0.0) for row in rows) for name, key in _TIMES.items()}
    total = sum(seconds.values())
    return ", ".join(f"{name} {value / total:.0%}" for name, value in seconds.items()) if total > 0 else ""


def sparkline(values: list[float], width: int = 40) -> str:
    """The latest values as a row of blocks, between their least and greatest; ``!`` for one that is not finite."""
    values = values[-width:]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    spread = high - low if high > low else 1.0
    return "".join(
        BLOCKS[round((value - low) / spread * (len(BLOCKS) - 1))] if math.isfinite(value) else "!" for value in values
    )


def duration(seconds: float) -> str:
    """A time in words: ``45 s``, ``12 min 05 s``, ``2 h 03 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def count(number: int, noun: str) -> str:
    """A number with its noun: ``1 update``, ``2 updates``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
