"""What a run is doing, on the terminal: a live panel with rich, or plain lines where the output is no terminal."""

import math
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

BLOCKS = "▁▂▃▄▅▆▇█"
_PLAIN_INTERVAL = 10.0
_TIMES = {
    "env": "time/env_seconds",
    "policy": "time/policy_seconds",
    "update": "time/update_seconds",
}


@dataclass
class Stage:
    """
    A part of the run.

    :param name: such as ``evaluate before, greedy``.
    :param total: how much there is to do, 0 if that is not known.
    :param unit: of what is counted.
    """

    name: str
    total: float = 0
    unit: str = ""
    done: float = 0
    first: float = 0
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None
    text: str = ""

    @property
    def seconds(self) -> float:
        """Time since it began, or taken."""
        return (self.ended if self.ended is not None else time.monotonic()) - self.started

    @property
    def seconds_left(self) -> float | None:
        """By the pace so far; None before there is one."""
        if self.ended is not None:
            return 0.0
        advanced = self.done - self.first
        # The rollout in which the total is reached is completed, so more may be done than was asked for.
        return self.seconds * max(0, self.total - self.done) / advanced if advanced > 0 and self.total else None


class RunView:
    """
    Plain lines: one when a part begins, one every ten seconds or update, one when it ends. Also the base of
    :class:`LiveView`.

    :param title: shown first.
    :param stream: where to; None = standard output.
    """

    def __init__(self, title: str = "", stream: TextIO | None = None) -> None:
        self.title = title
        self.stages: list[Stage] = []
        self.rows: list[dict[str, Any]] = []
        self.groups: tuple[int, int | None] | None = None
        """As last given to :meth:`sampling`."""
        self.later_seconds = 0.0
        """What comes after the current part will take about so long."""
        self._stream = stream
        self._printed = 0.0

    def __enter__(self) -> "RunView":
        if self.title:
            self.print(self.title)
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        if error is None:
            self.end_stage()

    def begin_stage(self, name: str, total: float = 0, unit: str = "", done: float = 0) -> None:
        """
        The run goes on to its next part.

        :param done: how much of it was done by an earlier run.
        """
        self.end_stage()
        self.stages.append(Stage(name, total, unit, done, done))
        self.refresh(force=True)

    def end_stage(self, text: str | None = None) -> None:
        """
        The current part is done.

        :param text: its result in a few words.
        """
        if self.stages and self.stages[-1].ended is None:
            stage = self.stages[-1]
            stage.text = stage.text if text is None else text
            stage.ended = time.monotonic()
            self.stage_ended(stage)

    def skip_stage(self, name: str, text: str) -> None:
        """A part that an earlier run has done."""
        self.end_stage()
        stage = Stage(name, text=f"{text} (done before)")
        stage.ended = stage.started
        self.stages.append(stage)
        self.stage_ended(stage)

    def advance(self, done: float, text: str = "") -> None:
        """
        :param done: how much of the current part is done.
        :param text: how it stands.
        """
        stage = self.stages[-1]
        stage.done, stage.text = done, text or stage.text
        self.refresh()

    def sampling(self, timesteps: int, groups: int, groups_per_update: int | None) -> None:
        """
        Training goes on.

        :param timesteps: steps done in all.
        :param groups: groups that have ended since the last update; episodes for a method without groups.
        :param groups_per_update: groups that the next update needs; None for a method without groups.
        """
        self.groups = (groups, groups_per_update)
        self.advance(timesteps)

    def update(self, row: dict[str, Any]) -> None:
        """A row of :class:`~sb3_tgrpo.train.callbacks.MetricsCallback`."""
        self.rows.append(row)
        if self.groups is not None:
            self.groups = (0, self.groups[1])
        self.advance(row["timesteps"], describe_update(row))
        self.refresh(force=True)

    # what a view does with it

    def print(self, text: str) -> None:
        """A line that stays."""
        print(text, file=self._stream or sys.stdout, flush=True)

    def stage_ended(self, stage: Stage) -> None:
        """A part has ended."""
        self.print(f"{stage.name}: {stage.text or 'done'} [{duration(stage.seconds)}]")

    def refresh(self, force: bool = False) -> None:
        """Something has changed."""
        if not force and time.monotonic() - self._printed < _PLAIN_INTERVAL:
            return
        self._printed = time.monotonic()
        self.print(progress_line(self.stages[-1]))


