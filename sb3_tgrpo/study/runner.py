"""
Running a study: each cell is an ordinary training run in a folder and process of its own.

All cells of a study start from the same checkpoint, have the same budget of environment steps that count, and are judged by
the same evaluation. Finished cells are kept, interrupted ones go on.
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sb3_tgrpo.files import atomic_copytree
from sb3_tgrpo.run_folder import RunFolder, differences, environment_record, flat, now
from sb3_tgrpo.study.design import Cell, Study, is_finished
from sb3_tgrpo.study.methods import BASE
from sb3_tgrpo.study.view import RunningCell, StudyProgress, StudyView, seconds_left
from sb3_tgrpo.train.config import TrainConfig, shipped_base_policy, unused_settings


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

    :param study: Grid of runs to execute.
    :param folder: Folder of this and other studies with the same base policies and budget, which then share cells.
    :param workers: Cells at once.
    :param command: Command line, for the record.
    :param view: Display of the progress; None: plain lines on standard output.
    :return: The results, as in ``<grid>/results.json``.
    :raises ValueError: If the folder holds cells of other settings.
    :raises StudyError: If cells failed, after all others.
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
        with view or StudyView() as shown:
            for warning in warnings:
                shown.print(warning)
            _record(study, root, command, shown)
            failed = _Run(study, _unique(cells), root, workers, shown).finish()
        results = write_results(study, root)
    if failed:
        lines = "\n".join(f"- {cell}: {reason}" for cell, reason in failed.items())
        raise StudyError(f"{len(failed)} of {len(_unique(cells))} cells failed; the same command tries them again.\n{lines}")
    return results


def write_tables(study: Study, folder: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Write tables and plots of what is finished; runs nothing. Overrides and tuning that the study does not name are the
    record's of the folder.

    :param study: Grid of runs to table.
    :param folder: Folder of the study.
    :return: The results, as in ``<grid>/results.json``.
    :raises ValueError: If the folder holds cells of other settings, other overrides or another tuning.
    """
    from sb3_tgrpo.study.tables import write_results

    root = RunFolder(folder)
    study = _as_recorded(study, root)
    check_cells(study.cells(), root)
    return write_results(study, root)


def _as_recorded(study: Study, root: RunFolder) -> Study:
    """The study with the overrides and the tuning that it was run with."""
    record = root.read(f"{study.grid}/study.json")
    if record is None:  # another grid may have run the cells
        return study
    given = {"overrides": {method: dict(settings) for method, settings in study.overrides.items()}}
    if study.tuning is not None:
        given["tuning"] = json.loads(json.dumps(study.tuning))  # factors are keys, which JSON has as text
    recorded = flat({"overrides": record["overrides"], "tuning": record["tuning"] or {}})
    now_given = flat(given)
    if changed := differences({name: recorded[name] for name in now_given if name in recorded}, now_given):
        raise ValueError(
            f"{root / study.grid / 'study.json'} records other settings ({'; '.join(changed)}): leave them out, tables are of "
            "what was run; or run the study with them."
        )
    overrides = {method: settings for method, settings in record["overrides"].items() if method in study.settable}
    return replace(study, overrides=overrides, tuning=record["tuning"])


# ---------------------------------------------------------------------- checks


def _unique(cells: Sequence[Cell]) -> list[Cell]:
    return list({cell.name: cell for cell in cells}.values())


def check_tasks_and_policies(study: Study) -> list[str]:
    """Refuse tasks and base policies that do not exist; return warnings for base policies that have not seen their task."""
    from sb3_tgrpo.train.setup import check_task, task_mismatch_warning

    for env in study.envs:
        check_task(env)
    found = [task_mismatch_warning(env, study.checkpoint(env) or str(shipped_base_policy())) for env in study.envs]
    return [warning for warning in found if warning]


def check_cells(cells: Sequence[Cell], root: RunFolder) -> None:
    """Refuse a folder with cells of other settings, from another base policy, or without the record of their settings."""
    for cell in cells:
        if (root / cell.name).is_dir():
            _check(cell, RunFolder(root / cell.name), is_finished(cell, root))


