"""
Pictures of a verification: reward and stages over time, ladder variables against thresholds, returns, where episodes spend
their time, returns against stages, which checks reject mutants; and of a generation: why answers were rejected.

What a picture shows is computed by functions of its own (:func:`occupancy`, :func:`stage_returns`, :func:`mutation_bars`,
:func:`reject_reasons`), so that the numbers can be had without it.
"""

import itertools
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_tgrpo.rewards.episodes.play import Played, play
from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.program.compile import SpecCompiler
from sb3_tgrpo.rewards.program.program import RewardProgram
from sb3_tgrpo.rewards.verification.report import Check

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
    program: RewardProgram,
    traces: Sequence[Trace],
    folder: str | os.PathLike[str],
    facts: TaskFacts | None = None,
    mutation: Check | None = None,
) -> list[Path]:
    """
    PNG files for one task.

    :param folder: Output folder, made if needed.
    :param facts: Facts of the task; None = the shipped ones.
    :param mutation: Outcome of V20, :func:`~sb3_tgrpo.rewards.verification.mutants.mutation_check`; None = no picture of it.
    :return: Paths of ``<task>_reward.png``, ``<task>_ladders.png``, ``<task>_returns.png``, ``<task>_occupancy.png``,
        ``<task>_stages.png`` and, with ``mutation``, ``<task>_mutants.png``.
    :raises ImportError: If matplotlib is not installed.
    """
    facts = facts or load_task_facts(program.task)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    played = [(trace, play(program, trace.states)) for trace in traces]
    figures = {
        "reward": _plot_rewards(program, played),
        "ladders": _plot_ladders(program, played, facts),
        "returns": _plot_returns(played),
        "occupancy": _plot_occupancy(program, played),
        "stages": _plot_stages(program, played),
    }
    if mutation is not None and (bars := mutation_bars(mutation)):
        figures["mutants"] = _plot_bars(bars, "mutants", {"survived": "tab:red"}, f"{program.task}: what rejects mutants")
    for name, figure in figures.items():
        figure.savefig(folder / f"{program.task}_{name}.png", dpi=110)
    return [folder / f"{program.task}_{name}.png" for name in figures]


def plot_rejects(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> Path:
    """
    A histogram of why answers of the language model were rejected.

    :param folder: ``--out`` of ``sb3-tgrpo reward generate``.
    :param path: PNG file to write.
    :raises ValueError: If the folder holds no answers.
    :raises ImportError: If matplotlib is not installed.
    """
    reasons = reject_reasons(folder)
    figure = _plot_bars(reasons, "answers", {"verified": "tab:green"}, "Answers of the language model, by what rejected them")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return path


def occupancy(program: RewardProgram, played: Sequence[tuple[Trace, Played]]) -> np.ndarray:
    """Share of an episode's states at which so many stages are done, (n_episodes, n_stages + 1); rows sum to 1."""
    counts = [np.bincount([step.stage for step in result.steps], minlength=program.n_stages + 1) for _, result in played]
    return np.array([row / row.sum() for row in counts])


def stage_returns(played: Sequence[tuple[Trace, Played]]) -> list[tuple[str, int, float]]:
    """What is paid for how far an episode gets: kind, most stages done at one time and return of each."""
    return [(trace.kind, result.most_stages, result.total) for trace, result in played]


def mutation_bars(check: Check) -> dict[str, int]:
    """How many mutants each check rejects, and how many survive, from V20's numbers; empty if V20 was not run."""
    killed = check.numbers.get("killed by")
    if killed is None:
        return {}
    bars = {name: killed[name] for name in sorted(killed, key=lambda name: (name.startswith("V"), len(name), name))}
    return {**bars, "survived": check.numbers["mutants"] - sum(killed.values())}


def reject_reasons(folder: str | os.PathLike[str]) -> dict[str, int]:
    """
    Why answers of the language model were rejected.

    :return: Answers by outcome (``verified``, ``invalid``, ``refused``, ``cut off``) or failed hard check (``V8``), most
        frequent first; an answer that fails several checks counts for each.
    :raises ValueError: If the folder holds no answers.
    """
    counts: Counter[str] = Counter()
    for path in sorted(Path(folder).rglob("*.verdict.json")):
        verdict = json.loads(path.read_text(encoding="utf-8"))
        if verdict["outcome"] == "failed checks":
            counts.update(c["id"] for c in verdict["report"]["checks"] if c["hard"] and c["passed"] is False)
        else:
            counts[verdict["outcome"]] += 1
    if not counts:
        raise ValueError(f"{os.fspath(folder)!r} holds no answers (*.verdict.json) of sb3-tgrpo reward generate.")
    return dict(counts.most_common())


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
        bottom.plot(list(itertools.accumulate(result.rewards, initial=0.0)), **style)
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
                start = chosen[kind].start(facts)
                axis.plot([variable(state, start) for state in chosen[kind].states], color=_COLOURS[kind], label=kind)
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


def _plot_occupancy(program: RewardProgram, played: Sequence[tuple[Trace, Played]]) -> "Figure":
    """Heat map: episodes by stages done, the share of time as colour."""
    figure, (axis,) = _figure(1, 1.2 + 0.22 * len(played))
    image = axis.imshow(occupancy(program, played), aspect="auto", cmap="viridis", vmin=0.0, vmax=1.0)
    axis.set_yticks(range(len(played)), [f"{trace.name} ({trace.source})" for trace, _ in played], fontsize=7)
    axis.set_xticks(range(program.n_stages + 1))
    axis.set_xlabel("stages done")
    axis.set_title(f"{program.task}: where episodes spend their time", fontsize=9)
    figure.colorbar(image, ax=axis, label="share of steps")
    return figure


def _plot_stages(program: RewardProgram, played: Sequence[tuple[Trace, Played]]) -> "Figure":
    """Scatter of return against the most stages done."""
    figure, (axis,) = _figure(1, 4.0)
    points = stage_returns(played)
    for kind in dict.fromkeys(kind for kind, _, _ in points):
        own = [(stages, total) for other, stages, total in points if other == kind]
        axis.scatter(*zip(*own, strict=True), color=_COLOURS[kind], label=kind, alpha=0.7)
    axis.set_xlabel("most stages done")
    axis.set_ylabel(f"return, paid {program.payment}")
    axis.set_title(program.task)
    axis.legend(fontsize=8)
    return figure


def _plot_bars(counts: Mapping[str, int], unit: str, colours: Mapping[str, str], title: str) -> "Figure":
    figure, (axis,) = _figure(1, 3.2)
    axis.bar(list(counts), list(counts.values()), color=[colours.get(name, "tab:blue") for name in counts])
    axis.set_ylabel(unit)
    axis.set_title(title)
    return figure