class LiveView(RunView):
    """
    A panel that is redrawn in place; finished parts are printed above it.

    :param title: of the panel.
    :param console: rich's console; None = standard output.
    """

    def __init__(self, title: str = "", console: "Console | None" = None) -> None:
        from rich.console import Console
        from rich.live import Live

        super().__init__(title)
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self.render, transient=True)

    def __enter__(self) -> "LiveView":
        self._live.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *details: object) -> None:
        super().__exit__(error, *details)
        self._live.stop()

    def print(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))

    def stage_ended(self, stage: Stage) -> None:
        from rich.text import Text

        line = Text.assemble(("✓ ", "green"), (stage.name, "bold"), f"  {stage.text}  ", (duration(stage.seconds), "dim"))
        self._console.print(line)

    def refresh(self, force: bool = False) -> None:
        """rich redraws by itself, four times a second."""

    def render(self) -> "RenderableType":
        """The panel."""
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
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
                bar = ProgressBar(total=stage.total, completed=stage.done, width=40)
                row = Table.grid(padding=(0, 1))
                row.add_row(bar, Text(f"{stage.done:,.0f} of {stage.total:,.0f} {stage.unit}"))
                table.add_row("", row)
            if self.groups is not None and "steps" in stage.unit:
                table.add_row(*_sampled_row(*self.groups))
            elif stage.text:
                table.add_row("", stage.text)
        for name, value in self._training_rows():
            table.add_row(name, value)
        return Panel(table, title=self.title or None, title_align="left", border_style="blue")

    def _training_rows(self) -> list[tuple[str, str]]:
        if not self.rows:
            return []
        last = self.rows[-1]
        found = [("update", f"{last['update']}  ({last['timesteps']:,} steps)")]
        for name, key, form in (
            ("success", "rollout/member_success_rate", "{:.0%}"),
            ("mixed groups", "rollout/mixed_groups", "{:.0%}"),
            ("reward", "rollout/group_reward", "{:.2f}"),
            ("progress", "rollout/progress", "{:.0%}"),
            ("KL of update", "train/approx_kl", "{:.4f}"),
            ("entropy", "train/entropy_loss", "{:.2f}"),
        ):
            if key in last:
                sign = -1 if key == "train/entropy_loss" else 1
                history = [sign * row[key] for row in self.rows if key in row]
                found.append((name, f"{form.format(history[-1]):>8}  {sparkline(history)}"))
        split = time_split(self.rows)
        if split:
            found.append(("time", ", ".join(f"{name} {share:.0%}" for name, share in split.items())))
        return found


def _sampled_row(done: int, wanted: int | None) -> tuple[str, str]:
    """Name and text of the panel's row on what has been sampled since the last update."""
    if wanted is None:
        return "episodes", f"{done} ended since the last update"
    return "groups", f"{'●' * done}{'○' * (wanted - done)}  {done} of {wanted} for the next update"


def make_view(title: str, plain: bool | None = None) -> RunView:
    """
    A live view on a terminal, plain lines elsewhere.

    :param plain: True for plain lines in any case; None = by whether standard output is a terminal.
    """
    if plain or (plain is None and not sys.stdout.isatty()):
        return RunView(title)
    return LiveView(title)


def progress_line(stage: Stage) -> str:
    """One line on a part under way."""
    parts = [stage.name]
    if stage.total:
        parts.append(f"{stage.done:,.0f}/{stage.total:,.0f} {stage.unit}")
    if stage.text:
        parts.append(stage.text)
    left = stage.seconds_left
    if left is not None:
        parts.append(f"{duration(left)} left")
    return "  ".join(parts)


def describe_update(row: dict[str, Any]) -> str:
    """An update in a few words."""
    parts = [f"update {row['update']}"]
    for key, form in (
        ("rollout/member_success_rate", "success {:.0%}"),
        ("rollout/mixed_groups", "mixed groups {:.0%}"),
        ("rollout/group_reward", "reward {:.2f}"),
        ("rollout/progress", "progress {:.0%}"),
        ("train/approx_kl", "KL {:.4f}"),
    ):
        if key in row:
            parts.append(form.format(row[key]))
    split = time_split([row])
    if split:
        parts.append(" ".join(f"{name} {share:.0%}" for name, share in split.items()))
    return ", ".join(parts)


def time_split(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Shares of the time spent on environments, sampling and updates."""
    seconds = {name: sum(row.get(key, 0.0) for row in rows) for name, key in _TIMES.items()}
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()} if total > 0 else {}


def sparkline(values: list[float], width: int = 40) -> str:
    """The latest values as a row of blocks, between their least and greatest; ``!`` for one that is not finite."""
    values = values[-width:]
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    spread = high - low if high > low else 1.0
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round((value - low) / spread * top)] if math.isfinite(value) else "!" for value in values)


def duration(seconds: float) -> str:
    """``45 s``, ``12 min 05 s``, ``2 h 03 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
