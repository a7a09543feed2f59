"""
Studies: named grids of tasks, methods and seeds, each cell an ordinary run of the main job in a folder and process of its own.

All cells of a study start from the same checkpoint, have the same budget of environment steps that count, and are judged by
the same evaluation. Finished cells are kept, interrupted ones go on.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sb3_tgrpo.run_folder import RunFolder, differences, environment_record, flat, now
from sb3_tgrpo.study.methods import SETTINGS, START, TUNED_BY, MethodName, short_name
from sb3_tgrpo.study.view import RunningCell, StudyProgress, StudyView, seconds_left
from sb3_tgrpo.train.config import TrainConfig, check_used, shipped_start, unused_settings

CELLS = "cells"


# ---------------------------------------------------------------------- cells


@dataclass(frozen=True)
class Study:
    """
    What is to be run.

    :param grid: name of the grid.
    :param config: what all cells have in common.
    :param envs: Gymnasium ids.
    :param methods: see :func:`~sb3_tgrpo.study.methods.settings_of`.
    :param seeds: of training.
    :param checkpoints: start policy by Gymnasium id; others have the configuration's.
    :param overrides: settings by method, from tuning for instance; those of a method are also those of its variants.
    :param tuning: how they were found, for the record.
    :raises ValueError: on values that do not fit together.
    """

    grid: str
    config: TrainConfig
    envs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, values in (("tasks", self.envs), ("seeds", self.seeds), ("methods", self.methods)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be one or more different ones, got {', '.join(map(str, values)) or 'none'}.")
        if self.config.base_policy.from_scratch:
            raise ValueError(
                "A study starts all its cells from one checkpoint: make it first ('sb3-tgrpo sft', or 'sb3-tgrpo train "
                "--from-scratch', which leaves it in start/checkpoint), then pass --checkpoint."
            )
        for what, names, known in (
            ("checkpoints", self.checkpoints, self.envs),
            ("settings", self.overrides, self.settable),
        ):
            if foreign := sorted(set(names) - set(known)):
                raise ValueError(f"{what} are given for {', '.join(foreign)}, not part of this study: {', '.join(known)}.")

    @property
    def settable(self) -> tuple[str, ...]:
        """Methods that settings may be given to: those of the study, and those that they are variants of."""
        lineages = (name for method in self.methods for name in MethodName.of(method).lineage)
        return tuple(dict.fromkeys((START, "TGRPO", *self.methods, *lineages)))

    def checkpoint(self, env: str) -> str | None:
        """The start policy of a task, None for the one that ships."""
        return self.checkpoints.get(env, self.config.base_policy.checkpoint)

    def method_config(self, method: str, env: str, seed: int) -> TrainConfig:
        """
        The configuration of a cell.

        :raises ValueError: for an unknown method or setting, or one that all methods of a study have in common.
        """
        common = self.config.updated({"env": env, "seed": seed, "checkpoint": self.checkpoint(env)})
        # A variant changes what its method has in this study, so that one's settings come before the variant's: three times
        # its learning rate, for instance, or another kl_coef than it was given.
        name, config = MethodName.of(method), common
        for known in dict.fromkeys((*name.lineage, method)):
            config = config.updated(SETTINGS[known] if known in name.lineage else name.changed(config))
            check_used(self.overrides.get(known, {}), known, config)
            config = config.updated(self.overrides.get(known, {}))
        if changed := differences(flat(_in_common(common)), flat(_in_common(config))):
            raise ValueError(
                f"{method} changes what all methods of a study have in common ({'; '.join(changed)}): the same start, seeds, "
                "evaluation and budget, and the task but for reward and payment. Set it for all of them (--set NAME=VALUE, "
                "--checkpoint, --tasks, --seeds, --budget), or leave it out."
            )
        return config

    def cells(self) -> "list[Cell]":
        """All cells, those of the start policy first."""
        methods = [START, *(method for method in self.methods if method != START)]
        found = []
        for method in methods:
            for env in self.envs:
                for seed in self.seeds:
                    config = self.method_config(method, env, seed)
                    # alpha_1 = 0.3, for instance, may be what TGRPO has anyway: it is run once.
                    same = (name for name in MethodName.of(method).lineage if config == self.method_config(name, env, seed))
                    found.append(Cell(env, method, seed, config, next(same, method)))
        return found


def _in_common(config: TrainConfig) -> dict[str, Any]:
    """What no method may change: without it, a table would compare more than methods."""
    values = config.to_dict()
    task = {name: value for name, value in values["task"].items() if name not in ("reward", "payment")}
    budget = {"total_timesteps": values["algorithm"]["total_timesteps"]}
    return {"task": task, "algorithm": budget, **{name: values[name] for name in ("base_policy", "evaluation", "seed")}}


@dataclass(frozen=True)
class Cell:
    """
    One run of a study.

    :param env: Gymnasium id.
    :param method: its name in the table.
    :param seed: of training.
    :param config: everything else.
    :param place: name of the method whose folder it is in.
    """

    env: str
    method: str
    seed: int
    config: TrainConfig
    place: str

    @property
    def name(self) -> str:
        """Its folder in the study's."""
        return f"{CELLS}/{short_name(self.env)}/{self.place}/seed_{self.seed}"

    def __str__(self) -> str:
        return f"{self.place}, {short_name(self.env)}, seed {self.seed}"


