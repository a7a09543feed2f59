"""Pictures of a verification: reward and stages over time, ladder variables against thresholds, returns."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_tgrpo.rewards.compile import SpecCompiler
from sb3_tgrpo.rewards.episodes import Played, play
from sb3_tgrpo.rewards.program import RewardProgram
from sb3_tgrpo.rewards.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.traces import Trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "expert": "tab:green",
    "hover": "tab:red",
    "partial": "tab:orange",
    "oscillate": "tab:purple",
    "wrong-object": "tab:brown",
    "random": "tab:gray",
    "noop": "black",
}


def _figure(rows: int, height: float) -> tuple["Figure", Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install 'sb3-tgrpo[rewards]'") from error
    figure = Figure(figsize=(9.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, 1, squeeze=False)[:, 0]


def plot_report(
    program: RewardProgram, traces: Sequence[Trace], folder: str | os.PathLike[str], facts: TaskFacts | None = None
) -> list[Path]:
    """
    Three PNG files for one task.

    :param program: the reward.
    :param traces: its episodes.
    :param folder: where to write; made if it is not there.
    :param facts: facts of the task; None = the shipped ones.
    :return: paths of ``<task>_reward.png``, ``<task>_ladders.png``, ``<task>_returns.png``.
    :raises ImportError: if matplotlib is not installed.
    """
    facts = facts or load_task_facts(program.task)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    played = [(trace, play(program, trace.states)) for trace in traces]
    figures = {
        "reward": _plot_rewards(program, played),
        "ladders": _plot_ladders(program, played, facts),
        "returns": _plot_returns(played),
    }
    paths = []
    for name, figure in figures.items():
        path = folder / f"{program.task}_{name}.png"
        figure.savefig(path, dpi=110)
        paths.append(path)
    return paths


def _one_of_each(played: Sequence[tuple[Trace, Played]]) -> dict[str, Played]:
    chosen: dict[str, Played] = {}
    for trace, result in played:
        chosen.setdefault(trace.kind, result)
    return chosen


def _plot_rewards(program: RewardProgram, played: Sequence[tuple[Trace, Played]]) -> "Figure":
    """Level and return over time, the expert's stages as bands."""
    figure, (top, bottom) = _figure(2, 6.0)
    chosen = _one_of_each(played)
    for kind, result in chosen.items():
        style = {"color": _COLOURS[kind], "linewidth": 2.0 if kind == "expert" else 1.2, "label": kind}
        top.plot([step.terms["level"] for step in result.steps], **style)
        total, sums = 0.0, [0.0]
        for reward in result.rewards:
            total += reward
            sums.append(total)
        bottom.plot(sums, **style)
    if "expert" in chosen:
        _stage_bands(top, chosen["expert"])
    top.set_ylabel("level (f1 + f2)")
    bottom.set_ylabel(f"return, paid {program.payment}")
    bottom.set_xlabel("step")
    top.set_title(program.task)
    bottom.legend(loc="upper left", fontsize=8)
    return figure


def _stage_bands(axes: "Axes", expert: Played) -> None:
    stages = [step.stage for step in expert.steps]
    start = 0
    for t in range(1, len(stages) + 1):
        if t == len(stages) or stages[t] != stages[start]:
            axes.axvspan(start, t, color="tab:green", alpha=0.05 + 0.07 * (stages[start] % 2), linewidth=0)
            start = t


def _plot_ladders(program: RewardProgram, played: Sequence[tuple[Trace, Played]], facts: TaskFacts) -> "Figure":
    """Each ladder's variable in the expert's and other episodes, with the thresholds of its rungs."""
    spec = program.spec
    stages = [(track, stage) for track in spec.tracks for stage in track.stages if stage.ladder] if spec else []
    figure, axes = _figure(max(len(stages), 1), 1.0 + 1.9 * max(len(stages), 1))
    chosen = _one_of_each(played)
    for axis, (track, stage) in zip(axes, stages, strict=False):
        assert spec is not None
        assert stage.ladder is not None
        variable = SpecCompiler(spec, facts).variable(stage.ladder.variable)
        for kind in ("hover", "random", "expert"):
            if kind in chosen:
                states = chosen[kind].states
                start: dict[str, Any] = {name: states[0][f"{name}_pos"] for name in facts.names("object")}
                axis.plot([variable(state, start) for state in states], color=_COLOURS[kind], label=kind)
        for rung in stage.ladder.rungs:
            axis.axhline(rung.threshold, color="tab:blue", linestyle=":", linewidth=1.0)
        axis.set_ylabel(f"{stage.ladder.variable.kind}", fontsize=8)
        axis.set_title(f"{track.name}: {stage.name}", fontsize=9, loc="left")
    axes[0].legend(fontsize=8)
    axes[-1].set_xlabel("step")
    return figure


def _plot_returns(played: Sequence[tuple[Trace, Played]]) -> "Figure":
    """Histogram of returns, success against failure."""
    figure, (axis,) = _figure(1, 3.2)
    success = [result.total for trace, result in played if trace.success_step is not None]
    failure = [result.total for trace, result in played if trace.success_step is None]
    top = max([*success, *failure, 1e-9])
    bins = [i * top / 30 for i in range(31)]
    axis.hist([failure, success], bins=bins, stacked=True, color=["tab:red", "tab:green"], label=["failure", "success"])
    axis.set_xlabel("return")
    axis.set_ylabel("episodes")
    axis.legend(fontsize=8)
    return figure