def _check(cell: Cell, folder: RunFolder, finished: bool) -> None:
    from sb3_tgrpo.openvla.checkpoint import Checkpoint
    from sb3_tgrpo.train.job import CONFIG_FILE, MAY_CHANGE, SETUP_FILE, has_begun

    if not has_begun(folder):
        return
    trained = any(next(folder.path.glob(name), None) for name in ("results.json", "metrics.jsonl", "evaluations/after_*"))
    if folder.read(CONFIG_FILE) is None and not trained:  # interrupted after the base policy's evaluations were taken over
        return
    may_change = set(MAY_CHANGE)
    if finished:
        # PPO's cells stay true when the weight of the KL term, which it does not have, is another one; SFT's whatever trains.
        unused = unused_settings(cell.config) - {"algo"}
        may_change |= {f"{section}.{name}" for section in ("algorithm", "baseline") for name in unused}
    folder.claim(
        CONFIG_FILE,
        cell.config.to_dict(),
        results=("*",),
        may_change=may_change,
        upgrade=lambda earlier: TrainConfig.from_dict(earlier, str(folder / CONFIG_FILE)).to_dict(),
    )
    setup = folder.read(SETUP_FILE)
    checkpoint = Checkpoint(cell.config.base_policy.checkpoint or shipped_base_policy(), download=False)
    # What is on the hub is compared when a cell runs; here it would have to be downloaded.
    if setup is not None and not checkpoint.is_hub_id and not checkpoint.matches(setup["start"]):
        raise ValueError(
            f"{folder.path} started from another policy than {checkpoint} holds now: choose another folder with --out."
        )


def _check_rewards(cells: Sequence[Cell], root: RunFolder) -> None:
    """Refuse to add cells with another version of the reward to a folder; tables may be of any version."""
    from sb3_tgrpo.train.job import SETUP_FILE
    from sb3_tgrpo.train.setup import reward_program

    for cell in cells:
        played = (root.read(f"{cell.name}/{SETUP_FILE}") or {}).get("reward")
        if played is not None and played != getattr(reward_program(cell.config), "sha256", None):
            raise ValueError(
                f"{root / cell.name} was run with another version of the reward, {played[:12]}: choose another folder with "
                "--out."
            )


def _record(study: Study, root: RunFolder, command: str | None, view: StudyView) -> None:
    """Who, where and with what, a line per call: a study may be continued on another machine or with other versions."""
    file = f"{study.grid}/study.json"
    try:
        calls = (root.read(file) or {"calls": []})["calls"]
    except ValueError:
        view.print(f"{root / file} can't be read: its record of earlier calls is lost.")
        calls = []
    call = {"command": command, "at": now(), "commit": commit(), "hardware": hardware(), **environment_record()}
    root.write(
        file,
        {
            "calls": [*calls, call],
            "grid": study.grid,
            "envs": list(study.envs),
            "methods": list(study.methods),
            "seeds": list(study.seeds),
            "budget": study.config.algorithm.total_timesteps,
            "checkpoints": {env: study.checkpoint(env) for env in study.envs},
            "overrides": {method: dict(settings) for method, settings in study.overrides.items()},
            "tuning": study.tuning,
            "config": study.config.to_dict(),
        },
    )


# ---------------------------------------------------------------------- running


