"""
How well the scripted experts do: ``python -m sb3_tgrpo.envs.evaluate_experts [TASK ...]``.

Plays each task from LIBERO's stored start states within the suite's step limit and prints a table in Markdown.
"""

import argparse
import sys
from dataclasses import dataclass

import numpy as np

from sb3_tgrpo.envs.experts import ScriptedExpert
from sb3_tgrpo.envs.libero import LiberoEnv
from sb3_tgrpo.envs.registration import SUITES
from sb3_tgrpo.rewards.task_facts import SHIPPED_SUITES, parse_task_id


@dataclass(frozen=True)
class Result:
    """
    One task's episodes.

    :param task: ``libero_object-3``.
    :param assets: ``"full"`` or ``"light"``.
    :param instruction: the sentence.
    :param lengths: steps of the successful episodes.
    :param failed: stored starts of the others.
    :param limit: step limit.
    """

    task: str
    assets: str
    instruction: str
    lengths: tuple[int, ...]
    failed: tuple[int, ...]
    limit: int

    def row(self) -> str:
        """A row of the table."""
        n = len(self.lengths) + len(self.failed)
        length = f"{np.median(self.lengths):.0f} ({max(self.lengths)})" if self.lengths else "-"
        share = f"{100 * len(self.lengths) / n:.0f} %"
        successes = f"{len(self.lengths)}/{n}"
        return f"| {self.task} | {self.instruction} | {self.assets} | {successes} | {share} | {length} | {self.limit} |"


HEADER = "| task | instruction | assets | successes | rate | median steps (most) | limit |\n|---|---|---|---|---|---|---|"


def evaluate(task: str, starts: range, assets: str = "auto", noise: float = 0.0, detour: float = 0.0, seed: int = 0) -> Result:
    """
    Play a task from stored starts.

    :param task: ``libero_object-3``.
    :param starts: stored starts to play from.
    :param noise: see :class:`~sb3_tgrpo.envs.experts.ScriptedExpert`, also for ``detour``.
    :param seed: the episode from start k is seeded with ``seed + k``.
    """
    suite, index = parse_task_id(task)
    env = LiberoEnv(suite, index, observations=(), assets=assets)  # type: ignore[arg-type]
    expert = ScriptedExpert(task, noise=noise, detour=detour)
    lengths, failed = [], []
    try:
        for start in starts:
            env.reset(seed=0, options={"init_state_id": start})
            expert.reset(seed + start)
            steps, finished = 0, False
            while not finished:
                _, _, success, truncated, _ = env.step(expert.act(env.facts()))
                finished, steps = success or truncated, steps + 1
            if success:
                lengths.append(steps)
            else:
                failed.append(start)
        return Result(f"{suite}-{index}", env.assets.kind, env.instruction, tuple(lengths), tuple(failed), env.task.step_cap)
    finally:
        env.close()


def main(argv: list[str] | None = None) -> int:
    """:return: exit status."""
    parser = argparse.ArgumentParser(prog="python -m sb3_tgrpo.envs.evaluate_experts", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="libero_object-3, or a suite; default: the 40 shipped tasks")
    parser.add_argument("--starts", type=int, default=50, help="the first so many stored starts (default %(default)s)")
    parser.add_argument("--assets", default="auto", choices=("auto", "full", "light"))
    parser.add_argument("--noise", type=float, default=0.0, help="std of noise on the motion (action units)")
    parser.add_argument("--detour", type=float, default=0.0, help="metres by which ways vary")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not 1 <= args.starts <= 50:
        raise ValueError(f"--starts must be between 1 and 50, got {args.starts}.")
    tasks = [
        task
        for name in args.tasks or SHIPPED_SUITES
        for task in ([f"{name}-{index}" for index in range(SUITES[name])] if name in SUITES else [name])
    ]
    print(HEADER, flush=True)
    for task in tasks:
        try:
            result = evaluate(task, range(args.starts), args.assets, args.noise, args.detour, args.seed)
            print(result.row(), flush=True)
            if result.failed:
                print(f"{task}: failed from stored starts {', '.join(map(str, result.failed))}", file=sys.stderr)
        except ValueError as error:
            print(f"{task}: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
