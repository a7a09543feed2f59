"""
Success of the cloned start policy against the number of demonstrations and the updates:

    python examples/benchmarks/learning_curve.py --demos 5 7 9 15 30 60 --out runs/curve

Each point is ``sb3-tgrpo train --from-scratch --algo sft``: demonstrations, fine-tuning, LIBERO's 50 stored starts greedy and
sampled at T = 1. The same command continues an interrupted curve, and adds points to it.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from sb3_tgrpo.evaluation.statistics import wilson_interval
from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.job import run_training


def point(env: str, demos: int, updates: int, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate one start policy, or read what an earlier call found."""
    config = TrainConfig().updated(
        {**settings, "env": env, "from_scratch": True, "algo": "sft", "demos": demos, "sft_steps": updates}
    )
    results = run_training(config, folder)
    recipe = json.loads((folder / "start/checkpoint/config.json").read_text())["sb3_tgrpo"]["sft"]
    found = {"env": env, "demos": demos, "updates": updates, "minutes": recipe["seconds"] / 60}
    found["frames"] = recipe["demonstrations"]["n_frames"]
    for name, mode in results["modes"].items():
        found[name] = {"successes": mode["before"]["successes"], "episodes": mode["before"]["episodes"]}
    return found


def cell(rate: dict[str, int]) -> str:
    low, high = wilson_interval(rate["successes"], rate["episodes"])
    share = rate["successes"] / rate["episodes"]
    return f"{rate['successes']}/{rate['episodes']} = {share:.0%} [{100 * low:.0f}, {100 * high:.0f}] %"


def table(points: list[dict[str, Any]]) -> str:
    """The points as Markdown."""
    lines = [
        "| task | demonstrations | updates, minutes of training | greedy | sampled, T = 1 |",
        "|---|---|---|---|---|",
    ]
    for p in points:
        task = p["env"].removeprefix("LIBERO/").removesuffix("-v0")
        lines.append(
            f"| {task} | {p['demos']} | {p['updates']}, {p['minutes']:.1f} | {cell(p['greedy'])} | {cell(p['T=1'])} |"
        )
    return "\n".join(lines)


def plot(points: list[dict[str, Any]], path: Path) -> None:
    """Success with Wilson's intervals against demonstrations, a line per mode."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for mode, colour in (("greedy", "#2563a8"), ("T=1", "#d9822b")):
        rates = [p[mode]["successes"] / p[mode]["episodes"] for p in points]
        bounds = [wilson_interval(p[mode]["successes"], p[mode]["episodes"]) for p in points]
        below = [rate - low for rate, (low, _) in zip(rates, bounds, strict=True)]
        above = [high - rate for rate, (_, high) in zip(rates, bounds, strict=True)]
        axis.errorbar([p["demos"] for p in points], rates, [below, above], color=colour, marker="o", capsize=3, label=mode)
    axis.set(xscale="log", ylim=(0, 1), xlabel="demonstrations", ylabel="success from 50 stored starts")
    axis.set_xticks([p["demos"] for p in points], [str(p["demos"]) for p in points])
    axis.minorticks_off()
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="LIBERO/libero_object-8-v0")
    parser.add_argument("--demos", type=int, nargs="+", default=[5, 7, 9, 15, 30, 60])
    parser.add_argument("--updates", type=int, default=1200)
    parser.add_argument("--base-seed", type=int, default=1000, help="of demonstrations and fine-tuning")
    parser.add_argument("--eval-initial-states", type=int, default=50)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    settings = {"base_seed": args.base_seed, "eval_initial_states": args.eval_initial_states}
    name = args.env.removeprefix("LIBERO/").removesuffix("-v0").replace("/", "_").replace(":", "_")
    points = []
    for demos in args.demos:
        folder = args.out / f"{name}-{demos}-demos-{args.updates}-updates-seed-{args.base_seed}"
        points.append(point(args.env, demos, args.updates, folder, settings))
        (args.out / f"{name}.json").write_text(json.dumps(points, indent=1) + "\n")
    plot(points, args.out / f"{name}.png")
    print(table(points))


if __name__ == "__main__":
    main()
