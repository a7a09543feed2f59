"""
Two studies with the same cells that differ in one thing, such as the reward: what it changes for each method, and the methods
against each other on the cells of both. Differences are paired start by start, with 95 % intervals over starts and over runs.

    python examples/benchmarks/two_studies.py docs/results/study_40k docs/results/study_40k_reward --task libero_object-8
"""

import argparse
from itertools import combinations
from pathlib import Path

from sb3_tgrpo.evaluation.protocol import Evaluation, paired_comparison
from sb3_tgrpo.study.methods import START
from sb3_tgrpo.study.tables import FEWEST_SEEDS

Runs = dict[int, Evaluation]  # by seed


def last_policies(folder: Path, task: str, mode: str) -> dict[str, Runs]:
    """Evaluations of a study's trained policies, by method."""
    found: dict[str, Runs] = {}
    for file in folder.glob(f"cells/{task}/*/seed_*/evaluations/after_{mode}/evaluation.json"):
        method, seed = file.parts[-5], file.parts[-4]
        if method != START:
            found.setdefault(method, {})[int(seed.removeprefix("seed_"))] = Evaluation.load(file)
    return found


def points(before: list[Evaluation], after: list[Evaluation]) -> str:
    """How much more often the second succeed."""
    over_starts = paired_comparison(before, after)
    text = f"{round(100 * over_starts.difference):+d} {bounds(over_starts.interval)}"
    if len(before) < FEWEST_SEEDS:
        return text
    return f"{text}, runs {bounds(paired_comparison(before, after, unit='evaluation').interval)}"


def bounds(interval: tuple[float, float]) -> str:
    low, high = (round(100 * bound) for bound in interval)
    return f"[{low:+d}, {high:+d}]"


def pooled(runs: list[Evaluation]) -> str:
    return f"{sum(run.rate.successes for run in runs)}/{sum(run.rate.trials for run in runs)}"


def each(runs: list[Evaluation]) -> str:
    return f"{pooled(runs)} ({', '.join(str(run.rate.successes) for run in runs)})"


def table(first: dict[str, Runs], second: dict[str, Runs]) -> list[tuple[str, str, str, str]]:
    """
    Rows: a method, its successes in the first study and in the second, the difference in points. Then two methods, the
    successes of either on both studies' cells, and their difference.
    """
    rows: list[tuple[str, str, str, str]] = []
    compared: dict[str, list[int]] = {}
    for method in sorted(first.keys() & second.keys()):
        seeds = sorted(first[method].keys() & second[method].keys())
        ours, theirs = ([study[method][seed] for seed in seeds] for study in (first, second))
        if any(one.episodes == other.episodes for one, other in zip(ours, theirs, strict=True)):
            rows.append((f"{method}: the same cells in both", "", "", ""))  # copied; counted twice they would look like more
        elif seeds:
            rows.append((method, each(ours), each(theirs), points(ours, theirs)))
            compared[method] = seeds
    for one, other in combinations(compared, 2):
        seeds = [seed for seed in compared[one] if seed in compared[other]]
        if seeds:
            ours, theirs = ([study[name][seed] for study in (first, second) for seed in seeds] for name in (one, other))
            found = f"{one} {pooled(ours)}", f"{other} {pooled(theirs)}", points(theirs, ours)
            rows.append((f"{one} over {other}, both studies", *found))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path, help="folder of a study")
    parser.add_argument("second", type=Path, help="folder of the other")
    parser.add_argument("--task", required=True, help="such as libero_object-8")
    args = parser.parse_args()
    for mode in ("greedy", "T1"):
        rows = table(*(last_policies(folder, args.task, mode) for folder in (args.first, args.second)))
        if not rows:
            parser.error(f"{args.first} and {args.second} have no finished cell of {args.task} in common ({mode}).")
        print(f"| {mode} | {args.first.name} | {args.second.name} | difference, points |\n|---|---|---|---|")
        print("".join(f"| {' | '.join(row)} |\n" for row in rows))
