"""
The figures of the results pages, computed again from the unpacked record.

Of the record, only evaluations are read by the package, which reads older versions of its files. All else is plain JSON and
never today's configuration: the record keeps the field names of the versions that wrote it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from results import BASE, DOCS, read_rows

from sb3_tgrpo.evaluation.comparison import Rate, paired_comparison
from sb3_tgrpo.evaluation.results import Evaluation
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.study.methods import GRIDS
from sb3_tgrpo.study.runner import Cell, Study
from sb3_tgrpo.study.tables import FEWEST_SEEDS, markdown, plot, summarise
from sb3_tgrpo.train.config import TrainConfig

MODES = ("greedy", "T1")
Evaluations = list[Evaluation]
Row = tuple[str, str]
"""A label, and figures. The numbers of the figures stand in the page, in this order."""

STUDIES = {
    "new8": "study_40k_reward/cells/libero_object-8",
    "new6": "study_40k_6_reward/cells/libero_object-6",
    "old8": "study_40k/cells/libero_object-8",
    "old6": "study_40k_6/cells/libero_object-6",
    "long8": "study/cells/libero_object-8",
    "long6": "study_6/cells/libero_object-6",
    "cold6": "temperature_0.5/cells/libero_object-6",
    "alone8": "main_job/cells/libero_object-8",
}
"""Cells of a study's task. *new* and *old* have the corrected and the earlier reward, *long* has 80 thousand steps."""

# ---------------------------------------------------------------------- reading


@cache
def read_json(file: Path) -> Any:
    """Content of a JSON file, or of one with a JSON object per line."""
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


read_evaluation = cache(Evaluation.load)


