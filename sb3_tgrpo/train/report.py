"""One HTML file that shows a whole run: no server, no downloads, pictures and videos inside."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_tgrpo.files import JsonLines, atomic_write
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train.config import ALGORITHM_NAMES, TrainConfig
from sb3_tgrpo.train.plots import plot_curves, plot_furthest, plot_stages, plot_success
from sb3_tgrpo.train.view import duration, time_split

LIGHT_NOTE = (
    "The pictures show the <em>light assets</em>: built-in stand-ins of this project for LIBERO's own meshes and textures, "
    "with the same physics, start states and goals. A policy trained on them has not seen LIBERO's own pictures."
)

_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1d2733; --soft: #5d6b7a; --line: #dde3e9; --page: #fbfcfd; --card: #ffffff; --blue: #2563a8;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --soft: #9aa7b4; --line: #303a45; --page: #14191f; --card: #1b2229; --blue: #7fb2ea; }
  img.plot { filter: invert(0.91) hue-rotate(180deg); }
}
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.15rem; margin: 2.4rem 0 .7rem; }
p.lead, figcaption, .soft { color: var(--soft); } p.lead { margin: 0 0 1.6rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); gap: 1rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: 1rem 1.2rem; }
.card .name { color: var(--soft); font-size: .9rem; } .card .big { font-size: 1.9rem; font-weight: 650; }
.card .big small { font-size: 1rem; font-weight: 400; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: left; padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; } tr.total td { font-weight: 650; }
figure { margin: 0 0 1rem; } img { max-width: 100%; height: auto; }
.videos { display: flex; flex-wrap: wrap; gap: 1.2rem; } .videos figure { flex: 1 1 16rem; max-width: 24rem; }
video { width: 100%; border-radius: .5rem; background: #000; image-rendering: pixelated; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem; font-size: .85rem; }
pre { overflow-x: auto; }
summary { cursor: pointer; color: var(--blue); margin-top: .6rem; } a { color: var(--blue); }
"""


def write_report(config: TrainConfig, run: RunFolder, results: dict[str, Any]) -> Path:
    """
    Write ``report.html`` and the plots of one run.

    :param config: the run's.
    :param run: its folder.
    :param results: as in ``results.json``.
    :return: the file.
    """
    rows = JsonLines(run / "metrics.jsonl").read()
    plots = {
        "success": plot_success(results["modes"]),
        "curves": plot_curves([rows]),
        "stages": plot_stages(rows),
        "furthest": plot_furthest(results["modes"]),
    }
    _save(run, plots)
    seconds = results["seconds"]
    split = ", ".join(f"{name} {share:.0%}" for name, share in time_split(rows).items())
    sections = [
        _headline(results),
        _success_table(results),
        _videos(run, results),
        _section("Training", _picture(plots["curves"], "Numbers of each update; the blue line is their running mean."))
        if plots["curves"] else "",
        _section("Where the time is spent", _picture(plots["stages"], STAGES_CAPTION)) if plots["stages"] else "",
        _section("How far episodes come", _picture(plots["furthest"], "The stored starts, before and after training."))
        if plots["furthest"] else "",
        _section(
            "The run",
            _facts(
                {
                    "task": results["env"],
                    "assets": results["assets"] + (" (built in)" if results["assets"] == "light" else " (LIBERO's own)"),
                    "start policy": results["start"],
                    "reward": results["reward"],
                    "training starts": results["training_starts"],
                    "seed": str(results["seed"]),
                    "training": f"{results['timesteps']:,} steps in {results['updates']} updates",
                    "time": f"{duration(seconds['total'])} in all: "
                    + ", ".join(
                        f"{part} {duration(value)}" for part, value in seconds.items() if 0.5 <= value < seconds["total"]
                    )
                    + (f". Training: {split}" if split else ""),
                    "finished": results["finished"],
                }
            )
            + _details(config, run),
        ),
    ]  # fmt: skip
    return _write(config, run, results, sections)


STAGES_CAPTION = (
    "Share of all training steps that were made with so many of the reward's stages done. Dark is nearly finished."
)


