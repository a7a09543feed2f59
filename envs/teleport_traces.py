"""
Record episodes of tasks without a successful expert: ``python -m sb3_tgrpo.envs.teleport_traces TASK [TASK ...]``.

What needs no expert is played in the simulator as for any task (no-operation, random, approach and retreat, another object,
and what the expert does without success); the rest comes from :class:`~sb3_tgrpo.envs.placed_hand.PlacedHandEnv`, where the
hand is set along a plan, and is marked ``teleported``. A task whose expert succeeds is left to
:mod:`sb3_tgrpo.envs.record_traces`, whose traces take the place of these.
"""

import argparse
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from sb3_tgrpo.envs.placed_hand import PlacedHandEnv
from sb3_tgrpo.envs.placed_plan import Plan
from sb3_tgrpo.envs.record_traces import (
    Episode,
    Recorder,
    Start,
    expert_controller,
    hover_step,
    play,
    random_controller,
    replay_then_wait,
)
from sb3_tgrpo.rewards.task_facts import data_folder, parse_task_id
from sb3_tgrpo.rewards.traces import Trace, TraceKind, load_traces, save_traces

STARTS = (Start(0, 0), Start(0, 1), Start(0, 2), Start(1, None, 0.03), Start(2, None, 0.03))
_MORE_STARTS = tuple(Start(0, k) for k in range(3, 10)) + tuple(Start(seed, None, 0.03) for seed in range(3, 10))


class Teleporter:
    """
    Records the traces of one task.

    :param task: ``libero_10-9``.
    :param assets: ``"full"``, ``"light"`` or ``"auto"``; the physics is the same.
    """

    def __init__(self, task: str, assets: Any = "auto") -> None:
        suite, index = parse_task_id(task)
        self.real = Recorder(task, assets)
        self.task, self.facts = self.real.task, self.real.facts
        self.env = PlacedHandEnv(suite, index, observations=(), assets=assets)

    def record(self) -> list[Trace]:
        """
        :return: simulated and teleported traces.
        :raises ValueError: if the expert succeeds at the first start, or the plan at fewer than 3 starts.
        """
        start = STARTS[0]
        attempt = play(self.real.env, start, expert_controller(self.facts, start))
        if attempt.success:
            raise ValueError(f"{self.task} has an expert: python -m sb3_tgrpo.envs.record_traces {self.task}")
        experts = self.experts()
        traces = [self._trace("expert", episode) for episode in experts]
        simulated = self.real._trace
        traces.append(simulated("noop", play(self.real.env, start, replay_then_wait([], 0))))
        for seed in (0, 1):
            traces.append(simulated("random", play(self.real.env, start, random_controller(seed)), f"seed {seed}"))
        traces.append(simulated("partial", attempt, "expert without success"))
        traces += self.real._mistaken(start)
        traces += self._unfinished(experts[0])
        if all(trace.kind != "wrong-object" for trace in traces):
            traces += self._wrong_object(start)
        return traces

    def experts(self) -> list[Episode]:
        """
        Successful episodes, the goal being LIBERO's own.

        :raises ValueError: if there are fewer than 3.
        """
        found: list[Episode] = []
        for start in STARTS + _MORE_STARTS:
            episode = play(self.env, start, Plan(self.env, self.facts, start.seed, start.detour))
            found += [episode] if episode.success else []
            if len(found) == len(STARTS):
                break
        if len(found) < 3:
            raise ValueError(f"{self.task}: the plan reaches the goal from {len(found)} starts only.")
        return found

    def _trace(self, kind: TraceKind, episode: Episode, label: str = "") -> Trace:
        return replace(self.real._trace(kind, episode, label), source="teleported")

    def _unfinished(self, expert: Episode) -> Iterable[Trace]:
        """Waiting before the last motion that reaches the goal, and stopping after each stage."""
        starts = expert.stage_starts()
        ends_with_placing = expert.stages[-1].startswith(("lower", "release"))
        until = hover_step(expert) if ends_with_placing else len(expert.actions) - 4
        hover = play(self.env, expert.start, replay_then_wait(expert.actions, until))
        while hover.success and until > 3:
            until -= 3
            hover = play(self.env, expert.start, replay_then_wait(expert.actions, until))
        yield self._trace("hover", hover)
        for before, step in zip(starts, list(starts.values())[1:], strict=False):
            if step >= until:
                break
            episode = play(self.env, expert.start, replay_then_wait(expert.actions, step))
            if not episode.success:
                yield self._trace("partial", episode, f"after {before}")

    def _wrong_object(self, start: Start) -> Iterable[Trace]:
        """The plan with another object, of which nothing is asked."""
        mentioned = {arg for atom in self.facts.goal for arg in atom.args} | {site.parent for site in self.facts.sites}
        for thing in self.facts.objects:
            if thing.name in mentioned:
                continue
            moved = {atom.args[0] for atom in self.facts.goal} & set(self.facts.names("object"))
            goal = tuple(
                replace(atom, args=(thing.name, *atom.args[1:])) if atom.args[0] in moved else atom for atom in self.facts.goal
            )
            try:
                episode = play(self.env, start, Plan(self.env, replace(self.facts, goal=goal), start.seed))
            except ValueError:  # too wide for the gripper
                continue
            if not episode.success:
                yield self._trace("wrong-object", episode, thing.name)
                return

    def close(self) -> None:
        """Free the simulators."""
        self.real.close()
        self.env.close()


def main(argv: list[str] | None = None) -> int:
    """:return: exit status; 1 if a task has an expert or the plan does not reach its goal."""
    parser = argparse.ArgumentParser(prog="python -m sb3_tgrpo.envs.teleport_traces", description=__doc__)
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="such as libero_10-9")
    parser.add_argument("--assets", default="auto", choices=("auto", "full", "light"))
    parser.add_argument("--out", type=Path, default=None, help="folder; default: the package's own")
    parser.add_argument("--force", action="store_true", help="replace traces of a real expert, too")
    args = parser.parse_args(argv)
    folder = args.out or Path(str(data_folder("traces")))
    folder.mkdir(parents=True, exist_ok=True)
    status = 0
    for task in args.tasks:
        teleporter = Teleporter(task, args.assets)
        path = folder / f"{teleporter.task}.npz"
        try:
            if path.is_file() and not args.force and has_real_expert(path):
                print(f"{teleporter.task}: {path} holds successful simulated episodes; left as it is (--force replaces it)")
                continue
            traces = teleporter.record()
        except ValueError as error:
            print(error, file=sys.stderr)
            status = 1
            continue
        finally:
            teleporter.close()
        save_traces(path, traces)
        teleported = sum(trace.source == "teleported" for trace in traces)
        size = path.stat().st_size / 1000
        print(f"{teleporter.task}: {len(traces)} traces, {teleported} of them teleported, {size:.0f} kB", flush=True)
    return status


def has_real_expert(path: Path) -> bool:
    """Whether a file holds a successful episode that was played in the simulator."""
    return any(trace.kind == "expert" and trace.source == "simulated" for trace in load_traces(path))


if __name__ == "__main__":
    sys.exit(main())