class Record:
    """
    The unpacked record. An address names a method and its seeds: ``"old8 TGRPO 0 1"``, or all seeds: ``"old8 TGRPO"``.

    :param root: Folder that the archives are unpacked in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def cells(self, address: str) -> list[Path]:
        """Folders of the training runs, by seed."""
        study, method, *seeds = address.split()
        folder = self.root / STUDIES[study] / method
        found = seeds or sorted((cell.name.removeprefix("seed_") for cell in folder.glob("seed_*")), key=int)
        return [folder / f"seed_{seed}" for seed in found]

    def played(self, address: str, mode: str) -> Evaluations:
        """Evaluations of the last policies, one for each seed."""
        return [read_evaluation(cell / f"evaluations/after_{mode}/evaluation.json") for cell in self.cells(address)]

    def metrics(self, address: str) -> list[list[dict[str, Any]]]:
        """What training recorded, update by update, for each seed."""
        return [read_json(cell / "metrics.jsonl") for cell in self.cells(address)]

    def results(self, address: str) -> list[dict[str, Any]]:
        """Results of the training runs."""
        return [read_json(cell / "results.json") for cell in self.cells(address)]

    # ------------------------------------------------------------------ figures

    def counts(self, address: str, mode: str) -> str:
        """Successes, seed by seed."""
        return ", ".join(str(evaluation.rate.successes) for evaluation in self.played(address, mode))

    def won(self, address: str, mode: str) -> int:
        """Successes of all seeds together."""
        return pooled(self.played(address, mode)).successes

    def steps(self, address: str, mode: str) -> str:
        """Median number of steps of the successes."""
        episodes = (episode for evaluation in self.played(address, mode) for episode in evaluation.episodes)
        return f"{np.median([episode.length for episode in episodes if episode.success]):g}"

    def gain(self, before: str, after: str, mode: str) -> str:
        """Difference between two addresses, see :func:`points`."""
        return points(self.played(before, mode), self.played(after, mode))

    def gains(self, before: str, after: str) -> str:
        """Difference in both ways of playing."""
        return " | ".join(self.gain(before, after, mode) for mode in MODES)

    def compared(self, before: str, after: str) -> str:
        """Rate and difference in both ways of playing."""
        return " | ".join(f"{percent(pooled(self.played(after, m)))} | {self.gain(before, after, m)}" for m in MODES)

    def stuck(self, address: str) -> str:
        """Greedy failures whose highest stage is 2, and all greedy failures."""
        episodes = [episode for evaluation in self.played(address, "greedy") for episode in evaluation.episodes]
        stages = [episode.max_stage for episode in episodes if not episode.success]
        return f"{stages.count(2)} of {len(stages)}"

    def quarters(self, address: str) -> tuple[float, float]:
        """Success of the training episodes, means over the first and the last quarter of the updates, then over seeds."""
        parts = []
        for lines in self.metrics(address):
            rates = [line["rollout/member_success_rate"] for line in lines]
            size = max(1, len(rates) // 4)
            parts.append((np.mean(rates[:size]), np.mean(rates[-size:])))
        first, last = np.mean(parts, axis=0)
        return float(first), float(last)

    def no_spread(self, address: str) -> int:
        """Groups whose returns are all the same, in per cent, mean over all updates."""
        lines = [line for lines in self.metrics(address) for line in lines]
        return round(100 * float(np.mean([line["rollout/zero_std_groups"] for line in lines])))


# ---------------------------------------------------------------------- text


def pooled(evaluations: Iterable[Evaluation]) -> Rate:
    """All episodes together."""
    rates = [evaluation.rate for evaluation in evaluations]
    return Rate(sum(rate.successes for rate in rates), sum(rate.trials for rate in rates))


def percent(rate: Rate) -> str:
    """``185/250 = 74 % [68, 79]``."""
    low, high = (round(100 * bound) for bound in rate.interval())
    return f"{short(rate)} [{low}, {high}]"


def short(rate: Rate) -> str:
    """``185/250 = 74 %``."""
    return f"{rate.successes}/{rate.trials} = {round(100 * rate.rate)} %"


def points(before: Evaluations, after: Evaluations) -> str:
    """
    How much more often the second succeed, in points, with the interval over initial states and, of enough runs, over runs.

    :param before: Evaluations of the first.
    :param after: Evaluations of the second, from the same initial states.
    """
    paired = paired_comparison(before, after)
    intervals = [paired.interval]
    if len(before) >= FEWEST_SEEDS:
        intervals.append(paired_comparison(before, after, resample="evaluation").interval)
    bounds = (f"[{round(100 * low):+d}, {round(100 * high):+d}]" for low, high in intervals)
    return f"{round(100 * paired.difference):+d} {', runs '.join(bounds)}"


def share(value: float) -> str:
    """A mean share as in the pages, ``.63`` of 0.625, and 1 where it is that."""
    return f"{value + 1e-9:.2f}".removeprefix("0") if value < 0.995 else "1"


def by_update(lines: Iterable[Mapping[str, Any]]) -> str:
    """Success of the training episodes, update by update."""
    return " ".join(f"{line['rollout/member_success_rate']:.2f}".removeprefix("0") for line in lines).replace("1.00", "1")


def by_steps(runs: Iterable[Sequence[Mapping[str, Any]]], columns: int) -> str:
    """Success of the training episodes for each ten thousand steps, a mean over episodes, and how many there were."""
    bins: dict[int, list[tuple[float, int]]] = {}
    for line in (line for lines in runs for line in lines):
        episodes = (line["rollout/member_success_rate"], sum(line["furthest"]))
        bins.setdefault((line["timesteps"] - 1) // 10_000, []).append(episodes)
    totals = [(sum(rate * n for rate, n in found), sum(n for _, n in found)) for _, found in sorted(bins.items())]
    return " | ".join(f"{share(won / n)} ({n})" for won, n in totals[:columns])


def main_table(record: Record, study: str, methods: Sequence[str]) -> Iterator[Row]:
    """The base policy and each method, all seeds together, then seed by seed."""
    base = f"{study} {BASE}"
    yield base, f"{percent(pooled(record.played(f'{base} 0', 'greedy')))} | {percent(pooled(record.played(base, 'T1')))}"
    for method in methods:
        seeds = [cell.name.removeprefix("seed_") for cell in record.cells(f"{study} {method}")]
        yield f"{study} {method}", f"{len(seeds)} | {record.compared(' '.join([base, *seeds]), f'{study} {method}')}"
        yield f"{study} {method}, by seed", " | ".join(record.counts(f"{study} {method}", mode) for mode in MODES)
    yield f"{base}, by seed", record.counts(base, "T1")


# ---------------------------------------------------------------------- pages

GAINS = (
    ("new6 TGRPO", "new6 GRPO", "greedy"),
    ("old6 TGRPO 0 1", "new6 TGRPO 0 1", "greedy"),
    ("old8 TGRPO 0 1", "old8 TGRPO-kl_coef=0.04 0 1", "greedy"),
    ("old8 SFT 0", "old8 TGRPO-alpha=0.9", "greedy T1"),
    ("old8 TGRPO-alpha=0.1", "old8 TGRPO 0", "T1"),
    ("old8 TGRPO-alpha=0.5", "old8 TGRPO 0", "T1"),
    ("old8 TGRPO-payment=per_step", "old8 TGRPO 0", "greedy T1"),
    ("new8 TGRPO-payment=per_step", "new8 TGRPO 0", "greedy T1"),
    ("old8 TGRPO-N=2", "old8 TGRPO 0", "T1 greedy"),
    ("old6 PPO 0", "old6 PPO@3", "greedy T1"),
    ("old8 TGRPO-step", "new8 TGRPO-step", "T1 greedy"),
    ("old8 TGRPO 0", "old8 TGRPO-trajectory", "greedy T1"),
    ("old8 TGRPO 0 1", "old8 TGRPO-gamma_traj=0.995", "greedy T1"),
)
"""Differences that study.md has in its sentences: before, after, and the modes in the page's order."""