def write_pooled_report(config: TrainConfig, run: RunFolder, results: dict[str, Any]) -> Path:
    """
    Write ``report.html`` of several seeds, with links to each of them.

    :param config: what the runs have in common.
    :param run: folder that holds the runs' folders.
    :param results: as in its ``results.json``.
    :return: the file.
    """
    runs = [JsonLines(run / f"seed_{seed}" / "metrics.jsonl").read() for seed in results["seeds"]]
    plots = {"success": plot_success(results["modes"]), "curves": plot_curves(runs)}
    _save(run, plots)
    links = ", ".join(f'<a href="seed_{seed}/report.html">seed {seed}</a>' for seed in results["seeds"])
    sections = [
        _headline(results),
        _success_table(results),
        _section("Success by seed", _picture(plots["success"], "One line per seed.")),
        _section("Training", _picture(plots["curves"], "One line per seed.")) if plots["curves"] else "",
        _section(
            "The runs",
            f"<p>{links}</p>"
            + _facts(
                {
                    "task": results["env"],
                    "assets": results["assets"],
                    "start policy": results["start"],
                    "reward": results["reward"],
                    "training starts": results["training_starts"],
                    "seeds": ", ".join(map(str, results["seeds"])),
                    "time": duration(results["seconds"]),
                    "finished": results["finished"],
                }
            )
            + _details(config, run),
        ),
    ]
    return _write(config, run, results, sections)


def result_lines(results: dict[str, Any]) -> list[str]:
    """The results as plain text, a few lines per way of playing."""
    lines = []
    for name, mode in results["modes"].items():
        for seed in mode["per_seed"] if len(mode["per_seed"]) > 1 else []:
            lines.append(f"{name:<8} seed {seed['seed']:<3} {_rate(seed['before'])} -> {_rate(seed['after'])}")
        paired = mode["paired"]["start"]
        low, high = paired["interval"]
        lines.append(
            f"{name:<8} {_rate(mode['before'])} -> {_rate(mode['after'])}, {100 * paired['difference']:+.0f} points "
            f"[{100 * low:+.0f}, {100 * high:+.0f}]{_p_value(paired, ', exact McNemar p = ')}"
        )
        if "evaluation" in mode["paired"]:
            low, high = mode["paired"]["evaluation"]["interval"]
            lines.append(f"{'':<8} with seeds resampled: [{100 * low:+.0f}, {100 * high:+.0f}] points")
    return lines


# ---------------------------------------------------------------------- parts


