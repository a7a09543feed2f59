"""
Write the task facts that ship with the package: ``python scripts/write_task_facts.py [TASK ...]``.

One file per task, ``rewards/data/task_facts/<suite>-<index>.json``, measured in the simulator. Without arguments, all tasks
of the four suites that ship; with ``--check``, compares instead and exits with 1 if a file differs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from sb3_tgrpo.envs.libero.env import LiberoEnv
from sb3_tgrpo.envs.registration import task_names
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.rewards.facts.task_facts import SHIPPED_SUITES, data_folder
from sb3_tgrpo.rewards.facts.task_name import TaskName


def measure(task: str, assets: Any = "auto") -> dict[str, Any]:
    """
    :param task: ``libero_object-3``.
    :param assets: ``"full"``, ``"light"`` or ``"auto"``; both kinds give the same facts.
    :return: The facts as plain JSON values.
    """
    env = LiberoEnv(*TaskName.parse(task), observations=(), assets=assets)
    try:
        return env.task_facts()
    finally:
        env.close()


def main(argv: list[str] | None = None) -> int:
    """:return: Exit status."""
    parser = argparse.ArgumentParser(prog="python scripts/write_task_facts.py", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="such as libero_object-3; default: the 40 shipped tasks")
    parser.add_argument("--assets", default="auto", choices=("auto", "full", "light"))
    parser.add_argument("--check", action="store_true", help="compare with the files instead of writing them")
    args = parser.parse_args(argv)
    folder = Path(str(data_folder("task_facts")))
    different = []
    for task in map(str, task_names(args.tasks or SHIPPED_SUITES)):
        text = json.dumps(measure(task, args.assets), indent=1) + "\n"
        path = folder / f"{task}.json"
        if args.check:
            same = path.is_file() and path.read_text(encoding="utf-8") == text
            different += [] if same else [task]
            print(f"{task}: {'same' if same else 'different'}")
        else:
            atomic_write(path, text)
            print(f"{task}: written")
    return 1 if different else 0


if __name__ == "__main__":
    sys.exit(main())