VARIANTS = (
    *((8, name) for name in ("kl_coef=0.04", "compare_ended=true", "gamma_traj=0.995", "N=4", "sparse", "success")),
    *((6, name) for name in ("kl_coef=0.04", "compare_ended=true", "gamma_traj=0.995")),
)
"""Settings of TGRPO that were changed alone, by task."""

ONE_SEED = {
    "alpha_1": ("TGRPO-trajectory", "TGRPO-alpha=0.1", "TGRPO", *(f"TGRPO-alpha={k}" for k in (0.5, 0.7, 0.9)), "TGRPO-step"),
    "N": ("TGRPO-N=2", "TGRPO-N=4", "TGRPO-N=6", "TGRPO"),
}
"""Tables of the first seed's successes, method by method."""


def study_page(record: Record) -> Iterator[Row]:
    """Figures of study.md."""
    r = record
    for task in (8, 6):
        yield from main_table(r, f"new{task}", ("PPO", "GRPO", "TGRPO"))
        for method, other in (("PPO", "TGRPO"), ("PPO", "GRPO"), ("TGRPO", "GRPO")):
            yield f"{method} over {other}, task {task}", f"5 | {r.gains(f'new{task} {other}', f'new{task} {method}')}"
        for method in ("PPO", "TGRPO"):
            old = f"old{task} {method}"
            yield f"{old}, by seed", " | ".join(r.counts(old, mode) for mode in MODES)
            counted = (
                f"{r.won(old, mode)} | {r.won(f'new{task} {method}', mode)} | {r.gain(old, f'new{task} {method}', mode)}"
                for mode in MODES
            )
            yield f"{method}, task {task}, corrected over before", " | ".join(counted)
        both = []
        for mode in MODES:
            ppo, tgrpo = (r.played(f"old{task} {m}", mode) + r.played(f"new{task} {m}", mode) for m in ("PPO", "TGRPO"))
            both.append(f"{pooled(ppo).successes}; {pooled(tgrpo).successes} | {points(tgrpo, ppo)}")
        yield f"PPO over TGRPO, task {task}, both rewards", " | ".join(both)
    for before, after, modes in GAINS:
        yield f"{after} over {before}, {modes}", ", ".join(r.gain(before, after, mode) for mode in modes.split())
    for task, name in VARIANTS:
        with_it = f"old{task} TGRPO-{name}"
        without = " ".join([f"old{task} TGRPO", *(cell.name.removeprefix("seed_") for cell in r.cells(with_it))])
        for mode in MODES:
            text = f"{r.counts(with_it, mode)}; {r.counts(without, mode)} | {r.gain(without, with_it, mode)}"
            yield f"{with_it}, {mode}", text
    for mode in MODES:
        gain = r.gain("old8 TGRPO 2 3 4", "old8 TGRPO-kl_coef=0.04 2 3 4", mode)
        yield f"kl_coef=0.04, seeds 2 to 4, {mode}", f"2 to 4 alone | | | {gain}"
        for title, methods in ONE_SEED.items():
            yield f"{title}, {mode}", " | ".join(r.counts(f"old8 {method} 0", mode) for method in methods)
    three, five = (r.gain(f"old8 GRPO {seeds}", f"old8 TGRPO {seeds}", "T1") for seeds in ("0 1 2", "0 1 2 3 4"))
    yield "TGRPO over GRPO, task 8, sampled, three seeds", three.partition(", runs")[0]
    yield "TGRPO over GRPO, task 8, sampled, five seeds", five.partition(", runs")[0]
    two, five = (r.gain(f"old6 SFT {seeds}", f"old6 PPO {seeds}", "T1") for seeds in ("0 1", "0 1 2 3 4"))
    yield "PPO over SFT, task 6, sampled, two and five seeds", f"{two} | {five.split()[0]}"
    corrected, before = (r.gain(f"{study} TGRPO", f"{study} GRPO", "greedy") for study in ("new6", "old6"))
    yield "GRPO over TGRPO, task 6, greedy, corrected and before", f"{corrected} | {before.split()[0]}"
    steps = (r.steps(f"old8 {method} 0", "T1") for method in ("TGRPO-success", "TGRPO"))
    yield "steps of a success, sampled, with stop_on=success and without", " | ".join(steps)
    yield from payment_and_rates(r)
    yield from ablation(r)
    yield from baselines(r)
    yield from standing_still(r)