# ---------------------------------------------------------------------- running


class StudyError(RuntimeError):
    """Cells that failed."""


def run_study(
    study: Study,
    folder: str | os.PathLike[str],
    *,
    workers: int = 1,
    command: str | None = None,
    view: StudyView | None = None,
) -> dict[str, Any]:
    """
    Run what is not finished, each cell in a process of its own, and write tables and plots.

    A cell that fails does not stop the others; what is finished is in the tables.

    :param study: what.
    :param folder: of this and other studies with the same start policies and budget, which then share cells.
    :param workers: cells at once.
    :param command: for the record.
    :param view: told of progress; None: plain lines on standard output.
    :return: the results, as in ``<grid>/results.json``.
    :raises ValueError: if the folder holds cells of other settings.
    :raises StudyError: if cells failed, after all others.
    """
    from sb3_tgrpo.study.tables import write_results

    if workers < 1:
        raise ValueError(f"workers={workers} must be at least 1.")
    cells = study.cells()
    warnings = check_tasks_and_policies(study)
    root = RunFolder(folder)
    with root.locked():
        check_cells(cells, root)
        _check_rewards(cells, root)
        _record(study, root, command)
        with view or StudyView() as shown:
            for warning in warnings:
                shown.print(warning)
            failed = _run(_unique(cells), study, root, workers, shown)
        results = write_results(study, root)
    if failed:
        lines = "\n".join(f"- {cell}: {reason}" for cell, reason in failed.items())
        raise StudyError(f"{len(failed)} of {len(_unique(cells))} cells failed; the same command tries them again.\n{lines}")
    return results


