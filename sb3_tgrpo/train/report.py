"""One HTML file that shows a whole run: no server, no downloads, pictures and videos inside."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sb3_tgrpo.files import JsonLines, atomic_write
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train.config import ALGORITHM_NAMES, TrainConfig
from sb3_tgrpo.train.plots import plot_curves, plot_furthest, plot_stages, plot_success
from sb3_tgrpo.train.view import count, duration, time_split

LIGHT_NOTE = (
    "The pictures show the light assets: built-in stand-ins of this project for LIBERO's own meshes and textures, with the "
    "same physics, initial states and goals. A policy trained on them has not seen LIBERO's own pictures."
)
_IMITATES = "A policy that imitates demonstrations,"
_FROM_NOTHING = "A small network of its own, trained from nothing by {name}; before is the base policy of the other methods."
_LEADS = {
    "tgrpo": f"{_IMITATES} trained further by group-relative policy optimisation (TGRPO, arXiv 2506.08440).",
    **dict.fromkeys(("ppo", "dpo", "tpo"), f"{_IMITATES} trained further by {{name}}."),
    "sft": f"{_IMITATES} as it is.",
    **dict.fromkeys(("trpo", "recurrent_ppo"), _FROM_NOTHING),
}
"""What a report is of, by ``algo``."""
_ONE = (
    ("Training", "curves", "Numbers of each update; the blue line is their running mean."),
    ("Where the time is spent", "stages", "Share of the training steps by the number of the reward's stages that are done. "
     "Dark is nearly finished."),
    ("How far episodes come", "furthest", "The stored initial states, before and after training."),
)  # fmt: skip
_SEVERAL = (("Success by seed", "success", "One line per seed."), ("Training", "curves", "One line per seed."))


def write_report(config: TrainConfig, run: RunFolder, results: dict[str, Any]) -> Path:
    """Write ``report.html`` and the plots of one run; gives the file."""
    rows = JsonLines(run / "metrics.jsonl").read()
    plots = {
        "success": plot_success(results["modes"]),
        "curves": plot_curves([rows]),
        "stages": plot_stages(rows),
        "furthest": plot_furthest(results["modes"]),
    }
    seconds, split = results["seconds"], time_split(rows)
    parts = ", ".join(f"{part} {duration(value)}" for part, value in seconds.items() if 0.5 <= value < seconds["total"])
    facts = {
        "seed": results["seed"],
        "training": f"{results['timesteps']:,} steps in {count(results['updates'], 'update')}",
        "time": f"{duration(seconds['total'])} in all: {parts}" + (f". Training: {split}" if split else ""),
    }
    return _write(config, run, results, plots, facts)


def write_pooled_report(config: TrainConfig, run: RunFolder, results: dict[str, Any]) -> Path:
    """Write ``report.html`` of several seeds into the folder of their folders, with links to each of them; gives the file."""
    runs = [JsonLines(run / f"seed_{seed}" / "metrics.jsonl").read() for seed in results["seeds"]]
    plots = {"success": plot_success(results["modes"]), "curves": plot_curves(runs)}
    facts = {"seeds": ", ".join(map(str, results["seeds"])), "time": duration(results["seconds"])}
    return _write(config, run, results, plots, facts)


def result_lines(results: dict[str, Any]) -> list[str]:
    """The results as plain text, a few lines per way of playing."""
    lines = []
    for name, mode in results["modes"].items():
        for seed in mode["per_seed"] if len(mode["per_seed"]) > 1 else []:
            lines.append(f"{name:<8} seed {seed['seed']:<3} {_rate(seed['before'])} -> {_rate(seed['after'])}")
        paired = mode["paired"]["initial_state"]
        p_value = f", exact McNemar p = {text}" if (text := _p_value(paired)) else ""
        rates = f"{_rate(mode['before'])} -> {_rate(mode['after'])}"
        lines.append(f"{name:<8} {rates}, {_points(paired)} {_interval(paired)}{p_value}")
        if "evaluation" in mode["paired"]:
            lines.append(f"{'':<8} with seeds resampled: {_interval(mode['paired']['evaluation'])}")
    return lines


def _rate(counts: dict[str, Any]) -> str:
    return f"{counts['successes']}/{counts['episodes']} = {_percent(counts)}"


def _percent(counts: dict[str, Any]) -> str:
    return f"{counts['successes'] / counts['episodes']:.0%}"


def _points(paired: dict[str, Any]) -> str:
    return f"{100 * paired['difference']:+.0f} points"


def _interval(paired: dict[str, Any]) -> str:
    if paired["is_crude"]:
        return f"(no interval: {count(paired['n_resampled'], paired['resample'].replace('_', ' '))} can't give one)"
    low, high = paired["interval"]
    return f"[{100 * low:+.0f}, {100 * high:+.0f}]"


def _p_value(paired: dict[str, Any]) -> str:
    return "" if paired["p_value"] is None else f"{paired['p_value']:.2g}"


def _mode_words(name: str) -> str:
    return "greedy actions" if name == "greedy" else f"sampled actions, {name}"


def _write(
    config: TrainConfig, run: RunFolder, results: dict[str, Any], plots: dict[str, bytes | None], facts: dict[str, Any]
) -> Path:
    drawn = {name: data for name, data in plots.items() if data is not None}
    for name, data in drawn.items():
        atomic_write(run / "plots" / f"{name}.png", data)
    seeds, lost = results.get("seeds"), results["resampled_groups"]
    several = seeds is not None and len(seeds) > 1
    videos = {}
    if results.get("videos") and not several:
        videos = {when: _base64((run / "videos" / f"{when}.mp4").read_bytes()) for when in ("before", "after")}
    name = ALGORITHM_NAMES[config.algorithm.algo]
    page = render(
        Path(__file__).with_name("report.html.j2"),
        (_rate, _percent, _points, _interval, _p_value, _mode_words),
        title=f"{name} on {results['env']}",
        lead=_LEADS[config.algorithm.algo].format(name=name),
        results=results,
        seeds=seeds if several else None,
        videos=videos,
        light_note=LIGHT_NOTE,
        pictures=_SEVERAL if several else _ONE,
        plots={name: _base64(data) for name, data in drawn.items()},
        facts={
            "task": results["env"],
            "assets": results["assets"] + {"light": " (built in)", "full": " (LIBERO's own)"}.get(results["assets"], ""),
            "base policy": results["start"],
            "reward": results["reward"],
            "training's initial states": results["training_starts"],
            **facts,
            "lost simulators": f"{count(lost, 'group')} sampled again from the same initial state" if lost else "none",
            "finished": results["finished"],
        },
        record={"versions": {}, "platform": "", "cores": "", "command": None, **(run.read("run.json") or {})},
        settings=json.dumps(config.to_dict(), indent=1),
    )
    return atomic_write(run / "report.html", page)


def render(template: Path, filters: Sequence[Callable[..., str]], *, autoescape: bool = True, **values: Any) -> str:
    """
    The text of a template of Jinja2 with values, which ``autoescape`` escapes for HTML; a name that is not among them is an
    error. Filters are functions that the template uses by their names without underscores in front.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=autoescape, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {text.__name__.lstrip("_"): text for text in filters}
    return environment.from_string(template.read_text(encoding="utf-8")).render(**values)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