def payment_and_rates(r: Record) -> Iterator[Row]:
    """How the reward is paid, groups without spread, learning rates."""
    for method in (BASE, "TGRPO-payment=per_step", "TGRPO", "TGRPO-payment=potential"):
        played = (f"{r.counts(f'old8 {method} 0', mode)}/50 | {r.steps(f'old8 {method} 0', mode)}" for mode in MODES)
        training = [] if method == BASE else map(share, r.quarters(f"old8 {method} 0"))
        yield f"payment, {method}", " | ".join([*played, *training])
    per_step = "new8 TGRPO-payment=per_step"
    played = (f"{r.counts(per_step, mode)}/50, {r.steps(per_step, mode)}" for mode in MODES)
    latched = (r.counts("new8 TGRPO 0", mode) for mode in MODES)
    text = ", ".join([*played, *map(share, r.quarters(per_step)), *latched])
    yield "payment, per_step, corrected reward, then latched", text
    yield "groups without spread, N = 2 and 8", f"{r.no_spread('old8 TGRPO-N=2 0')} % {r.no_spread('old8 TGRPO 0')} %"
    tgrpo = [sorted({r.no_spread(f"{k}{task} TGRPO") for k in ("new", "old")}) for task in (8, 6)]
    text = " | ".join(f"{' or '.join(map(str, found))} % on task {task}" for found, task in zip(tgrpo, (8, 6), strict=True))
    yield "groups without spread", f"{text} (GRPO {r.no_spread('new8 GRPO')} and {r.no_spread('new6 GRPO')} %)"
    for rate in ("@0.3", "", "@3"):
        cells = (f"old8 {method}{rate} 0" for method in ("PPO", "GRPO", "TGRPO"))
        yield f"learning rate {rate or '@1'}", " | ".join(r.counts(cell, mode) for cell in cells for mode in MODES)


def ablation(r: Record) -> Iterator[Row]:
    """One level alone."""
    seeds = "0 1 2"
    yield BASE, percent(pooled(r.played(f"new8 {BASE} {seeds}", "T1")))
    for method in ("TGRPO-step", "TGRPO"):
        yield f"ablation, {method}", r.compared(f"new8 {BASE} {seeds}", f"new8 {method} {seeds}")
        yield f"ablation, {method}, by seed", " | ".join(r.counts(f"new8 {method} {seeds}", mode) for mode in MODES)
    yield "TGRPO over the step level", r.gains("new8 TGRPO-step", f"new8 TGRPO {seeds}")
    for label, before, after in (
        ("step level over SFT, reward before", f"old8 {BASE} {seeds}", "old8 TGRPO-step"),
        ("TGRPO over the step level, reward before", "old8 TGRPO-step", f"old8 TGRPO {seeds}"),
    ):
        (first, over_runs), (second, over_runs_2) = (r.gain(before, after, mode).split(", runs ") for mode in MODES)
        if label.startswith("TGRPO"):
            first, second = first.split()[0], second.split()[0]
        yield label, f"{first}, {second}, runs {over_runs} and {over_runs_2}"
    trajectory = (r.counts(f"old8 {m} 0", mode) for m in ("TGRPO-trajectory", "TGRPO") for mode in MODES)
    yield "trajectory level, then TGRPO", ", ".join(trajectory)
    (step,) = r.metrics("old8 TGRPO-step 0")
    rates = [line["rollout/member_success_rate"] for line in step]
    yield "step level, seed 0, reward before, training", f"{share(np.mean(rates[:3]))} ... {share(np.mean(rates[-5:]))}"


