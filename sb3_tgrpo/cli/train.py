"""``sb3-tgrpo train``: evaluate a base policy, train it, evaluate again."""

import argparse
import shlex
import sys
from pathlib import Path

from sb3_tgrpo.cli.flags import add_flag
from sb3_tgrpo.cli.interrupt import interruptible
from sb3_tgrpo.envs.registration import env_id
from sb3_tgrpo.train import config as settings
from sb3_tgrpo.train.config import ALGORITHM_NAMES, BUDGETS, TrainConfig, check_used, flags, load_config

_DESCRIPTION = (
    "Evaluate a base policy on LIBERO's stored initial states, train it by TGRPO, evaluate again, and report. Without "
    "arguments: the tiny policy that ships, on CPU, with built-in assets. The same command continues an interrupted run; a "
    "finished one is shown again."
)
_SECTIONS = {
    "task": "task",
    "base_policy": "base policy",
    "algorithm": "algorithm",
    "baseline": "other methods (--algo)",
    "evaluation": "evaluation",
    "run": "run",
}
RENAMED = {
    f"--{old.replace('_', '-')}": f"--{new.replace('_', '-')}" for old, new in settings.RENAMED.items() if old not in _SECTIONS
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``train``."""
    parser = subparsers.add_parser(
        "train", help="a training run: evaluate, train by TGRPO, evaluate again", description=_DESCRIPTION
    )
    parser.add_argument("--out", type=Path, default=None, metavar="FOLDER", help="run folder (default: runs/<task>)")
    parser.add_argument(
        "--config", type=Path, default=None, metavar="FILE", help="settings, such as a run folder's config.json"
    )
    parser.add_argument("--budget", choices=tuple(BUDGETS), default=None, help="recipe to start from (default: default)")
    parser.add_argument("--seeds", type=int, nargs="+", default=None, metavar="N", help="several runs, and all of them pooled")
    parser.add_argument(
        "--measure-signal", type=int, nargs="?", const=40, default=None, metavar="GROUPS",
        help="instead of training: play so many groups (default 40) and measure the signal in their gradients",
    )  # fmt: skip
    parser.add_argument("--plain", action="store_true", help="plain lines instead of the live view")
    groups = {name: parser.add_argument_group(title) for name, title in _SECTIONS.items()}
    for section, name, hint, default, text in flags():
        add_flag(groups[section], name, hint, default, text)
    parser.set_defaults(run=run)


def config_from(args: argparse.Namespace) -> TrainConfig:
    """The configuration: a recipe or a file, then flags; refuses what does not fit together or the algorithm does not use."""
    if args.config is not None and args.budget is not None:
        raise ValueError("--config holds all settings, so --budget would have no effect: leave one out.")
    config = load_config(args.config) if args.config is not None else BUDGETS[args.budget or "default"]
    given = {name: getattr(args, name) for _, name, *_ in flags() if hasattr(args, name)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    if "env" in given:
        given["env"] = env_id(given["env"])
    config = config.updated(given)
    check_used(given.keys() - {"algo"}, f"--algo {config.algorithm.algo}", config)
    return config


def run(args: argparse.Namespace) -> int:
    """Train, or measure. What can't work is refused before torch is imported."""
    from sb3_tgrpo.train.errors import TrainingError
    from sb3_tgrpo.train.setup import check_n_groups, check_request, check_seeds

    config = config_from(args)
    if args.seeds is not None:
        if hasattr(args, "seed") or args.measure_signal is not None:
            other = "--seed" if hasattr(args, "seed") else "--measure-signal"
            raise ValueError(f"{other} and --seeds contradict each other: leave one out.")
        check_seeds(args.seeds)
    if args.measure_signal is not None:
        check_n_groups(args.measure_signal)
    check_request(config)

    from sb3_tgrpo.train.job import measure, run_seeds, run_training
    from sb3_tgrpo.train.report import result_lines
    from sb3_tgrpo.train.view import make_view

    command = shlex.join(["sb3-tgrpo", *sys.argv[1:]])
    name = config.task.env.removeprefix("LIBERO/").removesuffix("-v0")
    folder = args.out if args.out is not None else Path("runs") / name.replace("/", "_").replace(":", "_")
    title = f"{ALGORITHM_NAMES[config.algorithm.algo]} on {name}: {folder}"
    try:
        with interruptible(), make_view(title, args.plain or None) as view:
            if args.measure_signal is not None:
                report = measure(config, folder, args.measure_signal, view=view)
            elif args.seeds is not None:
                results = run_seeds(config, args.seeds, folder, view=view, command=command)
            else:
                results = run_training(config, folder, view=view, command=command)
    except TrainingError as error:
        print(f"sb3-tgrpo: {error}", file=sys.stderr)
        return 1
    if args.measure_signal is not None:
        print(report)
        return 0
    print("\nSuccess on the stored initial states, before -> after; difference with its 95 % bootstrap interval:")
    print("\n".join(result_lines(results)))
    if results["assets"] == "light":
        print("Played with the built-in light assets: LIBERO's physics and initial states, our own pictures.")
    print(f"\nReport: {folder / 'report.html'}")
    return 0
