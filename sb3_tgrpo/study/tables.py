"""Results of a study: a table like the paper's I and II and a plot like its Fig. 5, from the cells that are finished."""

from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.comparison import FEWEST, paired_comparison
from sb3_tgrpo.evaluation.results import Evaluation
from sb3_tgrpo.evaluation.statistics import Rate, bootstrap_interval, iqm_of_cells, mean_of_tasks, ranks
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.run_folder import RunFolder, now
from sb3_tgrpo.study.design import Cell, Study, cell_results
from sb3_tgrpo.study.methods import BASE, GRIDS, short_name
from sb3_tgrpo.train.job import SETUP_FILE
from sb3_tgrpo.train.plots import BLUE, GREY, new_figure, plain_axis, png
from sb3_tgrpo.train.report import render

FEWEST_SEEDS = FEWEST["evaluation"]
"""With fewer seeds of a task than this an interval over runs would be that of a handful of values; none is shown."""


def write_results(study: Study, root: RunFolder) -> dict[str, Any]:
    """Write ``results.json``, ``table.md`` and plots of the cells that are finished into the grid's folder."""
    cells = study.cells()
    finished = {cell: cell_results(cell, root) for cell in cells}
    modes = {}
    for temperature in study.config.evaluation.eval_temperatures:
        name = str(Decoding(temperature))
        file = f"evaluations/after_{name.replace('=', '')}/evaluation.json"
        found = {cell: Evaluation.load(root / cell.name / file) for cell, result in finished.items() if result is not None}
        modes[name] = summarise(found, study)
    results = {
        "grid": study.grid,
        "envs": list(study.envs),
        "seeds": list(study.seeds),
        "budget": study.config.algorithm.total_timesteps,
        "tuning": study.tuning,
        "modes": modes,
        "cells": [_cell(cell, result, root) for cell, result in finished.items() if result is not None],
        "missing": [str(cell) for cell, result in finished.items() if result is None],
        "written": now(),
    }
    root.write(f"{study.grid}/results.json", results)
    atomic_write(root / study.grid / "table.md", markdown(results, study, root))
    for name, rows in modes.items():
        if rows:
            (root / study.grid / f"{name.replace('=', '')}.png").write_bytes(plot(rows, GRIDS[study.grid].axis, name))
    return results


def _cell(cell: Cell, result: dict[str, Any], root: RunFolder) -> dict[str, Any]:
    """
    ``timesteps`` beyond the budget are the rest of the rollout in which it was reached. ``reward`` is the digest of the reward
    program; None without one, or in older records.
    """
    return {
        "env": cell.env,
        "method": cell.method,
        "seed": cell.seed,
        "folder": cell.name,
        "timesteps": result["timesteps"],
        "updates": result["updates"],
        "seconds": round(result["seconds"]["total"], 1),
        "assets": result["assets"],
        "reward": (root.read(f"{cell.name}/{SETUP_FILE}") or {}).get("reward"),
        "modes": {name: mode["after"]["successes"] / mode["after"]["episodes"] for name, mode in result["modes"].items()},
    }


def summarise(found: dict[Cell, Evaluation], study: Study) -> dict[str, dict[str, Any]]:
    """
    Rows of a table.

    :param found: Evaluations of the finished cells, of one decoding.
    :param study: Order of tasks, methods and seeds.
    :return: Rows by method: ``tasks`` (by id), ``mean``, ``mean_interval``, ``iqm``, ``iqm_interval``, ``rank``, ``vs_sft``,
        ``versus``. Without one of the tasks ``iqm``, ``rank`` and both intervals are None. The intervals are None also where a
        task has one evaluation, which cannot represent other seeds. ``vs_sft`` is None for SFT itself, or where nothing can be
        paired. ``versus`` is the same against the other trained methods, by name, where there is something to pair.
    """
    by_key = {(cell.method, cell.env, cell.seed): evaluation for cell, evaluation in found.items()}
    rows: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys((BASE, *study.methods)):
        played = {
            env: [by_key[method, env, seed] for seed in study.seeds if (method, env, seed) in by_key] for env in study.envs
        }
        if not any(played.values()):
            continue
        tasks = {env: _task(method, evaluations) for env, evaluations in played.items() if evaluations}
        scores = [task["seeds"] for task in tasks.values()]
        row: dict[str, Any] = {"tasks": tasks, "mean": float(mean_of_tasks(scores))}
        row |= dict.fromkeys(("mean_interval", "iqm", "iqm_interval", "rank"))
        if len(tasks) == len(study.envs):
            row["iqm"] = float(iqm_of_cells(scores))
            if all(task["evaluations"] > 1 for task in tasks.values()):
                row["iqm_interval"] = list(bootstrap_interval(scores))
                row["mean_interval"] = list(bootstrap_interval(scores, mean_of_tasks))
        row["vs_sft"] = None if method == BASE else _paired(by_key, BASE, method, study)
        rows[method] = row
    for method, row in rows.items():
        others = [other for other in rows if other != method and BASE not in (other, method)]
        pairs = {other: _paired(by_key, other, method, study) for other in others}
        row["versus"] = {other: pair for other, pair in pairs.items() if pair is not None}
    complete = [method for method, row in rows.items() if row["iqm"] is not None]
    for env in study.envs:
        for method, rank in zip(complete, ranks([rows[method]["tasks"][env]["rate"] for method in complete]), strict=True):
            rows[method]["rank"] = (rows[method]["rank"] or 0.0) + rank / len(study.envs)
    return rows