def baselines(r: Record) -> Iterator[Row]:
    """The paper's baselines, and learners that are no VLA."""
    for method in ("TPO", "DPO", "TGRPO"):
        yield f"baselines, {method}", f"1 | {r.compared(f'old8 {BASE} 0', f'old8 {method} 0')}"
    yield BASE, percent(pooled(r.played(f"old8 {BASE} 0", "T1")))
    (dpo,) = r.metrics("old8 DPO 0")
    yield "DPO, training", f"{by_update(dpo[:4])} ... {by_update(dpo[-3:])}"
    reached = []
    for method in ("RecurrentPPO", "TRPO"):
        (lines,) = r.metrics(f"old8 {method} 0")
        progress = [line["rollout/progress"] for line in lines]
        ends = ", ".join(share(float(np.mean(part))) for part in (progress[:3], progress[-3:]))
        yield method, " | ".join([*(f"{r.counts(f'old8 {method}', mode)}/50" for mode in MODES), ends])
        for mode in MODES:
            reached.append(sum((e.max_stage or 0) >= 1 for e in r.played(f"old8 {method}", mode)[0].episodes))
    yield "reach the object", "{} of 50 and {}; {} and {}".format(*reached)


def standing_still(r: Record) -> Iterator[Row]:
    """Why greedy play stays behind, and what was tried against it."""
    for reward, addresses in (
        ("corrected", ("new6 TGRPO", "new6 GRPO", "new6 PPO")),
        ("before", ("old6 TGRPO", "old6 PPO", "old6 TGRPO-gamma_traj=0.995")),
    ):
        yield f"greedy failures at stage 2, {reward}", " | ".join(map(r.stuck, addresses))
    stuck, failed = r.stuck(f"new6 {BASE} 0").split(" of ")
    yield "greedy failures of the base policy", f"{failed} failures it is {stuck}"
    two, zero, base = (r.won(f"cold6 {cell}", "T0.5") for cell in ("TGRPO 2", "TGRPO 0", f"{BASE} 0"))
    ends = (r.counts("old6 TGRPO 2", mode) for mode in MODES)
    yield "T = 0.5, seed 2", f"{two} of 50, between the {' and the '.join(ends)}"
    ends = (r.counts("old6 TGRPO 0", mode) for mode in MODES)
    yield "T = 0.5, seed 0, then the base policy", f"{zero} | {' | '.join(ends)} sampled | {base}"
    cooled = read_json(r.root / "temperature_0.5/stopped/TGRPO-temperature=0.5/seed_0/metrics.jsonl")
    yield "training at T = 0.5", by_update(cooled)
    rates = (pooled(r.played(f"old8 {m} 0 1", mode)).rate for mode in MODES for m in ("TGRPO-N=4", "TGRPO"))
    yield "N = 4 against TGRPO", "{} against {} %, {} against {} %".format(*(round(100 * rate) for rate in rates))
    last = (r.quarters(f"old8 {runs}")[1] for runs in ("TGRPO-gamma_traj=0.995 0 1", "TGRPO 0 1", "PPO 0 1 2"))
    yield "last quarter of training: a discount, none, PPO", " | ".join(map(share, last))


def earlier_page(r: Record) -> Iterator[Row]:
    """Figures of study_80k.md."""
    yield from main_table(r, "long8", ("PPO", "TGRPO", "TGRPO@3", "PPO@3"))
    yield "PPO over TGRPO", r.gains("long8 TGRPO 0 1", "long8 PPO")
    yield "TGRPO over TGRPO@3, greedy", r.gain("long8 TGRPO@3", "long8 TGRPO", "greedy")
    yield from main_table(r, "long6", ("TGRPO",))


