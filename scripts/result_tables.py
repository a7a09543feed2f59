"""
The figures of the results pages, computed again from the unpacked record.

The record is read as plain JSON and never as today's configuration: it keeps the field names of the versions that wrote it,
while today's settings can be renamed. Names of the package are imported here only.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from results import DOCS, read_rows

from sb3_tgrpo.evaluation.comparison import Rate, paired_comparison
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.study.methods import GRIDS, START
from sb3_tgrpo.study.runner import Cell, Study
from sb3_tgrpo.study.tables import FEWEST_SEEDS, markdown, plot, summarise
from sb3_tgrpo.train.config import TrainConfig

MODES = ("greedy", "T1")

# ---------------------------------------------------------------------- reading


@cache
def read_json(file: Path) -> Any:
    """Content of a JSON file, or of one with a JSON object per line."""
    text = file.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


@cache
def read_evaluation(file: Path) -> Evaluation:
    """An evaluation with what comparing needs of its record."""
    record = read_json(file)
    episodes = [
        EvalEpisode(
            row["task"], row["init_state_id"], row["seed"], row["success"], row["length"], row["reward"],
            max_stage=row["max_stage"], repetition=row["repetition"],
        )
        for row in record["episodes"]
    ]  # fmt: skip
    protocol = {name: record["protocol"].get(name) for name in ("step_caps", "start_noise", "official_order")}
    return Evaluation(
        record["policy"],
        record["env_ids"],
        record["deterministic"],
        record["temperature"],
        record["assets"],
        protocol,
        episodes,
    )


@dataclass(frozen=True)
class Runs:
    """
    Runs of one study on one task.

    :param folder: Folder of the study, unpacked.
    :param task: Name of the task's folder, such as ``libero_object-8``.
    """

    folder: Path
    task: str

    def cell(self, method: str, seed: int) -> Path:
        """Folder of a run."""
        return self.folder / "cells" / self.task / method / f"seed_{seed}"

    def seeds(self, method: str) -> list[int]:
        """Seeds of a method."""
        folders = (self.folder / "cells" / self.task / method).glob("seed_*")
        return sorted(int(folder.name.removeprefix("seed_")) for folder in folders)

    def methods(self) -> list[str]:
        """Trained methods."""
        names = (folder.name for folder in (self.folder / "cells" / self.task).iterdir())
        return sorted(name for name in names if name != START)

    def played(self, method: str, mode: str, seeds: Iterable[int] | None = None) -> list[Evaluation]:
        """Evaluations of the last policies, one for each seed."""
        chosen = self.seeds(method) if seeds is None else seeds
        return [read_evaluation(self.cell(method, k) / f"evaluations/after_{mode}/evaluation.json") for k in chosen]

    def metrics(self, method: str, seed: int) -> list[dict[str, Any]]:
        """What training recorded, update by update."""
        found: list[dict[str, Any]] = read_json(self.cell(method, seed) / "metrics.jsonl")
        return found


# ---------------------------------------------------------------------- text


def percent(rate: Rate, after: str = "") -> str:
    """``185/250 = 74 % [68, 79]``."""
    low, high = (round(100 * bound) for bound in rate.interval())
    return f"{rate.successes}/{rate.trials} = {round(100 * rate.rate)} % [{low}, {high}]{after}"


def bounds(interval: Sequence[float]) -> str:
    """An interval in points."""
    low, high = (round(100 * bound) for bound in interval)
    return f"[{low:+d}, {high:+d}]"


def points(before: Sequence[Evaluation], after: Sequence[Evaluation], runs: str = "runs") -> str:
    """
    How much more often the second succeed, in points, with the interval over starts and, of enough runs, over runs.

    :param before: Evaluations of the first.
    :param after: Evaluations of the second, on the same starts.
    :param runs: Word for the second interval.
    """
    over_starts = paired_comparison(before, after)
    text = f"{round(100 * over_starts.difference):+d} {bounds(over_starts.interval)}"
    if len(before) < FEWEST_SEEDS:
        return text
    return f"{text}, {runs} {bounds(paired_comparison(before, after, unit='evaluation').interval)}"


def pooled(evaluations: Iterable[Evaluation]) -> Rate:
    """All episodes together."""
    rates = [evaluation.rate for evaluation in evaluations]
    return Rate(sum(rate.successes for rate in rates), sum(rate.trials for rate in rates))


def counts(evaluations: Iterable[Evaluation]) -> str:
    """Successes, seed by seed."""
    return ", ".join(str(evaluation.rate.successes) for evaluation in evaluations)


def steps_of_success(evaluations: Iterable[Evaluation]) -> str:
    """Median number of steps of the successes."""
    lengths = [episode.length for evaluation in evaluations for episode in evaluation.episodes if episode.success]
    return f"{np.median(lengths):g}"


def share(value: float) -> str:
    """A mean share as in the pages, ``.63`` of 0.625, and 1 where it is that."""
    return f"{value + 1e-9:.2f}".removeprefix("0") if value < 0.995 else "1"


# ---------------------------------------------------------------------- sections


@dataclass
class Section:
    """
    Figures of a page.

    :param page: Path of the page from the root of the repository.
    :param title: What they are of.
    :param rows: Rows of a table. The first cell is a label; all others together stand in the page as they are here.
    """

    page: str
    title: str
    rows: list[list[str]] = field(default_factory=list)

    def add(self, label: str, *figures: str) -> None:
        """Add a row."""
        self.rows.append([label, *figures])

    def __str__(self) -> str:
        return f"### {self.page}: {self.title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in self.rows)


def normal(text: str) -> str:
    """A text without what differs in layout alone: bold type, plus signs, line breaks, and the digit of ``T = 1``."""
    return re.sub(r"\s+", " ", re.sub(r"[*+]", "", text.replace("T = 1", "sampled")))


def main_table(section: Section, runs: Runs, methods: Sequence[str]) -> None:
    """Rows of a main table: the base policy and each method, by seeds, then methods against each other."""
    base = runs.seeds(START)
    sampled = runs.played(START, "T1")
    section.add(START, "-", percent(runs.played(START, "greedy", base[:1])[0].rate), "", percent(pooled(sampled)), "")
    for method in methods:
        seeds = runs.seeds(method)
        row = [str(len(seeds))]
        for mode in MODES:
            after = runs.played(method, mode)
            row += [percent(pooled(after)), points(runs.played(START, mode, seeds), after)]
        section.add(method, *row)
    for method in methods:
        for mode in MODES:
            section.add(f"{method}, {mode}, seed by seed", counts(runs.played(method, mode)))
    section.add(f"{START}, T1, seed by seed", counts(sampled))


def against(section: Section, runs: Runs, pairs: Sequence[tuple[str, str]]) -> None:
    """One method over another, on the seeds that both have."""
    for method, other in pairs:
        seeds = sorted(set(runs.seeds(method)) & set(runs.seeds(other)))
        row = [points(runs.played(other, mode, seeds), runs.played(method, mode, seeds)) for mode in MODES]
        section.add(f"{method} over {other}", str(len(seeds)), *row)


def variant(section: Section, runs: Runs, method: str) -> None:
    """TGRPO with and without a setting, on the same seeds."""
    chosen = runs.seeds(method)
    row = []
    for mode in MODES:
        with_it, without = runs.played(method, mode, chosen), runs.played("TGRPO", mode, chosen)
        row += [f"{counts(with_it)}; {counts(without)}", points(without, with_it)]
    section.add(f"{method} over TGRPO, seeds {', '.join(map(str, chosen))}", *row)


def difference(section: Section, label: str, before: Sequence[Evaluation], after: Sequence[Evaluation]) -> None:
    """One difference that a page has in a sentence: each of its intervals is a row, as the words between them vary."""
    text = points(before, after)
    for figure in re.findall(r"\[[^]]*\]", text):
        section.add(f"{label}: {text}", figure)


# ---------------------------------------------------------------------- pages


STUDY_PAGE = "docs/results/study.md"


class Studies:
    """
    The four studies of study.md: of tasks 8 and 6, paid by the reward before it was mended and by the one that ships.

    :param root: Folder that the archives are unpacked in.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.old8, self.new8 = (Runs(root / name, "libero_object-8") for name in ("study_40k", "study_40k_reward"))
        self.old6, self.new6 = (Runs(root / name, "libero_object-6") for name in ("study_40k_6", "study_40k_6_reward"))

    def sections(self) -> list[Section]:
        """All figures of the page."""
        return [
            *self.main(), self.before(), *self.settings(), self.alpha(), self.payment(), self.group_size(), self.rates(),
            self.ablation(), *self.baselines(), self.stages(), self.tried(), self.training(), self.mended(),
        ]  # fmt: skip

    def main(self) -> list[Section]:
        """The main tables."""
        sections: list[Section] = []
        for runs in (self.new8, self.new6):
            found = Section(STUDY_PAGE, f"main table, {runs.task}")
            sections.append(found)
            main_table(found, runs, ("PPO", "GRPO", "TGRPO"))
            against(found, runs, [("PPO", "TGRPO"), ("PPO", "GRPO"), ("TGRPO", "GRPO")])
        difference(found, "GRPO over TGRPO, greedy", self.new6.played("TGRPO", "greedy"), self.new6.played("GRPO", "greedy"))
        return sections

    def before(self) -> Section:
        """Five seeds with the reward before."""
        found = Section(STUDY_PAGE, "with the reward before")
        for runs in (self.old8, self.old6):
            for count in (3, 5) if runs is self.old8 else ():
                grpo, tgrpo = (runs.played(method, "T1", range(count)) for method in ("GRPO", "TGRPO"))
                found.add(f"TGRPO over GRPO, T1, {count} seeds", points(grpo, tgrpo).partition(", runs")[0])
            for method in ("PPO", "TGRPO"):
                for mode in MODES:
                    found.add(f"{method}, {mode}, {runs.task}, seed by seed", counts(runs.played(method, mode)))
        first = range(2)
        for count, after in ((2, " at T = 1 after two seeds"), (5, " after five")):
            gained = points(self.old6.played(START, "T1", range(count)), self.old6.played("PPO", "T1", range(count)))
            text = gained if count == 2 else gained.partition(" ")[0]
            found.add(f"PPO over {START}, libero_object-6, T1, {count} seeds: {gained}", text + after)
        grpo, tgrpo = (self.old6.played(method, "greedy") for method in ("GRPO", "TGRPO"))
        found.add(
            f"GRPO over TGRPO, greedy, libero_object-6: {points(tgrpo, grpo)}", "(6 with the reward before, 0 in the interval)"
        )
        two = (runs.played("TGRPO", "greedy", first) for runs in (self.old6, self.new6))
        difference(found, "TGRPO, greedy, mended over before, two seeds of libero_object-6", *two)
        return found

    def settings(self) -> list[Section]:
        """One setting changed at a time."""
        sections: list[Section] = []
        found = Section(STUDY_PAGE, "one setting changed at a time, libero_object-8")
        sections.append(found)
        variants = ("kl_coef=0.04", "compare_ended=true", "gamma_traj=0.995", "N=4", "sparse", "success")
        for name in variants:
            variant(found, self.old8, f"TGRPO-{name}")
        found.add(
            "steps of a success, T1, stop_on=success, then without", steps_of_success(self.old8.played("TGRPO-success", "T1"))
        )
        found.add("without", steps_of_success(self.old8.played("TGRPO", "T1", [0])))
        later = (2, 3, 4)
        row = [
            points(self.old8.played("TGRPO", mode, later), self.old8.played("TGRPO-kl_coef=0.04", mode, later))
            for mode in MODES
        ]
        found.add("TGRPO-kl_coef=0.04 over TGRPO, seeds 2 to 4", "2 to 4 alone", "", row[0], "", row[1])
        found = Section(STUDY_PAGE, "one setting changed at a time, libero_object-6")
        sections.append(found)
        for name in ("kl_coef=0.04", "compare_ended=true", "gamma_traj=0.995"):
            variant(found, self.old6, f"TGRPO-{name}")
        return sections

    def one_seed(self, title: str, runs: Runs, methods: Sequence[str]) -> Section:
        """Successes of the first seed, method by method."""
        found = Section(STUDY_PAGE, title)
        for mode in MODES:
            found.add(mode, *(counts(runs.played(method, mode, [0])) for method in methods))
        return found

    def alpha(self) -> Section:
        """Weights of the step level."""
        alphas = ("TGRPO-trajectory", "TGRPO-alpha=0.1", "TGRPO", *(f"TGRPO-alpha={k}" for k in (0.5, 0.7, 0.9)), "TGRPO-step")
        found = self.one_seed("alpha_1", self.old8, alphas)
        for mode in MODES:
            difference(
                found, f"0.9 over SFT, {mode}", self.old8.played(START, mode, [0]), self.old8.played("TGRPO-alpha=0.9", mode)
            )
        for alpha in ("0.1", "0.5"):
            difference(
                found,
                f"0.3 over {alpha}, T1",
                self.old8.played(f"TGRPO-alpha={alpha}", "T1"),
                self.old8.played("TGRPO", "T1", [0]),
            )
        return found

    def payment(self) -> Section:
        """How the reward is paid."""
        found = Section(STUDY_PAGE, "payment")
        for runs, methods in ((self.old8, ("TGRPO-payment=per_step", "TGRPO", "TGRPO-payment=potential")), (self.new8, ())):
            for method in methods:
                row = []
                for mode in MODES:
                    after = runs.played(method, mode, [0])
                    row += [f"{counts(after)}/50", steps_of_success(after)]
                found.add(method, *row, ", ".join(quarters(runs, method)))
            for mode in MODES:
                per_step = runs.played("TGRPO-payment=per_step", mode)
                difference(found, f"latched over per_step, {mode}", per_step, runs.played("TGRPO", mode, [0]))
        row = [
            f"{counts(self.old8.played(START, mode, [0]))}/50 | {steps_of_success(self.old8.played(START, mode, [0]))}"
            for mode in MODES
        ]
        found.add(START, *row)
        for mode, words in zip(MODES, ("greedily", "sampled"), strict=True):
            after = self.new8.played("TGRPO-payment=per_step", mode)
            found.add("per_step, mended", f"{counts(after)}/50 {words}, in {steps_of_success(after)}")
        found.add("per_step, mended, training", " and ".join(quarters(self.new8, "TGRPO-payment=per_step")))
        return found

    def group_size(self) -> Section:
        """Members of a group."""
        found = self.one_seed("N", self.old8, ("TGRPO-N=2", "TGRPO-N=4", "TGRPO-N=6", "TGRPO"))
        for mode in MODES:
            difference(found, f"8 over 2, {mode}", self.old8.played("TGRPO-N=2", mode), self.old8.played("TGRPO", mode, [0]))
        for method in ("TGRPO-N=2", "TGRPO"):
            found.add(f"groups without spread, {method}", f"{round(100 * no_spread(self.old8, method, [0]))} %")
        return found

    def rates(self) -> Section:
        """Learning rates."""
        found = Section(STUDY_PAGE, "learning rates")
        for rate in ("@0.3", "", "@3"):
            cells = (
                ", ".join(counts(self.old8.played(m + rate, mode, [0])) for mode in MODES) for m in ("PPO", "GRPO", "TGRPO")
            )
            found.add(f"learning rate {rate or '@1'}", *cells)
        for mode in MODES:
            difference(
                found,
                f"PPO@3 over PPO, libero_object-6, {mode}",
                self.old6.played("PPO", mode, [0]),
                self.old6.played("PPO@3", mode),
            )
        return found

    def ablation(self) -> Section:
        """One level alone."""
        found = Section(STUDY_PAGE, "ablation")
        seeds = range(3)
        found.add(START, percent(pooled(self.new8.played(START, "T1", seeds))))
        for method in ("TGRPO-step", "TGRPO"):
            row = []
            for mode in MODES:
                after = self.new8.played(method, mode, seeds)
                row += [percent(pooled(after)), points(self.new8.played(START, mode, seeds), after)]
                found.add(f"{method}, {mode}", counts(after))
            found.add(method, *row)
        row = [points(self.new8.played("TGRPO-step", mode), self.new8.played("TGRPO", mode, seeds)) for mode in MODES]
        found.add("TGRPO over the step level", "", row[0], "", row[1])
        for mode in MODES:
            step = self.old8.played("TGRPO-step", mode)
            difference(found, f"step level over SFT, before, {mode}", self.old8.played(START, mode, seeds), step)
            runs_alone = re.findall(r"runs (\[.*\])", points(step, self.old8.played("TGRPO", mode, seeds)))
            found.add(f"TGRPO over the step level, before, {mode}", *runs_alone)
            difference(found, f"step level, mended over before, {mode}", step, self.new8.played("TGRPO-step", mode))
            trajectory = self.old8.played("TGRPO-trajectory", mode)
            difference(found, f"trajectory level over TGRPO, {mode}", self.old8.played("TGRPO", mode, [0]), trajectory)
        return found

    def baselines(self) -> list[Section]:
        """The paper's baselines, and learners that are no VLA."""
        sections: list[Section] = []
        found = Section(STUDY_PAGE, "the paper's baselines")
        sections.append(found)
        for method in ("TPO", "DPO", "TGRPO"):
            row = ["1"]
            for mode in MODES:
                after = self.old8.played(method, mode, [0])
                row += [percent(pooled(after)), points(self.old8.played(START, mode, [0]), after)]
            found.add(method, *row)
        found.add(START, percent(self.old8.played(START, "T1", [0])[0].rate))
        found = Section(STUDY_PAGE, "learners that are no VLA")
        sections.append(found)
        for method in ("RecurrentPPO", "TRPO"):
            progress = [line["rollout/progress"] for line in self.old8.metrics(method, 0)]
            ends = ", ".join(share(float(np.mean(part))) for part in (progress[:3], progress[-3:]))
            found.add(method, *(f"{counts(self.old8.played(method, mode))}/50" for mode in MODES), ends)
            reached = [sum((e.max_stage or 0) >= 1 for e in self.old8.played(method, mode)[0].episodes) for mode in MODES]
            words = "{} of 50 greedily and {} sampled" if method == "RecurrentPPO" else "in {} and {}"
            found.add(f"{method} reaches the object", words.format(*reached))
        return sections

    def stages(self) -> Section:
        """Where greedy play fails."""
        found = Section(STUDY_PAGE, "why greedy play stays behind: greedy failures whose highest stage is 2")
        for label, runs, methods in (
            ("mended", self.new6, ("TGRPO", "GRPO", "PPO", START)),
            ("before", self.old6, ("TGRPO", "PPO")),
        ):
            for method in methods:
                stages = failures(runs.played(method, "greedy", [0] if method == START else None))
                text = {"TGRPO": "{} of TGRPO's {}", "GRPO": "{} of GRPO's {}", "PPO": "{} of PPO's {}"}
                before = {"TGRPO": "{} of {} for TGRPO", "PPO": "{} of {} for PPO"}
                words = (text if label == "mended" else before).get(method)
                if words:
                    found.add(f"{method}, {label}", words.format(stages.count(2), len(stages)))
                else:
                    found.add(f"{method}, {label}", f"{len(stages)} it is {stages.count(2)}")
        return found

    def tried(self) -> Section:
        """What was tried against it."""
        first = range(2)
        found = Section(STUDY_PAGE, "what was tried against standing still")
        stages = failures(self.old6.played("TGRPO-gamma_traj=0.995", "greedy"))
        found.add("a discount, before", f"{stages.count(2)} of the {len(stages)} with a discount")
        cold = self.root / "temperature_0.5/cells/libero_object-6"
        files = {
            f"{m} {s}": cold / m / f"seed_{s}/evaluations/after_T0.5/evaluation.json"
            for m, s in ((START, 0), ("TGRPO", 0), ("TGRPO", 2))
        }
        played = {name: read_evaluation(file).rate for name, file in files.items()}
        found.add("T = 0.5, TGRPO's seed 2", f"{played['TGRPO 2'].successes} of {played['TGRPO 2'].trials}")
        found.add("T = 0.5, TGRPO's seed 0", f"seed 0 has {played['TGRPO 0'].successes}")
        found.add("T = 0.5, SFT", f"the start has {played['SFT 0'].successes}")
        cooled = read_json(self.root / "temperature_0.5/stopped/TGRPO-temperature=0.5/seed_0/metrics.jsonl")
        found.add("training at T = 0.5, by update", success_by_update(cooled))
        found.add(
            "N = 4, greedy, then TGRPO",
            f"{rounded(self.old8, 'TGRPO-N=4', 'greedy')} against {rounded(self.old8, 'TGRPO', 'greedy', first)} % greedily",
        )
        found.add(
            "N = 4, T1, then TGRPO",
            f"{rounded(self.old8, 'TGRPO-N=4', 'T1')} against {rounded(self.old8, 'TGRPO', 'T1', first)} % sampled",
        )
        ways = (("TGRPO-gamma_traj=0.995", 2), ("TGRPO", 2), ("PPO", 3))
        last = [
            share(float(np.mean([quarter(self.old8, method, seed)[1] for seed in range(count)]))) for method, count in ways
        ]
        found.add("last quarter of training, with a discount, without", f"last quarter {last[0]}, without {last[1]}")
        found.add("last quarter of training, PPO", f"first three seeds {last[2]}")
        return found

    def training(self) -> Section:
        """Success and spread in training."""
        spread = [(runs, m) for m in ("TGRPO", "GRPO") for runs in (self.new8, self.old8, self.new6, self.old6)]
        found = Section(STUDY_PAGE, "groups without spread, of all lines")
        shares = {(runs, m): round(100 * no_spread(runs, m, runs.seeds(m))) for runs, m in spread}
        tgrpo = [sorted({shares[r, "TGRPO"] for r in pair}) for pair in ((self.new8, self.old8), (self.new6, self.old6))]
        found.add("TGRPO", f"{' or '.join(map(str, tgrpo[0]))} % on task 8 and {' or '.join(map(str, tgrpo[1]))} % on task 6")
        found.add("GRPO", f"(GRPO {shares[self.new8, 'GRPO']} and {shares[self.new6, 'GRPO']} %")
        step = [line["rollout/member_success_rate"] for line in self.old8.metrics("TGRPO-step", 0)]
        found.add(
            "step level, seed 0, before, training",
            f"{share(np.mean(step[:3]))} in the first three updates to {share(np.mean(step[-5:]))}",
        )
        found.add("DPO, training, first updates", success_by_update(self.old8.metrics("DPO", 0)[:4]))
        found.add("DPO, training, last updates", success_by_update(self.old8.metrics("DPO", 0)[-3:]))
        return found

    def mended(self) -> Section:
        """The reward before, and the mended one."""
        found = Section(STUDY_PAGE, "the reward before it was mended")
        for (before, mended), number in (((self.old8, self.new8), 8), ((self.old6, self.new6), 6)):
            both: dict[tuple[str, str], list[Evaluation]] = {}
            for method in ("PPO", "TGRPO"):
                row = []
                for mode in MODES:
                    firsts, seconds = before.played(method, mode), mended.played(method, mode)
                    row += [str(pooled(firsts).successes), str(pooled(seconds).successes), points(firsts, seconds)]
                    both[method, mode] = firsts + seconds
                found.add(f"{method}, task {number}", *row)
            row = []
            for mode in MODES:
                ppo, tgrpo = both["PPO", mode], both["TGRPO", mode]
                of = " of 500" if number == 8 and mode == "greedy" else ""
                row += [f"{pooled(ppo).successes}; {pooled(tgrpo).successes}{of}", points(tgrpo, ppo)]
            found.add(f"PPO over TGRPO, both, task {number}", *row)
        return found