def write_tables(study: Study, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Write tables and plots of what is finished; runs nothing.

    :param study: what was to be run; overrides and tuning that it does not name are those that the folder's record has.
    :param folder: of :func:`run_study`.
    :return: the results, as in ``<grid>/results.json``.
    :raises ValueError: if the folder holds cells of other settings, or its record has other overrides or another tuning.
    """
    from sb3_tgrpo.study.tables import write_results

    root = RunFolder(folder)
    study = _as_recorded(study, root)
    check_cells(study.cells(), root)
    return write_results(study, root)


def _as_recorded(study: Study, root: RunFolder) -> Study:
    """The study with the overrides and the tuning that it was run with."""
    record = root.read(f"{study.grid}/study.json")
    if record is None:  # its cells may be those of another grid
        return study
    stored = record["overrides"]
    others = [
        f"settings of {method} are {stored.get(method, {})}, given are {dict(settings)}"
        for method, settings in study.overrides.items()
        if {**stored.get(method, {}), **settings} != stored.get(method, {})
    ]
    tuning = json.loads(json.dumps(study.tuning))  # factors are keys, which JSON has as text
    if tuning not in (None, record["tuning"]):
        others.append(f"tuning is {record['tuning']}, given is {tuning}")
    if others:
        raise ValueError(
            f"{root / study.grid / 'study.json'} has other settings than those given ({'; '.join(others)}): leave them out, "
            "tables are of what was run; or run the study with them."
        )
    overrides = {method: settings for method, settings in stored.items() if method in study.settable}
    return replace(study, overrides=overrides, tuning=record["tuning"])


def is_finished(cell: Cell, root: RunFolder) -> bool:
    """Whether a cell has its results."""
    return (root / cell.name / "results.json").is_file()


def _unique(cells: Sequence[Cell]) -> list[Cell]:
    return list({cell.name: cell for cell in cells}.values())


def check_tasks_and_policies(study: Study) -> list[str]:
    """
    Check that there are the tasks and the start policies, before any cell is run.

    :return: warnings, of start policies that have not seen their task.
    :raises ValueError: if there is no such start policy.
    :raises gymnasium.error.Error: if there is no such task.
    """
    from sb3_tgrpo.train.setup import check_task, task_mismatch_warning

    for env in study.envs:
        check_task(env)
    found = [task_mismatch_warning(env, study.checkpoint(env) or str(shipped_start())) for env in study.envs]
    return [warning for warning in found if warning]


def check_cells(cells: Sequence[Cell], root: RunFolder) -> None:
    """
    Check that what the folder holds is what was asked for.

    :param cells: finished, begun or neither.
    :param root: the studies' folder.
    :raises ValueError: if a cell was begun with other settings.
    """
    for cell in cells:
        _check(cell, root)


def _check(cell: Cell, root: RunFolder) -> None:
    from sb3_tgrpo.openvla.checkpoint import checkpoint_identity
    from sb3_tgrpo.train.job import SETUP_FILE, changed_settings, has_begun

    earlier = root.read(f"{cell.name}/config.json")
    if earlier is None or not has_begun(RunFolder(root / cell.name)):
        return
    changed = changed_settings(earlier, cell.config, root / cell.name / "config.json")
    if is_finished(cell, root):
        # PPO's cells stay true when the weight of the KL term, which it does not have, is another one; SFT's whatever trains.
        unused = {
            f"{section}.{name}" for section in ("algorithm", "baseline") for name in unused_settings(cell.config) - {"algo"}
        }
        changed = [text for text in changed if text.split(" ")[0] not in unused]
    if changed:
        raise ValueError(f"{root / cell.name} is of other settings ({'; '.join(changed)}): choose another folder with --out.")
    setup = root.read(f"{cell.name}/{SETUP_FILE}")
    checkpoint = cell.config.base_policy.checkpoint or str(shipped_start())
    # What is on the hub is compared when a cell runs; here it would have to be downloaded.
    if setup is not None and os.path.isdir(checkpoint) and checkpoint_identity(checkpoint) != setup["start"]:
        raise ValueError(
            f"{root / cell.name} started from another policy than {checkpoint} holds now: choose another folder with --out."
        )


def _check_rewards(cells: Sequence[Cell], root: RunFolder) -> None:
    """New cells must be paid as those that are there; what is there may be tabled whatever the package ships by now."""
    from sb3_tgrpo.train.job import SETUP_FILE
    from sb3_tgrpo.train.setup import is_libero, reward_program

    for cell in cells:
        played = (root.read(f"{cell.name}/{SETUP_FILE}") or {}).get("reward")
        if (
            played is not None
            and is_libero(cell.config.task.env)
            and played != getattr(reward_program(cell.config), "sha256", None)
        ):
            message = f"{root / cell.name} was paid by another version of the reward, {played[:12]}"
            raise ValueError(f"{message}: choose another folder with --out.")


def _record(study: Study, root: RunFolder, command: str | None) -> None:
    """Who, where and with what, a line per call: a study may be continued on another machine or with other versions."""
    record = root.read(f"{study.grid}/study.json") or {"calls": []}
    record |= {
        "grid": study.grid,
        "envs": list(study.envs),
        "methods": list(study.methods),
        "seeds": list(study.seeds),
        "budget": study.config.algorithm.total_timesteps,
        "checkpoints": {env: study.checkpoint(env) for env in study.envs},
        "overrides": {method: dict(settings) for method, settings in study.overrides.items()},
        "tuning": study.tuning,
        "config": study.config.to_dict(),
    }
    call = {"command": command, "at": now(), "commit": commit(), "hardware": hardware(), **environment_record()}
    record["calls"].append(call)
    root.write(f"{study.grid}/study.json", record)


def _run(cells: Sequence[Cell], study: Study, root: RunFolder, workers: int, view: StudyView) -> dict[Cell, str]:
    """
    :return: cells that failed, with the reason.
    """
    waiting = [cell for cell in cells if not is_finished(cell, root)]
    if len(waiting) < len(cells):
        view.print(f"{len(cells) - len(waiting)} of {len(cells)} cells are finished.")
    running: dict[Cell, tuple[subprocess.Popen[bytes], float]] = {}
    failed: dict[Cell, str] = {}
    taken: list[float] = []
    try:
        while waiting or running:
            for cell in list(waiting):
                needs = _needs(cell, study)
                if needs is not None and any(needs.name == other.name for other in failed):
                    waiting.remove(cell)
                    failed[cell] = "the start policy could not be evaluated"
                elif len(running) < workers and (needs is None or is_finished(needs, root)):
                    waiting.remove(cell)
                    running[cell] = _start(cell, needs, root, workers), time.perf_counter()
                    view.print(f"{cell}: {'goes on' if root.read(f'{cell.name}/run.json') else 'begins'}")
            for cell, (process, started) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[cell]
                minutes = (time.perf_counter() - started) / 60
                done = len(cells) - len(waiting) - len(running)
                if process.returncode == 0 and is_finished(cell, root):
                    view.print(f"[{done}/{len(cells)}] {cell}: {_in_short(cell, root)} ({minutes:.1f} min)")
                    if cell.place != START:  # the start policy is only evaluated, which says nothing of the others
                        taken.append(60 * minutes)
                else:
                    reason = _last_line(cell, root) or "it said nothing"
                    failed[cell] = f"exit status {process.returncode}, see {root / cell.name / 'log.txt'}: {reason}"
                    view.print(f"[{done}/{len(cells)}] {cell} failed: {failed[cell]}")
            view.refresh(_progress(cells, waiting, running, taken, root, workers))
            time.sleep(0.2)
    finally:
        for process, _ in running.values():
            _end(process)
    return failed


def _progress(
    cells: Sequence[Cell],
    waiting: Sequence[Cell],
    running: Mapping[Cell, tuple["subprocess.Popen[bytes]", float]],
    taken: Sequence[float],
    root: RunFolder,
    workers: int,
) -> StudyProgress:
    now = time.perf_counter()
    rows = [RunningCell(str(cell), now - started, _last_line(cell, root)) for cell, (_, started) in running.items()]
    to_come = sum(cell.place != START for cell in waiting)
    left = seconds_left(taken, [row.seconds for row in rows], to_come, workers)
    return StudyProgress(len(cells) - len(waiting) - len(running), len(cells), rows, left)


def _needs(cell: Cell, study: Study) -> Cell | None:
    """The cell whose evaluations of the start policy this one takes over."""
    if cell.place == START and cell.seed == study.seeds[0]:
        return None
    seed = study.seeds[0] if cell.place == START else cell.seed
    return Cell(cell.env, START, seed, study.method_config(START, cell.env, seed), START)


def _start(cell: Cell, needs: Cell | None, root: RunFolder, workers: int) -> "subprocess.Popen[bytes]":
    config = cell.config
    if workers > 1 and config.update_threads is None:
        config = replace(config, update_threads=1)  # the cores are the other cells'
    folder = root / cell.name
    folder.mkdir(parents=True, exist_ok=True)
    if needs is not None:
        _take_over(root / needs.name, folder, needs, cell)
    root.write(f"{cell.name}/cell.json", config.to_dict())
    with open(folder / "log.txt", "ab") as log:
        # Its standard input stays open for as long as this process lives: see study_cell.
        return subprocess.Popen(
            [sys.executable, "-m", "sb3_tgrpo.study.cell", str(folder)],
            stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip


def _take_over(source: Path, target: Path, needs: Cell, cell: Cell) -> None:
    """
    Copy evaluations of the start policy that would come out the same. Not where the reward is another one: successes are
    the same, the episodes' rewards and stages are not.
    """
    from sb3_tgrpo.train.job import SETUP_FILE

    if needs.config.task != cell.config.task:
        return
    played, mine = RunFolder(source).read(SETUP_FILE), RunFolder(target)
    if played is not None and mine.read(SETUP_FILE) is None:
        mine.write(SETUP_FILE, played)  # the cell itself then checks that it starts from the policy that was evaluated
    for place in (source / "evaluations").glob("before_*"):
        sampled = place.name != "before_greedy" or cell.config.task.start_noise
        copy = target / "evaluations" / place.name
        if copy.exists() or (sampled and needs.seed != cell.seed):
            continue
        partial = copy.with_name(f".{copy.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(place, partial)
        os.replace(partial, copy)


def _end(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _in_short(cell: Cell, root: RunFolder) -> str:
    from sb3_tgrpo.train.report import result_lines

    return "; ".join(line.strip() for line in result_lines(root.read(f"{cell.name}/results.json")))


def _last_line(cell: Cell, root: RunFolder) -> str:
    lines = (root / cell.name / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


# ---------------------------------------------------------------------- tuning


def tuned_overrides(tuning_folder: str | os.PathLike[str], study: Study) -> Study:
    """
    The study with the learning rates that did best in a ``tuning`` study, recorded with it.

    :param tuning_folder: of the tuning study.
    :param study: what is to be run; a method without trials keeps its learning rate.
    :raises ValueError: if there is none, it is not finished, methods had unequal numbers of trials, tasks are the same, or it
        was not evaluated at T = 1.
    """
    unfinished = f"{tuning_folder} has no finished tuning: run 'sb3-tgrpo study tuning --out {tuning_folder}' first."
    if not os.path.isdir(tuning_folder):
        raise ValueError(unfinished)
    root = RunFolder(tuning_folder)
    results, record = root.read("tuning/results.json"), root.read("tuning/study.json")
    if results is None or record is None:
        raise ValueError(unfinished)
    if shared := sorted(set(results["envs"]) & set(study.envs)):
        raise ValueError(f"{tuning_folder} was tuned on {', '.join(shared)}, part of this study: tune on other tasks.")
    if TUNED_BY not in results["modes"]:
        raise ValueError(
            f"{tuning_folder} was evaluated by {', '.join(results['modes'])}, learning rates are chosen by {TUNED_BY}: tune "
            "with 1.0 among eval_temperatures."
        )
    trials: dict[str, dict[float, float]] = {}
    names = {}
    for name, row in results["modes"][TUNED_BY].items():
        method, _, factor = name.partition("@")
        if factor:
            trials.setdefault(method, {})[float(factor)] = row["mean"]
            names[method, float(factor)] = name
    if results["missing"] or len({len(scores) for scores in trials.values()}) != 1:
        raise ValueError(f"{tuning_folder} is not finished, or its methods had unequal numbers of trials.")
    best = {method: max(scores, key=lambda factor: (scores[factor], factor == 1.0)) for method, scores in trials.items()}
    # The rates that were tried: this study's own may be another multiple of them.
    tried = Study(
        "tuning", TrainConfig.from_dict(record["config"], str(root / "tuning/study.json")), tuple(record["envs"]),
        tuple(record["methods"]), tuple(record["seeds"]), overrides=record["overrides"],
    )  # fmt: skip
    rates = {
        method: tried.method_config(names[method, factor], tried.envs[0], tried.seeds[0]).algorithm.learning_rate
        for method, factor in best.items()
    }
    overrides = {name: dict(settings) for name, settings in study.overrides.items()}
    families = {MethodName.of(method).lineage[0] for method in study.methods}
    for method in sorted(set(best) & families):
        overrides[method] = {"learning_rate": rates[method], **overrides.get(method, {})}
    tuning = {
        "envs": results["envs"], "mode": TUNED_BY, "trials": trials, "chosen": best, "learning_rates": rates,
        "seeds": results["seeds"],
    }  # fmt: skip
    return replace(study, overrides=overrides, tuning=tuning)


# ---------------------------------------------------------------------- the record


def commit() -> str | None:
    """The commit of this package where it runs from a git checkout, with ``+`` after it if files differ; else None."""
    file = Path(__file__).resolve()
    try:
        # Installed into an environment inside somebody's repository, the package is not what is committed there.
        _git(file.parent, "ls-files", "--error-unmatch", file.name)
        head = _git(file.parent, "rev-parse", "HEAD")
        changed = _git(file.parent, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if changed else "")


def _git(folder: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def hardware() -> dict[str, Any]:
    """Processor, memory in GiB, graphics card."""
    import torch as th

    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        name = models[0] if models else name
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = th.cuda.get_device_name() if th.cuda.is_available() else None
    return {"cpu": name, "cpus": os.cpu_count(), "memory_gib": round(memory, 1), "gpu": gpu}