def _headline(results: dict[str, Any]) -> str:
    cards = []
    for name, mode in results["modes"].items():
        paired = mode["paired"]["start"]
        low, high = (100 * bound for bound in paired["interval"])
        before, after = (mode[when]["successes"] / mode[when]["episodes"] for when in ("before", "after"))
        cards.append(
            f'<div class="card"><div class="name">{html.escape(_mode_words(name))}</div>'
            f'<div class="big">{before:.0%} → {after:.0%} <small>{100 * paired["difference"]:+.0f} points</small></div>'
            f'<div class="soft">95 % interval of the difference [{low:+.0f}, {high:+.0f}]</div></div>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _success_table(results: dict[str, Any]) -> str:
    rows = []
    for name, mode in results["modes"].items():
        many = len(mode["per_seed"]) > 1
        for seed in mode["per_seed"]:
            rows.append(_table_row(name, str(seed["seed"]), seed["before"], seed["after"], seed["paired"], ""))
        if many:
            rows.append(_table_row(name, "all", mode["before"], mode["after"], mode["paired"]["start"], "total"))
            low, high = (100 * bound for bound in mode["paired"]["evaluation"]["interval"])
            rows.append(
                f'<tr><td></td><td colspan="6" class="soft">with whole runs resampled instead of starts: [{low:+.0f}, '
                f"{high:+.0f}] points</td></tr>"
            )
    head = "".join(
        f"<th>{text}</th>" for text in ("", "seed", "before", "after", "difference, 95 % interval", "only before / after", "p")
    )
    note = (
        "Each stored start is played before and after training, and the outcomes are compared start by start: episodes in "
        "which only one of the two policies succeeds, the exact McNemar test, and a bootstrap over starts. The policy judged "
        "is the last one of the training, whatever the curves look like on the way."
    )
    if any(len(mode["per_seed"]) > 1 for mode in results["modes"].values()):
        note += (
            " Greedy play of the start policy is the same for all seeds, and counted once. The test is of single seeds: "
            "pairs of several seeds share their starts."
        )
    body = f'<div class="scroll"><table><tr>{head}</tr>{"".join(rows)}</table></div><p class="soft">{note}</p>'
    return _section("Success on the stored starts", body)


def _table_row(name: str, seed: str, before: dict[str, Any], after: dict[str, Any], paired: dict[str, Any], css: str) -> str:
    low, high = (100 * bound for bound in paired["interval"])
    cells = (
        html.escape(name), seed, _rate(before), _rate(after),
        f"{100 * paired['difference']:+.0f} points [{low:+.0f}, {high:+.0f}]",
        f"{paired['only_before']} / {paired['only_after']}", _p_value(paired),
    )  # fmt: skip
    return f'<tr class="{css}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _rate(counts: dict[str, Any]) -> str:
    return f"{counts['successes']}/{counts['episodes']} = {counts['successes'] / counts['episodes']:.0%}"


def _p_value(paired: dict[str, Any], before: str = "") -> str:
    return "" if paired["p_value"] is None else f"{before}{paired['p_value']:.2g}"


def _mode_words(name: str) -> str:
    return "greedy actions" if name == "greedy" else f"sampled actions, {name}"


def _videos(run: RunFolder, results: dict[str, Any]) -> str:
    videos = results.get("videos")
    if not videos:
        return ""
    figures = []
    for when in ("before", "after"):
        data = base64.b64encode((run / "videos" / f"{when}.mp4").read_bytes()).decode()
        figures.append(
            f'<figure><video controls loop muted playsinline src="data:video/mp4;base64,{data}"></video>'
            f"<figcaption>{when} training</figcaption></figure>"
        )
    why = (
        f"start {videos['start']}, the first that failed before training and succeeds after it"
        if videos["chosen"]
        else f"start {videos['start']}"
    )
    light = f" {LIGHT_NOTE}" if results["assets"] == "light" else ""
    text = f'<p class="soft">One episode each from {why} ({_mode_words(videos["mode"])}): an illustration.{light}</p>'
    return _section("An episode", f'<div class="videos">{"".join(figures)}</div>{text}')


def _details(config: TrainConfig, run: RunFolder) -> str:
    record = run.read("run.json") or {}
    versions = ", ".join(f"{name} {number}" for name, number in record.get("versions", {}).items())
    settings = html.escape(json.dumps(config.to_dict(), indent=1))
    command = html.escape(record.get("command") or "sb3-tgrpo train")
    return (
        f'<p class="soft">{html.escape(versions)}; {html.escape(record.get("platform", ""))}, {record.get("cores")} cores.</p>'
        f"<details><summary>Command and settings</summary><pre>{command}</pre><p>Again with the same settings: "
        f"<code>sb3-tgrpo train --config config.json --out FOLDER</code></p><pre>{settings}</pre></details>"
    )


def _facts(facts: dict[str, str]) -> str:
    cells = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>" for name, text in facts.items())
    return f"<table>{cells}</table>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{body}</section>"


def _picture(data: bytes | None, caption: str) -> str:
    if data is None:
        return ""
    source = base64.b64encode(data).decode()
    return (
        f'<figure><img class="plot" alt="{html.escape(caption)}" src="data:image/png;base64,{source}">'
        f"<figcaption>{html.escape(caption)}</figcaption></figure>"
    )


_IMITATES = "A policy that imitates demonstrations,"
_FROM_NOTHING = "A small network of its own, trained from nothing by {name}; before is the start policy of the other methods."
_LEADS = {
    "tgrpo": f"{_IMITATES} trained further by group-relative policy optimisation (TGRPO, arXiv 2506.08440).",
    **dict.fromkeys(("ppo", "dpo", "tpo"), f"{_IMITATES} trained further by {{name}}."),
    "sft": f"{_IMITATES} as it is.",
    **dict.fromkeys(("trpo", "recurrent_ppo"), _FROM_NOTHING),
}
"""What a report is of, by ``algo``."""


def _save(run: RunFolder, plots: dict[str, bytes | None]) -> None:
    (run / "plots").mkdir(exist_ok=True)
    for name, data in plots.items():
        if data is not None:
            (run / "plots" / f"{name}.png").write_bytes(data)


def _write(config: TrainConfig, run: RunFolder, results: dict[str, Any], sections: Sequence[str]) -> Path:
    algo = config.algorithm.algo
    title = f"{ALGORITHM_NAMES[algo]} on {results['env']}"
    lead = f"{_LEADS[algo].format(name=ALGORITHM_NAMES[algo])} Judged on the same starts before and after."
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<style>{_STYLE}</style></head>\n<body><main>'
        f'<h1>{html.escape(title)}</h1><p class="lead">{lead}</p>\n'
        + "\n".join(filter(None, sections))
        + "\n</main></body></html>\n"
    )
    return atomic_write(run / "report.html", page)