def _task(method: str, evaluations: Sequence[Evaluation]) -> dict[str, Any]:
    different = _without_copies(evaluations) if method == BASE else evaluations
    pooled = Rate(sum(e.rate.successes for e in different), sum(e.rate.trials for e in different))
    return {
        "rate": pooled.rate,
        "successes": pooled.successes,
        "episodes": pooled.trials,
        "interval": list(pooled.interval()),
        "evaluations": len(different),
        "success_steps": _median_steps(different),
        "seeds": [evaluation.success_rate for evaluation in evaluations],
    }


def _median_steps(evaluations: Sequence[Evaluation]) -> float | None:
    """Steps that successes took: standing still on the way shows here before it shows in the success rate."""
    lengths = [episode.length for evaluation in evaluations for episode in evaluation.episodes if episode.success]
    return float(np.median(lengths)) if lengths else None


def _without_copies(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """
    Greedy play of one policy from the same initial states is one evaluation, however many seeds have it: pooled, it would look
    like several times as many episodes.
    """
    found: dict[Hashable, Evaluation] = {}
    for k, evaluation in enumerate(evaluations):
        outcomes = tuple((episode.key, episode.success) for episode in evaluation.episodes)
        found.setdefault(outcomes if evaluation.decoding.greedy else k, evaluation)
    return list(found.values())


def _paired(by_key: dict[tuple[str, str, int], Evaluation], before: str, after: str, study: Study) -> dict[str, Any] | None:
    """Two methods paired, cell by cell, where both are finished; ``seeds`` is how many of them a task has at least."""
    keys = [(env, seed) for env in study.envs for seed in study.seeds]
    keys = [key for key in keys if (before, *key) in by_key and (after, *key) in by_key]
    if not keys:
        return None
    firsts, seconds = ([by_key[method, env, seed] for env, seed in keys] for method in (before, after))
    found: dict[str, Any] = {"seeds": min(Counter(env for env, _ in keys).values())}
    found["initial_state"] = paired_comparison(firsts, seconds).to_dict()
    if found["seeds"] > 1:
        found["evaluation"] = paired_comparison(firsts, seconds, resample="evaluation").to_dict()
    return found


# ---------------------------------------------------------------------- tables


def table_rows(rows: dict[str, dict[str, Any]], envs: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of a table, as text; ``envs`` gives the order of the columns."""
    head = ["method", *map(short_name, envs), "mean", "rank", "IQM", "difference to SFT, points", "steps of a success"]
    body = []
    for method, row in rows.items():
        cells = [
            _percent(row["tasks"][env]["rate"], row["tasks"][env]["interval"]) if env in row["tasks"] else "-" for env in envs
        ]
        cells.append(f"{100 * row['mean']:.1f}" if row["iqm"] is not None else "-")
        cells.append(f"{row['rank']:g}" if row["rank"] is not None else "-")
        cells.append(_percent(row["iqm"], row["iqm_interval"]) if row["iqm"] is not None else "-")
        cells.append(_points(row["vs_sft"]) if row["vs_sft"] else "-")
        steps = [row["tasks"][env]["success_steps"] if env in row["tasks"] else None for env in envs]
        cells.append(" / ".join("-" if median is None else f"{median:g}" for median in steps))
        body.append([method, *cells])
    return head, body


def versus_rows(rows: dict[str, dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Head and cells of the table of methods against each other, as text: the row's success minus the column's."""
    trained = [method for method in rows if method != BASE]
    body = []
    for method in trained:
        pairs = rows[method]["versus"]
        cells = [
            f"{_points(pairs[other])}, {pairs[other]['initial_state']['n_evaluations']}" if other in pairs else "-"
            for other in trained
        ]
        body.append([method, *cells])
    return ["", *trained], body


def _points(paired: dict[str, Any]) -> str:
    """The difference with its interval over initial states, and over runs where there are enough of them."""
    over_states, over_runs = paired["initial_state"], paired.get("evaluation")
    text = f"{100 * over_states['difference']:+.1f} {_bounds(over_states)}"
    if over_states["n_resampled"] < FEWEST["initial_state"]:
        text += f" from {over_states['n_resampled']} initial states"
    return f"{text}, runs {_bounds(over_runs)}" if over_runs is not None and paired["seeds"] >= FEWEST_SEEDS else text


def _bounds(paired: dict[str, Any]) -> str:
    low, high = paired["interval"]
    return f"[{100 * low:+.1f}, {100 * high:+.1f}]"


def _percent(rate: float, interval: Sequence[float] | None) -> str:
    if interval is None:
        return f"{100 * rate:.1f}"
    return f"{100 * rate:.1f} [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]"


def markdown(results: dict[str, Any], study: Study, root: RunFolder) -> str:
    """The tables, what was run, and with what, as Markdown."""
    return render(
        Path(__file__).with_name("table.md.j2"),
        (short_name,),
        autoescape=False,
        results=results,
        study=study,
        description=GRIDS[study.grid].description,
        table_rows=table_rows,
        versus_rows=versus_rows,
        short_name=short_name,
        rewards=_rewards(results["cells"]),
        calls=(root.read(f"{study.grid}/study.json") or {"calls": []})["calls"],
    )


def _rewards(cells: Sequence[dict[str, Any]]) -> list[str]:
    """Reward versions of each task, with methods and seeds if there are several."""
    lines = []
    for env in dict.fromkeys(cell["env"] for cell in cells):
        versions: dict[str, dict[str, list[str]]] = {}
        for cell in cells:
            if cell["env"] == env and cell["reward"]:
                versions.setdefault(cell["reward"][:12], {}).setdefault(cell["method"], []).append(str(cell["seed"]))
        if len(versions) == 1:
            lines.append(f"Reward of {short_name(env)}, by its digest: {next(iter(versions))}.")
        elif versions:
            whose = [
                f"{digest} ({', '.join(method + ' ' + ' '.join(of) for method, of in methods.items())})"
                for digest, methods in versions.items()
            ]
            lines.append(
                f"**Several rewards of {short_name(env)}**, by their digests, with methods and seeds: {'; '.join(whose)}."
            )
    return lines


def text_table(rows: dict[str, dict[str, Any]], envs: Sequence[str]) -> str:
    """The table for a terminal."""
    head, body = table_rows(rows, envs)
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in (head, *body))


# ---------------------------------------------------------------------- plots


def plot(rows: dict[str, dict[str, Any]], axis: str, title: str) -> bytes:
    """
    Mean success over the tasks with its interval, each (task, seed) cell as a dot: by what the methods vary, as in the
    paper's Fig. 5 (``axis`` names it), or method by method. As a PNG.
    """
    figure = new_figure(7.5, 3.2)
    axes = figure.subplots()
    shown = [method for method in rows if not (axis and method == BASE)]
    for x, method in enumerate(shown):
        row = rows[method]
        dots = np.concatenate([task["seeds"] for task in row["tasks"].values()])
        axes.plot(np.full(len(dots), x) + np.linspace(-0.12, 0.12, len(dots)), dots, ".", color=GREY, markersize=5)
        if row["mean_interval"] is not None:
            low, high = row["mean_interval"]
            axes.plot([x, x], [low, high], color=BLUE, linewidth=1.5)
        axes.plot([x], [row["mean"]], "o", color=BLUE, markersize=6)
    if axis:
        axes.plot(range(len(shown)), [rows[method]["mean"] for method in shown], color=BLUE, linewidth=1.0, alpha=0.5)
        if BASE in rows:
            axes.axhline(rows[BASE]["mean"], color=GREY, linestyle="--", linewidth=1.0)
            axes.annotate(" SFT", (1.0, rows[BASE]["mean"]), xycoords=("axes fraction", "data"), fontsize=8, va="center")
    labels = [method.partition("=")[2] or method for method in shown] if axis else shown
    axes.set_xticks(range(len(shown)), labels, fontsize=8)
    axes.set_xlim(-0.5, len(shown) - 0.5)
    axes.set_ylim(-0.02, 1.02)
    plain_axis(axes, f"Success, {title}", x_label={"alpha_1": r"$\alpha_1$"}.get(axis, axis))
    axes.xaxis.label.set_fontsize(9)
    return png(figure)