class _Run:
    """One call's cells: which wait, which are under way, which failed."""

    def __init__(self, study: Study, cells: Sequence[Cell], root: RunFolder, workers: int, view: StudyView) -> None:
        self.study, self.cells, self.root, self.workers, self.view = study, cells, root, workers, view
        self.waiting = [cell for cell in cells if not is_finished(cell, root)]
        self.running: dict[Cell, tuple[subprocess.Popen[bytes], float]] = {}
        self.failed: dict[Cell, str] = {}
        self.seconds: list[float] = []  # of trained cells

    def finish(self) -> dict[Cell, str]:
        """Run all cells; cells that failed are returned with the reason."""
        if len(self.waiting) < len(self.cells):
            self.view.print(f"{len(self.cells) - len(self.waiting)} of {len(self.cells)} cells are finished.")
        for cell in self.waiting:
            if (file := self.root / cell.name / "results.json").exists():
                self.view.print(f"{file} can't be read: the cell counts as not finished.")
        try:
            while self.waiting or self.running:
                for cell in list(self.waiting):
                    self._begin(cell)
                for cell in [cell for cell, (process, _) in self.running.items() if process.poll() is not None]:
                    self._end(cell)
                self.view.refresh(self._progress())
                time.sleep(0.2)
        finally:
            for process, _ in self.running.values():  # all at once: a cell can be ended at any time, and goes on from there
                process.kill()
            for process, _ in self.running.values():
                process.wait()
        return self.failed

    def _begin(self, cell: Cell) -> None:
        """Start a cell if there is room and its base policy's evaluations are there."""
        needs = _needs(cell, self.study)
        if needs is not None and any(needs.name == other.name for other in self.failed):
            self.waiting.remove(cell)
            self.failed[cell] = "the base policy could not be evaluated"
        elif len(self.running) < self.workers and (needs is None or is_finished(needs, self.root)):
            self.waiting.remove(cell)
            self.running[cell] = _start(cell, needs, self.root, self.workers), time.perf_counter()
            self.view.print(f"{cell}: {'goes on' if (self.root / cell.name / 'run.json').exists() else 'begins'}")

    def _end(self, cell: Cell) -> None:
        """Note how a cell ended."""
        process, started = self.running.pop(cell)
        seconds = time.perf_counter() - started
        place = f"[{len(self.cells) - len(self.waiting) - len(self.running)}/{len(self.cells)}] {cell}"
        if process.returncode == 0 and is_finished(cell, self.root):
            self.view.print(f"{place}: {_in_short(cell, self.root)} ({seconds / 60:.1f} min)")
            if cell.folder_method != BASE:  # the base policy is only evaluated, which is faster than training
                self.seconds.append(seconds)
        else:
            reason = _last_line(cell, self.root) or "no output"
            log = self.root / cell.name / "log.txt"
            self.failed[cell] = f"exit status {process.returncode}, see {log}: {reason}"
            self.view.print(f"{place} failed: {self.failed[cell]}")

    def _progress(self) -> StudyProgress:
        time_now = time.perf_counter()
        rows = [
            RunningCell(str(cell), time_now - since, _last_line(cell, self.root)) for cell, (_, since) in self.running.items()
        ]
        to_come = sum(cell.folder_method != BASE for cell in self.waiting)
        left = seconds_left(self.seconds, [row.seconds for row in rows], to_come, self.workers)
        return StudyProgress(len(self.cells) - len(self.waiting) - len(self.running), len(self.cells), rows, left)


def _needs(cell: Cell, study: Study) -> Cell | None:
    """The cell whose evaluations of the base policy this one takes over."""
    if cell.folder_method == BASE and cell.seed == study.seeds[0]:
        return None
    seed = study.seeds[0] if cell.folder_method == BASE else cell.seed
    return Cell(cell.env, BASE, seed, study.method_config(BASE, cell.env, seed), BASE)


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
        command = [sys.executable, "-m", "sb3_tgrpo.study.cell", str(folder), str(os.getpid())]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)


def _take_over(source: Path, target: Path, needs: Cell, cell: Cell) -> None:
    """
    Copy evaluations of the base policy that would come out the same. Not where the reward is another one: successes are
    the same, the episodes' rewards and stages are not.
    """
    from sb3_tgrpo.train.job import SETUP_FILE

    if needs.config.task != cell.config.task:
        return
    played, own = RunFolder(source).read(SETUP_FILE), RunFolder(target)
    if played is not None and own.read(SETUP_FILE) is None:
        own.write(SETUP_FILE, played)  # the cell itself then checks that it starts from the policy that was evaluated
    for place in (source / "evaluations").glob("before_*"):
        sampled = place.name != "before_greedy" or cell.config.task.start_noise
        copy = target / "evaluations" / place.name
        if not copy.exists() and (needs.seed == cell.seed or not sampled):
            atomic_copytree(place, copy)


def _in_short(cell: Cell, root: RunFolder) -> str:
    from sb3_tgrpo.train.report import result_lines

    return "; ".join(line.strip() for line in result_lines(root.read(f"{cell.name}/results.json")))


def _last_line(cell: Cell, root: RunFolder) -> str:
    lines = (root / cell.name / "log.txt").read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


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