def rounded(runs: Runs, method: str, mode: str, seeds: Iterable[int] | None = None) -> int:
    """Success rate in per cent."""
    return round(100 * pooled(runs.played(method, mode, seeds)).rate)


def failures(evaluations: Iterable[Evaluation]) -> list[int | None]:
    """Highest stages of the episodes that failed."""
    return [episode.max_stage for evaluation in evaluations for episode in evaluation.episodes if not episode.success]


def quarters(runs: Runs, method: str, seed: int = 0) -> tuple[str, str]:
    """Success of the training episodes, means over the first and the last quarter of the updates."""
    first, last = quarter(runs, method, seed)
    return share(first), share(last)


def quarter(runs: Runs, method: str, seed: int) -> tuple[float, float]:
    """Means over the first and the last quarter, as numbers."""
    rates = [line["rollout/member_success_rate"] for line in runs.metrics(method, seed)]
    part = max(1, len(rates) // 4)
    return float(np.mean(rates[:part])), float(np.mean(rates[-part:]))


def no_spread(runs: Runs, method: str, seeds: Iterable[int]) -> float:
    """Share of groups whose returns are all the same, mean over all updates."""
    return float(np.mean([line["rollout/zero_std_groups"] for seed in seeds for line in runs.metrics(method, seed)]))


def success_by_update(lines: Iterable[Mapping[str, Any]]) -> str:
    """Success of the training episodes, update by update."""
    return " ".join(f"{line['rollout/member_success_rate']:.2f}".removeprefix("0") for line in lines).replace("1.00", "1")


def earlier_page(root: Path) -> list[Section]:
    """Figures of study_80k.md."""
    page = "docs/results/study_80k.md"
    eight, six = Runs(root / "study", "libero_object-8"), Runs(root / "study_6", "libero_object-6")
    sections = [Section(page, "libero_object-8"), Section(page, "libero_object-6")]
    main_table(sections[0], eight, ("PPO", "TGRPO", "TGRPO@3", "PPO@3"))
    both = range(2)
    for mode in MODES:
        tgrpo, ppo = eight.played("TGRPO", mode, both), eight.played("PPO", mode)
        difference(sections[0], f"PPO over TGRPO, {mode}", tgrpo, ppo)
    difference(sections[0], "TGRPO over TGRPO@3, greedy", eight.played("TGRPO@3", "greedy"), eight.played("TGRPO", "greedy"))
    base = six.played(START, "T1")
    sections[1].add(START, "-", percent(six.played(START, "greedy", [0])[0].rate), "", percent(pooled(base)), "")
    row = ["2"]
    for mode in MODES:
        row += [percent(pooled(six.played("TGRPO", mode))), points(six.played(START, mode), six.played("TGRPO", mode))]
    sections[1].add("TGRPO", *row)
    sections[1].add("TGRPO, greedy", counts(six.played("TGRPO", "greedy")))
    pairs = zip(base, six.played("TGRPO", "T1"), strict=True)
    sections[1].add("TGRPO, T1", " and ".join(f"{a.rate.successes} to {b.rate.successes}" for a, b in pairs))
    return sections


def job_rows(section: Section, runs: Runs, method: str) -> None:
    """Rows of a table of the training job: each seed before and after, then all."""
    seeds = runs.seeds(method)
    results = [read_json(runs.cell(method, seed) / "results.json") for seed in seeds]
    for seed, result in zip(seeds, results, strict=True):
        row = [f"{result['timesteps']:,} ({result['updates']})"]
        for mode in MODES:
            before, after = runs.played(START, mode, [seed]), runs.played(method, mode, [seed])
            row += [f"{before[0].rate.successes}/50", percent(after[0].rate, " %"), points(before, after)]
        section.add(str(seed), *row)
    row = [f"{sum(r['timesteps'] for r in results):,} ({sum(r['updates'] for r in results)})"]
    for mode in MODES:
        before, after = runs.played(START, mode, seeds), runs.played(method, mode)
        start = before[0].rate if mode == "greedy" else pooled(before)
        for rate in (start, pooled(after)):
            row.append(f"{rate.successes}/{rate.trials} = {round(100 * rate.rate)} %")
        row.append(points(before, after, "over seeds"))
    section.add("all", *row)


def from_report(result: Mapping[str, Any], mode: str) -> tuple[list[Evaluation], list[Evaluation]]:
    """
    Evaluations before and after a run of which the report alone was kept: it has the highest stage of each episode, in the
    order of the stored starts, and success is the last stage.
    """
    made = []
    for when in ("before", "after"):
        record = result["modes"][mode][when]
        won = [stage == record["n_stages"] for stage in record["furthest"]]
        if sum(won) != record["successes"]:
            raise ValueError(f"A report has {record['successes']} successes and {sum(won)} episodes at the last stage.")
        episodes = [EvalEpisode("task", k, 0, success, 0, 0.0) for k, success in enumerate(won)]
        made.append([Evaluation("policy", ["task"], mode == "greedy", None, None, {}, episodes)])
    return made[0], made[1]


def job_page(root: Path) -> list[Section]:
    """Figures of main_job.md."""
    page = "docs/results/main_job.md"
    mended, before, eighty = (Runs(root / name, "libero_object-8") for name in ("study_40k_reward", "study_40k", "study"))
    alone = Runs(root / "main_job", "libero_object-8")
    sections = []
    tables = (("result", mended, "TGRPO"), ("eight groups an update", eighty, "TGRPO"), ("3e-4", eighty, "TGRPO@3"))
    for title, runs, method in tables:
        sections.append(Section(page, title))
        job_rows(sections[-1], runs, method)
        if runs is eighty:
            for seed in runs.seeds(method):
                sections[-1].add(str(seed), success_by_update(runs.metrics(method, seed)))
        later = (2, 3, 4)
        for mode in MODES if method == "TGRPO" else ():
            pairs = (pooled(runs.played(name, mode, later)) for name in (START, method))
            sections[-1].add(f"seeds 2 to 4, {mode}", " to ".join(f"{rate.successes}/{rate.trials}" for rate in pairs))
    found = Section(page, "other figures")
    sections.append(found)
    old = [str(pooled(before.played("TGRPO", mode)).successes) for mode in MODES]
    found.add("reward before", f"{old[0]} and {old[1]} of 250")
    seeds = [str(pooled(before.played("TGRPO", mode, (2, 3, 4))).successes) for mode in MODES]
    found.add("reward before, seeds 2 to 4", f"{seeds[0]} and {seeds[1]} with the reward before")
    gained = [points(before.played(START, mode), before.played("TGRPO", mode)).split(" ")[0] for mode in MODES]
    found.add("reward before, gained", f"{gained[0]} and {gained[1]}")
    for mode in MODES:
        three, one = eighty.played("TGRPO@3", mode), eighty.played("TGRPO", mode)
        difference(found, f"1e-4 over 3e-4, {mode}", three, one)
    for title, method, seed in (("from scratch", "TGRPO", 0), ("3e-4, seed 1, first", "TGRPO@3", 1)):
        result = read_json(alone.cell(method, seed) / "results.json")
        for name in ("greedy", "T=1"):
            pair = from_report(result, name)
            found.add(f"{title}, {name}", " to ".join(f"{p[0].rate.successes}/50" for p in pair) + f", {points(*pair)}")
        if seed == 0:
            found.add(f"{title}, steps", f"{result['timesteps']:,} steps in {result['updates']} updates")
    firsts = [from_report(read_json(alone.cell("TGRPO@3", 1) / "results.json"), name)[1] for name in ("greedy", "T=1")]
    replaced = [
        pooled([*first, *eighty.played("TGRPO@3", mode, (0, 2, 3, 4))]).rate - pooled(eighty.played(START, mode)).rate
        for mode, first in zip(MODES, firsts, strict=True)
    ]
    found.add("3e-4, pooled with seed 1's first run", " and ".join(f"{round(100 * gain):+d}" for gain in replaced))
    found.add("from scratch, by update", success_by_update(alone.metrics("TGRPO", 0)))
    stopped = [read_json(root / f"main_job/stopped/TGRPO-batch_size=512/seed_{k}/metrics.jsonl") for k in range(2)]
    lines = {
        "8 groups, 512": [eighty.metrics("TGRPO", k) for k in range(5)],
        "2 groups, 256": [before.metrics("TGRPO", k) for k in range(5)],
        "2 groups, 512, stopped at 20 thousand steps": stopped,
        "PPO": [eighty.metrics("PPO", k) for k in range(2)],
    }
    for label, metrics in lines.items():
        found.add(label, *by_steps(metrics)[: {"2 groups, 256": 4}.get(label, 2 if metrics is stopped else 8)])
    report = read_json(root / "main_job/reports/signal.json")["report"]
    for name, values in report["variants"].items():
        cell = f"{values['share']:+.4f} +- {values['standard_error']:.4f}"
        found.add(f"signal, {name}", cell, f"{values['half_cosine']:+.2f}")
    text = (
        f"{round(100 * report['success_rate'])} % of the members, {round(100 * report['mixed_groups'])} % of the groups mixed"
    )
    found.add("signal, success", text)
    return sections


def by_steps(metrics: Iterable[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Success of the training episodes for each ten thousand steps, a mean over episodes, and how many there were."""
    bins: dict[int, list[tuple[float, int]]] = {}
    for lines in metrics:
        for line in lines:
            bins.setdefault((line["timesteps"] - 1) // 10_000, []).append(
                (line["rollout/member_success_rate"], sum(line["furthest"]))
            )
    totals = [(sum(rate * n for rate, n in found), sum(n for _, n in found)) for _, found in sorted(bins.items())]
    return [f"{share(won / n)} ({n})" for won, n in totals]


def readme(root: Path) -> list[Section]:
    """Figures of README.md's table."""
    found = Section("README.md", "results")
    tasks = [Runs(root / "study_40k_reward", "libero_object-8"), Runs(root / "study_40k_6_reward", "libero_object-6")]
    for method in ("TGRPO", "GRPO", "PPO"):
        cells = []
        for runs in tasks:
            for mode in MODES:
                after = runs.played(method, mode)
                rate = pooled(after)
                over = points(runs.played(START, mode), after).partition(", runs")[0]
                cells.append(f"{rate.successes}/{rate.trials} = {round(100 * rate.rate)} %, {over}")
        found.add(method, *cells)
    base = [pooled(runs.played(START, mode, [0] if mode == "greedy" else None)) for runs in tasks for mode in MODES]
    found.add(START, *(f"{rate.successes}/{rate.trials} = {round(100 * rate.rate)} %" for rate in base))
    return [found]


PAGES: tuple[Callable[[Path], list[Section]], ...] = (lambda root: Studies(root).sections(), earlier_page, job_page, readme)


def counted(rows: Iterable[Mapping[str, str]]) -> list[Section]:
    """
    Rates and intervals of which the counts alone were kept, in ``runs.csv``.

    :param rows: Rows of the file.
    """
    pages = {name: f"docs/results/{name}.md" for name in ("sft_tiny", "multi_task", "experts")}
    pages["main_job_not_kept"] = "docs/results/main_job.md"
    sections = {study: Section(page, f"counts of {study}") for study, page in pages.items()}
    for row in rows:
        if row["study"] in sections:
            rate = Rate(int(row["successes"]), int(row["episodes"]))
            name = f"{row['task']}, {row['method']}, seed {row['seed']}, {row['mode']}: {percent(rate)}"
            sections[row["study"]].add(name, f"{rate.successes}/{rate.trials}")
    return list(sections.values())


# ---------------------------------------------------------------------- grids


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
            played = f"evaluations/after_{mode.replace('=', '')}/evaluation.json"
            found = {
                Cell(row["env"], row["method"], row["seed"], config, row["method"]): read_evaluation(
                    folder / row["folder"] / played
                )
                for row in results["cells"]
            }
            modes[mode] = summarise(found, study)
            (file.parent / f"{mode.replace('=', '')}.png").write_bytes(plot(modes[mode], GRIDS[study.grid].axis, mode))
        cells = [{"reward": None, **row} for row in results["cells"]]  # the earliest records do not name the reward
        text = markdown({**results, "modes": modes, "cells": cells}, study, root)
        file.with_name("table.md").write_text(text, encoding="utf-8")
        committed = DOCS / folder.name / study.grid / "table.md"
        if committed.is_file() and _table_rows(text) != _table_rows(committed.read_text(encoding="utf-8")):
            different.append(f"{committed.relative_to(DOCS.parents[1])}: its tables differ from those computed")
    return different


def _table_rows(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| ")]


# ---------------------------------------------------------------------- the command


def numbers_pattern(text: str) -> str:
    """
    A regular expression for the numbers of a text in their order, signs and all, with other words between them: pages may be
    written anew.

    :param text: Figures, after :func:`normal`.
    """
    numbers = re.findall(r"(?<![\w.])-?(?:\d[\d,]*\d|\d)?(?:\.\d+)?(?<=\d)", text)
    words = r"(?:[^\d-]|-(?![\d.])){0,60}"
    return r"(?<![\w.])" + words.join(rf"{re.escape(number)}(?![\d]|\.\d)" for number in numbers)


def compare(sections: Sequence[Section], docs: Path = DOCS) -> list[str]:
    """
    Rows whose numbers a page does not have.

    :param sections: Computed figures.
    :param docs: Folder of the results pages.
    """
    missing = []
    for section in sections:
        page = normal((docs.parents[1] / section.page).read_text(encoding="utf-8"))
        for row in section.rows:
            if not re.search(numbers_pattern(normal(" | ".join(row[1:]))), page):
                missing.append(f"{section.page}, {section.title}: {row[0]}: {' | '.join(row[1:])}")
    return missing


def uncomputed(sections: Sequence[Section], docs: Path = DOCS) -> list[str]:
    """
    Intervals and counts of the pages that no computed figure has.

    :param sections: Computed figures.
    :param docs: Folder of the results pages.
    """
    found = []
    pattern = re.compile(r"\[-?\d+, -?\d+\]|\b\d+/(?:20|50|100|150|250|500)\b")
    known = {figure for section in sections for row in section.rows for figure in pattern.findall(normal(" | ".join(row)))}
    known |= {f"{row['successes']}/{row['episodes']}" for row in read_rows(docs)}
    for page in dict.fromkeys(section.page for section in sections):
        text = normal((docs.parents[1] / page).read_text(encoding="utf-8"))
        text = re.sub(r"(\d+) to (\d+) %", r"[\1, \2]", text)
        found += [f"{page}: ... {text[max(m.start() - 60, 0) : m.end()]}" for m in pattern.finditer(text) if m[0] not in known]
    return found


def write_figures(root: Path) -> int:
    """
    Compute and print the figures of the pages, write them beside the unpacked record, and compare them with the pages.

    :param root: Folder that the archives are unpacked in.
    :return: 1 where a page differs, else 0.
    """
    rows = read_rows()
    sections = [*(section for page in PAGES for section in page(root)), *counted(rows)]
    text = "\n".join(map(str, sections))
    (root / "figures.md").write_text(text, encoding="utf-8")
    print(text)
    problems = [f"computed, not in the page: {line}" for line in compare(sections)]
    problems += [f"in the page, not computed: {line}" for line in uncomputed(sections)]
    for folder in sorted(path.parent.parent for path in root.glob("*/table1/results.json")):
        problems += grid_tables(folder)
    print("\n".join([*problems, ""]))
    computed = sum(len(section.rows) for section in sections)
    print(f"{computed} rows of figures from {len(rows)} evaluations; differences from the pages: {len(problems)}.")
    return 1 if problems else 0