def job_table(r: Record, study: str, method: str) -> Iterator[Row]:
    """Each seed of a training run before and after, then all."""
    results = r.results(f"{study} {method}")
    for seed, result in enumerate(results):
        base, run = f"{study} {BASE} {seed}", f"{study} {method} {seed}"
        row = [f"{seed} | {result['timesteps']:,} ({result['updates']})"]
        for mode in MODES:
            after = percent(pooled(r.played(run, mode)))
            row.append(f"{r.counts(base, mode)}/50 | {after} % | {r.gain(base, run, mode)}")
        yield run, " | ".join(row)
    steps, updates = (sum(result[name] for result in results) for name in ("timesteps", "updates"))
    yield f"{study} {method}, all", f"{steps:,} steps ({updates} updates)"
    for mode in MODES:
        base, run = f"{study} {BASE}", f"{study} {method}"
        before = pooled(r.played(f"{base} 0" if mode == "greedy" else base, mode))
        yield f"{run}, {mode}", f"{short(before)} | {short(pooled(r.played(run, mode)))} | {r.gain(base, run, mode)}"
        later = (pooled(r.played(f"{name} 2 3 4", mode)) for name in (base, run))
        if method == "TGRPO":
            yield f"{run}, seeds 2 to 4, {mode}", " to ".join(f"{rate.successes}/{rate.trials}" for rate in later)


def from_report(result: Mapping[str, Any], mode: str) -> tuple[Evaluations, Evaluations]:
    """
    Evaluations before and after a run of which the report alone was kept: it has the highest stage of each episode, in the
    order of the stored initial states, and success is the last stage.
    """
    made = []
    for when in ("before", "after"):
        record = result["modes"][mode][when]
        won = [stage == record["n_stages"] for stage in record["furthest"]]
        if sum(won) != record["successes"]:
            raise ValueError(f"A report has {record['successes']} successes and {sum(won)} episodes at the last stage.")
        rest = {"task": "task", "seed": 0, "length": 0, "reward": 0.0}
        episodes = [{**rest, "init_state_id": k, "success": success} for k, success in enumerate(won)]
        evaluation = {"policy": "policy", "env_ids": ["task"], "deterministic": mode == "greedy", "temperature": None}
        made.append([Evaluation.from_dict({**evaluation, "assets": None, "protocol": {}, "episodes": episodes})])
    return made[0], made[1]


def job_page(r: Record) -> Iterator[Row]:
    """Figures of main_job.md."""
    for study, method in (("new8", "TGRPO"), ("long8", "TGRPO"), ("long8", "TGRPO@3")):
        yield from job_table(r, study, method)
    for method in ("TGRPO", "TGRPO@3"):
        for seed, lines in enumerate(r.metrics(f"long8 {method}")):
            yield f"long8 {method} {seed}, training", f"{seed} | {by_update(lines)}"
    for runs in ("old8 TGRPO", "old8 TGRPO 2 3 4"):
        yield f"reward before, {runs}", " and ".join(str(r.won(runs, mode)) for mode in MODES)
    for mode in MODES:
        yield f"reward before, {mode}, by seed", r.counts("old8 TGRPO", mode)
    gained = (r.gain("old8 SFT", "old8 TGRPO", mode).split()[0] for mode in MODES)
    yield "reward before, gained", " and ".join(gained)
    yield "1e-4 over 3e-4", r.gains("long8 TGRPO@3", "long8 TGRPO")
    replaced = []
    for cell in ("alone8 TGRPO 0", "alone8 TGRPO@3 1"):
        (result,) = r.results(cell)
        for name, mode in zip(("greedy", "T=1"), MODES, strict=True):
            before, after = from_report(result, name)
            text = " | ".join(f"{found[0].rate.successes}/50" for found in (before, after))
            yield f"{cell}, {mode}", f"{text} | {points(before, after)}"
            if cell == "alone8 TGRPO@3 1":
                others = r.played("long8 TGRPO@3 0 2 3 4", mode)
                gain = pooled([*after, *others]).rate - pooled(r.played(f"long8 {BASE}", mode)).rate
                replaced.append(f"{round(100 * gain):+d}")
    yield "3e-4, pooled with seed 1's first run", " and ".join(replaced)
    (scratch,) = r.results("alone8 TGRPO 0")
    yield "from scratch, steps", f"{scratch['timesteps']:,} steps in {scratch['updates']} updates"
    yield "from scratch, training", by_update(r.metrics("alone8 TGRPO 0")[0])
    stopped = [read_json(r.root / f"main_job/stopped/TGRPO-batch_size=512/seed_{k}/metrics.jsonl") for k in range(2)]
    for label, runs_lines, columns in (
        ("8 groups, 512", r.metrics("long8 TGRPO"), 8),
        ("2 groups, 256", r.metrics("old8 TGRPO"), 4),
        ("2 groups, 512", stopped, 2),
        ("PPO", r.metrics("long8 PPO"), 8),
    ):
        yield f"training by steps, {label}", by_steps(runs_lines, columns)
    report = read_json(r.root / "main_job/reports/signal.json")["report"]
    for name, values in report["variants"].items():
        signal = f"{values['share']:+.4f} +- {values['standard_error']:.4f}"
        yield f"signal, {name}", f"{signal} | {values['half_cosine']:+.2f}"
    yield "signal, success", f"{round(100 * report['success_rate'])} %, {round(100 * report['mixed_groups'])} %"


