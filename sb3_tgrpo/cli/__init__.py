"""The command line: ``sb3-tgrpo``, also ``python -m sb3_tgrpo``. One module per subcommand."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from gymnasium.error import Error as GymnasiumError

from sb3_tgrpo.cli.flags import rename_flags
from sb3_tgrpo.version import __version__

SUBCOMMANDS = ("demos", "doctor", "eval", "reward", "sft", "study", "train")
"""
Modules of this package. Each has ``add_parser(subparsers)``, which sets ``run(args) -> exit status``; a module with renamed
flags has ``RENAMED``, the new names by the old ones.
"""


def _be_gentle_on_busy_cores() -> None:
    """
    Threads of GNU OpenMP, torch's, that wait for one another give up their core sooner. With the default, an update with two
    threads took thirteen times as long as with one where another run had the second core (docs/train.md). Read when torch is
    imported, which commands do later.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def main(argv: Sequence[str] | None = None) -> int:
    """
    :param argv: Arguments, the process's own by default.
    :return: Exit status: 0 done, 1 failed with a message, 2 wrong usage.
    """
    _be_gentle_on_busy_cores()
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
    except (ValueError, TypeError, ImportError, OSError, GymnasiumError) as error:  # the last: an unknown id, for instance
        # Messages for users name the argument, the value and the remedy: a traceback would bury them.
        print(f"{parser.prog}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
