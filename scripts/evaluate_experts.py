"""
How well the scripted experts do: ``python scripts/evaluate_experts.py [TASK ...] --out FOLDER``.

Plays each task from LIBERO's stored initial states within the suite's step limit and prints tables in Markdown. Every episode
is kept in ``FOLDER/<task>.json``: an interrupted evaluation continues, and one that is complete only prints.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest  # type: ignore[import-untyped]

import sb3_tgrpo.envs.experts.scripted as experts_module
from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.env import LiberoEnv
from sb3_tgrpo.envs.libero.tasks import get_task
from sb3_tgrpo.envs.registration import task_names
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.rewards.facts.task_facts import SHIPPED_SUITES
from sb3_tgrpo.rewards.facts.task_name import TaskName


@dataclass(frozen=True)
class Settings:
    """
    What an episode depends on besides its task and start.

    :param assets: ``"full"`` or ``"light"``.
    :param noise: Argument of :class:`~sb3_tgrpo.envs.experts.scripted.ScriptedExpert`, also for ``detour``.
    :param seed: The episode from start k is seeded with ``seed + k``.
    :param code: Digest of the experts' source, see :func:`expert_code`.
    """

    assets: str
    noise: float = 0.0
    detour: float = 0.0
    seed: int = 0
    code: str = ""


def expert_code() -> str:
    """A digest of the experts' source: results of other code are not continued."""
    files = sorted(Path(str(experts_module.__file__)).parent.glob("*.py"))
    if Path(str(experts_module.__file__)) not in files:
        raise FileNotFoundError(f"{experts_module.__file__}: the experts' source is missing, so results have no version.")
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Result:
    """
    One task's episodes.

    :param task: ``libero_object-3``.
    :param settings: Settings of the episodes.
    :param steps: Steps to success by initial state, None for a failure.
    """

    task: str
    settings: Settings
    steps: dict[int, int | None]

    def lengths(self) -> list[int]:
        """Steps of the successful episodes."""
        return [steps for steps in self.steps.values() if steps is not None]

    def failed(self) -> list[int]:
        """Stored initial states of the others."""
        return [start for start, steps in self.steps.items() if steps is None]

    def row(self) -> str:
        """A row of the table."""
        lengths, n = self.lengths(), len(self.steps)
        length = f"{np.median(lengths):.0f} ({max(lengths)})" if lengths else "-"
        low, high = binomtest(len(lengths), n).proportion_ci(method="wilson")
        task = get_task(*TaskName.parse(self.task))
        rate = f"{100 * len(lengths) / n:.0f} % | {100 * low:.0f} to {100 * high:.0f} %"
        return f"| {task.index} | {task.instruction} | {len(lengths)}/{n} | {rate} | {length} | {task.step_cap} |"

    def to_json(self) -> bytes:
        """As it is kept."""
        steps = {str(start): steps for start, steps in sorted(self.steps.items())}
        return (json.dumps({"task": self.task, "settings": vars(self.settings), "steps": steps}) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes) -> "Result":
        """Undo :meth:`to_json`."""
        data: dict[str, Any] = json.loads(content)
        steps = {int(start): steps for start, steps in data["steps"].items()}
        return cls(data["task"], Settings(**data["settings"]), steps)


def table(results: Iterable[Result]) -> str:
    """One table per suite."""
    lines: list[str] = []
    before = ""
    for result in results:
        suite = TaskName.parse(result.task).suite
        if suite != before:
            lines += ["", f"### {suite}, {result.settings.assets} assets", "", *_HEADER]
            before = suite
        lines.append(result.row())
    return "\n".join(lines)


_HEADER = (
    "| task | instruction | successes | rate | 95 % interval | median steps (most) | limit |",
    "|---|---|---|---|---|---|---|",
)


def evaluate(task: str, starts: Iterable[int], settings: Settings, file: Path | None = None) -> Result:
    """
    Play a task from stored initial states.

    :param task: ``libero_object-3``.
    :param starts: Stored initial states to play from.
    :param file: File that keeps each episode as soon as it is over.
    :raises ValueError: If the file holds episodes of other settings or other code.
    """
    name = TaskName.parse(task)
    result = Result(str(name), settings, {})
    if file is not None and file.exists():
        kept = Result.from_json(file.read_bytes())
        if kept.settings != settings:
            raise ValueError(f"{file} is of {kept.settings}, not of {settings}: remove it, or choose another --out.")
        result = kept
    starts = list(starts)
    missing = [start for start in starts if start not in result.steps]
    if missing:
        env = LiberoEnv(*name, observations=(), assets=settings.assets)  # type: ignore[arg-type]
        expert = ScriptedExpert(task, noise=settings.noise, detour=settings.detour)
        try:
            for start in missing:
                result.steps[start] = _play(env, expert, start, settings.seed + start)
                if file is not None:
                    atomic_write(file, result.to_json())
        finally:
            env.close()
    return replace(result, steps={start: result.steps[start] for start in starts})


def _play(env: LiberoEnv, expert: ScriptedExpert, start: int, seed: int) -> int | None:
    """:return: Steps to success, None for a failure."""
    env.reset(seed=0, options={"init_state_id": start})
    expert.reset(seed)
    for step in range(1, env.task.step_cap + 1):
        if env.step(expert.act(env.facts()))[2]:
            return step
    return None


def main(argv: list[str] | None = None) -> int:
    """:return: Exit status."""
    parser = argparse.ArgumentParser(prog="python scripts/evaluate_experts.py", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="libero_object-3, or a suite; default: the 40 shipped tasks")
    parser.add_argument("--starts", type=int, default=50, help="the first so many stored initial states (default %(default)s)")
    parser.add_argument("--assets", default="auto", choices=("auto", "full", "light"))
    parser.add_argument("--noise", type=float, default=0.0, help="std of noise on the motion (action units)")
    parser.add_argument("--detour", type=float, default=0.0, help="metres by which ways vary")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="folder that keeps the episodes; default: they are not kept")
    args = parser.parse_args(argv)
    if not 1 <= args.starts <= 50:
        raise ValueError(f"--starts must be between 1 and 50, got {args.starts}.")
    tasks = list(map(str, task_names(args.tasks or SHIPPED_SUITES)))
    settings = Settings(resolve_assets(args.assets).kind, args.noise, args.detour, args.seed, expert_code())
    results = []
    for task in tasks:
        file = None if args.out is None else args.out / f"{task}.json"
        result = evaluate(task, range(args.starts), settings, file)
        results.append(result)
        failed = f", failed from {', '.join(map(str, result.failed()))}" if result.failed() else ""
        print(f"{task}: {len(result.lengths())}/{args.starts}{failed}", file=sys.stderr, flush=True)
    print(table(results).lstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