def readme(r: Record) -> Iterator[Row]:
    """Figures of README.md's table."""
    for study in ("new8", "new6"):
        for mode in MODES:
            base = pooled(r.played(f"{study} {BASE} 0" if mode == "greedy" else f"{study} {BASE}", mode))
            yield f"{study} {BASE}, {mode}", f"{round(100 * base.rate)} %"
            for method in ("TGRPO", "GRPO", "PPO"):
                rate = pooled(r.played(f"{study} {method}", mode)).rate
                gain = r.gain(f"{study} {BASE}", f"{study} {method}", mode).partition(", runs")[0]
                yield f"{study} {method}, {mode}", f"{round(100 * rate)} %, {gain}"


PAGES: dict[str, Callable[[Record], Iterator[Row]]] = {
    "docs/results/study.md": study_page,
    "docs/results/study_80k.md": earlier_page,
    "docs/results/main_job.md": job_page,
    "README.md": readme,
}
COUNTED = {"main_job_not_kept": "main_job", "sft_tiny": "sft_tiny", "multi_task": "multi_task", "experts": "experts"}
"""Pages by studies of which ``runs.csv`` alone has the counts."""
Figures = dict[str, list[Row]]
"""Computed figures of each page."""


def counted(rows: Iterable[Mapping[str, str]]) -> Figures:
    """
    Rates and intervals of which the counts alone were kept.

    :param rows: Rows of ``runs.csv``.
    """
    figures: Figures = {}
    for row in (row for row in rows if row["study"] in COUNTED):
        rate = Rate(int(row["successes"]), int(row["episodes"]))
        label = f"{row['task']}, {row['method']}, seed {row['seed']}, {row['mode']}: {percent(rate)}"
        page = f"docs/results/{COUNTED[row['study']]}.md"
        figures.setdefault(page, []).append((label, f"{rate.successes}/{rate.trials}"))
    return figures


def computed(root: Path) -> Figures:
    """
    All figures.

    :param root: Folder that the archives are unpacked in.
    """
    figures = {page: list(rows(Record(root))) for page, rows in PAGES.items()}
    for page, rows in counted(read_rows()).items():
        figures.setdefault(page, []).extend(rows)
    return figures


# ---------------------------------------------------------------------- comparing with the pages


def normal(text: str) -> str:
    """A text without what differs in layout alone: bold type, plus signs, line breaks, and the digit of ``T = 1``."""
    return re.sub(r"\s+", " ", re.sub(r"[*+]", "", text.replace("T = 1", "sampled")))


def numbers_pattern(text: str) -> str:
    """
    A regular expression for the numbers of a text in their order, signs and all, with other words between them: pages may be
    written anew.

    :param text: Figures, after :func:`normal`.
    """
    numbers = re.findall(r"(?<![\w.])-?(?:\d[\d,]*\d|\d)?(?:\.\d+)?(?<=\d)", text)
    words = r"(?:[^\d-]|-(?![\d.])){0,60}"
    return r"(?<![\w.])" + words.join(rf"{re.escape(number)}(?![\d]|\.\d)" for number in numbers)


