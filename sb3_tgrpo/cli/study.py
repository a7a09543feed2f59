"""``sb3-tgrpo study``: grids of tasks, methods and seeds under one protocol."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from sb3_tgrpo.cli.interrupt import interruptible

_DESCRIPTION = (
    "Run a named grid of tasks, methods and seeds, each cell in a process and a folder of its own, and write tables like the "
    "paper's and plots. All cells have the same base policy, budget of environment steps and evaluation. The same "
    "command goes on after an interruption; studies in one folder share their cells."
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``study``."""
    from sb3_tgrpo.study.methods import GRIDS, METHODS

    grids = "\n".join(f"  {name:<12} {grid.description}: {', '.join(grid.methods)}" for name, grid in GRIDS.items())
    parser = subparsers.add_parser(
        "study",
        help="tasks x methods x seeds: tables and plots",
        description=_DESCRIPTION,
        epilog=f"grids:\n{grids}\n\nmethods:\n  {', '.join(METHODS)};\n"
        "  NAME-SETTING=VALUE changes a setting of train, NAME@FACTOR multiplies the learning rate",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("grid", choices=tuple(GRIDS), metavar="NAME", help="one of the grids below")
    parser.add_argument("--out", type=Path, default=Path("runs/study"), metavar="FOLDER", help="default: runs/study")
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    parser.add_argument("--tasks", **several, default=None, metavar="TASK", help="such as libero_object-3, a suite, or ids")
    parser.add_argument("--methods", **several, default=None, metavar="METHOD", help="instead of the grid's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--budget", type=int, default=None, metavar="STEPS", help="environment steps of each cell")
    parser.add_argument("--checkpoint", **several, default=[], metavar="[TASK=]PATH", help="base policy, of all tasks or one")
    parser.add_argument("--config", type=Path, default=None, metavar="FILE", help="settings of all cells, as for train")
    parser.add_argument(
        "--set", **several, default=[], metavar="[METHOD.]NAME=VALUE", help="settings, of all cells or one method"
    )
    parser.add_argument("--tuning", type=Path, default=None, metavar="FOLDER", help="--out of a tuning: its learning rates")
    parser.add_argument("--workers", type=int, default=None, metavar="N", help="cells at once (default: half of the cores)")
    parser.add_argument("--dry-run", action="store_true", help="list the cells and what is finished")
    parser.add_argument("--tables", action="store_true", help="write tables of what is finished, run nothing")
    parser.set_defaults(run=run)


def study_from(args: argparse.Namespace) -> Any:
    """The study that the arguments ask for."""
    from sb3_tgrpo.envs.registration import env_ids
    from sb3_tgrpo.study.design import Study
    from sb3_tgrpo.study.methods import GRIDS, TASKS
    from sb3_tgrpo.study.tuning import tuned_overrides
    from sb3_tgrpo.train.config import TrainConfig, load_config

    grid = GRIDS[args.grid]
    config = load_config(args.config) if args.config is not None else TrainConfig()
    envs = env_ids(args.tasks or [config.task.env, *TASKS])
    if args.tasks is None:
        envs = envs[: grid.n_tasks]
        if args.grid == "tuning":  # not on what the tables are of
            envs = env_ids(["libero_object-1"])
    everywhere: dict[str, Any] = {}
    overrides: dict[str, dict[str, Any]] = {}
    for text in args.set:
        method, name, value = _assignment(text)
        (everywhere if method is None else overrides.setdefault(method, {}))[name] = value
    checkpoints: dict[str, str] = {}
    for text in args.checkpoint:
        task, equals, path = text.partition("=")
        if equals:
            checkpoints |= dict.fromkeys(env_ids([task]), path)
        else:
            everywhere["checkpoint"] = text
    if args.budget is not None:
        everywhere["total_timesteps"] = args.budget
    methods = tuple(args.methods or grid.methods)
    study = Study(args.grid, config.updated(everywhere), tuple(envs), methods, tuple(args.seeds), checkpoints, overrides)
    return study if args.tuning is None else tuned_overrides(args.tuning, study)


def _assignment(text: str) -> tuple[str | None, str, Any]:
    """``TGRPO.kl_coef=0.1`` as method, name and value."""
    from sb3_tgrpo.train.config import parse_setting

    left, equals, value = text.rpartition("=")
    method, dot, name = left.rpartition(".")
    if not equals or not name:
        raise ValueError(f"--set {text!r} must be NAME=VALUE or METHOD.NAME=VALUE.")
    return (method if dot else None), name, parse_setting(name, value)


def run(args: argparse.Namespace) -> int:
    """Run, or show."""
    from sb3_tgrpo.run_folder import RunFolder, cpu_count
    from sb3_tgrpo.study.design import is_finished
    from sb3_tgrpo.study.runner import StudyError, check_tasks_and_policies, run_study, write_tables
    from sb3_tgrpo.study.tables import text_table
    from sb3_tgrpo.study.view import StudyView

    study = study_from(args)
    if args.dry_run:
        root = RunFolder(args.out) if args.out.is_dir() else None
        for warning in check_tasks_and_policies(study):
            print(warning)
        for cell in {cell.name: cell for cell in study.cells()}.values():
            print(f"{'finished' if root is not None and is_finished(cell, root) else 'to run  '}  {cell}")
        return 0
    status = 0
    if args.tables:
        results = write_tables(study, args.out)
    else:
        workers = args.workers if args.workers is not None else max(1, cpu_count() // 2)
        try:
            with interruptible():
                results = run_study(
                    study,
                    args.out,
                    workers=workers,
                    command=shlex.join(["sb3-tgrpo", *sys.argv[1:]]),
                    view=StudyView(f"study {study.grid}: {args.out}", live=sys.stdout.isatty()),
                )
        except StudyError as error:
            print(f"sb3-tgrpo: {error}", file=sys.stderr)
            results, status = RunFolder(args.out).read(f"{study.grid}/results.json"), 1
    for name, rows in results["modes"].items():
        if rows:
            print(f"\n{study.grid}, {name}: success in %\n{text_table(rows, study.envs)}")
    print(f"\n{args.out / study.grid / 'table.md'}")
    return status
