"""The command line: ``sb3-tgrpo``, also ``python -m sb3_tgrpo``. One module per subcommand."""

import argparse
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module

import gymnasium as gym
from gymnasium.error import Error as GymnasiumError

from sb3_tgrpo.cli.flags import rename_flags
from sb3_tgrpo.envs.registration import SUITES
from sb3_tgrpo.version import __version__

SUBCOMMANDS = ("demos", "doctor", "eval", "reward", "sft", "study", "train")
"""
Modules of this package. Each has ``add_parser(subparsers)``, which sets ``run(args) -> exit status``; a module with renamed
flags has ``RENAMED``, the new names by the old ones.
"""


def _did_you_mean(args: argparse.Namespace) -> str:
    """The nearest known environment, for one that is unknown."""
    short = [f"{suite}-{task}" for suite, count in SUITES.items() for task in range(count)]
    given = [getattr(args, name, None) or [] for name in ("env", "tasks")]
    for name in [name for names in given for name in ([names] if isinstance(names, str) else names)]:
        if name not in gym.registry and (close := get_close_matches(name, [*short, *gym.registry], 1)):
            return f" Did you mean {close[0]}?"
    return ""


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: Arguments; None: the process's own.
    :return: Exit status: 0 done, 1 failed with a message, 2 wrong usage.
    """
    parser = argparse.ArgumentParser(prog="sb3-tgrpo", description="TGRPO for Stable-Baselines3, on LIBERO.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in SUBCOMMANDS:
        module = import_module(f"sb3_tgrpo.cli.{name}")
        module.add_parser(subparsers)
        if arguments[:1] == [name]:
            arguments = rename_flags(arguments, getattr(module, "RENAMED", {}))
    args = parser.parse_args(arguments)
    try:
        return int(args.run(args))
    except (ValueError, TypeError, ImportError, OSError, GymnasiumError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "OpenGL" not in str(error):
            raise
        # Messages for users name the argument, the value and the remedy: a traceback would bury them.
        hint = _did_you_mean(args) if isinstance(error, GymnasiumError) and "Did you mean" not in str(error) else ""
        print(f"{parser.prog}: {type(error).__name__}: {error}{hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