def compare(figures: Figures, root: Path = DOCS.parents[1]) -> list[str]:
    """
    Rows whose numbers a page does not have.

    :param figures: Computed figures.
    :param root: Folder that the paths of the pages begin in.
    """
    texts = {page: normal((root / page).read_text(encoding="utf-8")) for page in figures}
    return [
        f"{page}, {label}: {text}"
        for page, rows in figures.items()
        for label, text in rows
        if not re.search(numbers_pattern(normal(text)), texts[page])
    ]


def uncomputed(figures: Figures, root: Path = DOCS.parents[1]) -> list[str]:
    """
    Intervals and counts of the pages that no computed figure has.

    :param figures: Computed figures.
    :param root: Folder that the paths of the pages begin in.
    """
    found = []
    pattern = re.compile(r"\[-?\d+, -?\d+\]|\b\d+/(?:20|50|100|150|250|500)\b")
    known = {figure for rows in figures.values() for row in rows for figure in pattern.findall(normal(" | ".join(row)))}
    known |= {f"{row['successes']}/{row['episodes']}" for row in read_rows()}
    for page in figures:
        text = re.sub(r"(\d+) to (\d+) %", r"[\1, \2]", normal((root / page).read_text(encoding="utf-8")))
        found += [f"{page}: ... {text[max(m.start() - 60, 0) : m.end()]}" for m in pattern.finditer(text) if m[0] not in known]
    return found


def grid_tables(folder: Path) -> list[str]:
    """
    Write the table and the pictures of each grid of a study, computed from its episodes.

    :param folder: Folder of the study, unpacked.
    :return: Grids whose committed table has other figures.
    """
    different = []
    root = RunFolder(folder)
    for file in sorted(folder.glob("*/results.json")):
        results, record = read_json(file), read_json(file.with_name("study.json"))
        envs, methods = tuple(results["envs"]), tuple(results["modes"]["greedy"])
        config = TrainConfig()  # of today: nothing of the record's is parsed
        checkpoints = {env: path for env, path in record["checkpoints"].items() if path and env in envs}
        study = Study(results["grid"], config, envs, methods, tuple(results["seeds"]), checkpoints)
        modes = {}
        for mode in results["modes"]:
            name = mode.replace("=", "")
            found = {}
            for row in results["cells"]:
                cell = Cell(row["env"], row["method"], row["seed"], config, row["method"])
                found[cell] = read_evaluation(folder / row["folder"] / f"evaluations/after_{name}/evaluation.json")
            modes[mode] = summarise(found, study)
            file.with_name(f"{name}.png").write_bytes(plot(modes[mode], GRIDS[study.grid].axis, mode))
        cells = [{"reward": None, **row} for row in results["cells"]]  # the earliest records do not name the reward
        text = markdown({**results, "modes": modes, "cells": cells}, study, root)
        file.with_name("table.md").write_text(text, encoding="utf-8")
        committed = DOCS / folder.name / study.grid / "table.md"
        if committed.is_file() and _table_rows(text) != _table_rows(committed.read_text(encoding="utf-8")):
            different.append(f"{committed.relative_to(DOCS.parents[1])}: its tables differ from those computed")
    return different


def _table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


def write_figures(root: Path) -> int:
    """
    Compute and print the figures of the pages, write them beside the unpacked record, and compare them with the pages.

    :param root: Folder that the archives are unpacked in.
    :return: 1 where a page differs, else 0.
    """
    figures = computed(root)
    text = "\n".join(
        "\n".join([f"### {page}\n", *(f"| {label} | {numbers} |" for label, numbers in rows), ""])
        for page, rows in figures.items()
    )
    (root / "figures.md").write_text(text, encoding="utf-8")
    print(text)
    problems = [f"computed, not in the page: {line}" for line in compare(figures)]
    problems += [f"in the page, not computed: {line}" for line in uncomputed(figures)]
    for folder in sorted(path.parent.parent for path in root.glob("*/table1/results.json")):
        problems += grid_tables(folder)
    print("\n".join([*problems, ""]))
    total = sum(map(len, figures.values()))
    print(f"{total} rows of figures from {len(read_rows())} evaluations; differences from the pages: {len(problems)}.")
    return 1 if problems else 0
