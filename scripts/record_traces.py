"""
Record the episodes that rewards are verified on: ``python scripts/record_traces.py [TASK ...]``.

One file of state traces per task, ``rewards/data/traces/<suite>-<index>.npz``, with episodes of every
:data:`~sb3_tgrpo.rewards.episodes.traces.TraceKind`, played in the simulator. Without arguments, all tasks of the four suites
that ship. The same command writes the same episodes.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sb3_tgrpo.envs.experts.motion import CLOSE, OPEN
from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
from sb3_tgrpo.envs.libero.env import LiberoEnv
from sb3_tgrpo.envs.registration import task_names
from sb3_tgrpo.rewards.episodes.traces import Trace, TraceKind, save_traces
from sb3_tgrpo.rewards.facts.task_facts import SHIPPED_SUITES, TaskFacts, data_folder, load_task_facts
from sb3_tgrpo.rewards.facts.vocabulary import State

N_EXPERTS = 5
_TRIES = 30
_NO_MOTION = np.zeros(6)


@dataclass(frozen=True)
class Start:
    """
    How an episode starts.

    :param seed: Seed of the scene, and of the expert's variation.
    :param init_state_id: A stored initial state, or None for one drawn with ``seed``.
    :param detour: Argument of :class:`~sb3_tgrpo.envs.experts.scripted.ScriptedExpert`.
    """

    seed: int
    init_state_id: int | None
    detour: float = 0.0


@dataclass
class Episode:
    """What happened: states, actions, and what the expert was doing at each action."""

    start: Start
    states: list[State]
    actions: list[np.ndarray]
    stages: list[str]
    success: bool = False

    def stage_starts(self) -> dict[str, int]:
        """First step of each stage, in time order."""
        first: dict[str, int] = {}
        for step, stage in enumerate(self.stages):
            first.setdefault(stage, step)
        return first


Controller = Callable[[State, int], tuple[np.ndarray, str]]
"""From the state and the step to an action and the name of what it is for."""


def play(env: LiberoEnv, start: Start, controller: Controller) -> Episode:
    """One episode, to success or the step limit."""
    options = None if start.init_state_id is None else {"init_state_id": start.init_state_id}
    env.reset(seed=start.seed, options=options)
    episode = Episode(start, [env.facts()], [], [])
    while True:
        action, stage = controller(episode.states[-1], len(episode.actions))
        _, _, terminated, truncated, _ = env.step(action)
        episode.actions.append(np.asarray(action, np.float32))
        episode.stages.append(stage)
        episode.states.append(env.facts())
        if terminated or truncated:
            episode.success = terminated
            return episode


def expert_controller(facts: TaskFacts, start: Start) -> Controller:
    """The expert as it is."""
    expert = ScriptedExpert(facts, detour=start.detour, seed=start.seed)

    def control(state: State, _step: int) -> tuple[np.ndarray, str]:
        return expert.act(state), expert.stage

    return control


def replay_then_wait(actions: list[np.ndarray], until: int) -> Controller:
    """The first ``until`` of some actions, then no motion with the gripper as it was last commanded."""

    def control(_state: State, step: int) -> tuple[np.ndarray, str]:
        if step < until:
            return actions[step], "replay"
        return np.array([*_NO_MOTION, actions[until - 1][6] if until else OPEN]), "wait"

    return control


def random_controller(seed: int) -> Controller:
    """Uniform actions."""
    rng = np.random.default_rng(seed)
    return lambda _state, _step: (rng.uniform(-1, 1, 7), "random")


def lift_and_drop(facts: TaskFacts, start: Start, name: str) -> Controller:
    """Picks the object up, puts it down where it is, and again."""
    expert = ScriptedExpert(facts, seed=start.seed)
    down, wait = 0, 0

    def control(state: State, _step: int) -> tuple[np.ndarray, str]:
        nonlocal down, wait
        if wait > 0:
            wait -= 1
            return np.array([0.0, 0.0, 0.5 if wait < 12 else 0.0, 0.0, 0.0, 0.0, OPEN]), "away"
        action = expert.act(state)
        lifted = float(state[f"{name}_pos"][2]) - facts_start_z(facts, name)  # type: ignore[index]
        if down == 0 and state[f"{name}_grasped"] and lifted > 0.06:
            down = 1
        if down:
            down += 1
            if lifted < 0.012 or down > 25 or not state[f"{name}_touched"]:
                down, wait = 0, 20
                expert.reset(start.seed)
            return np.array([0.0, 0.0, -0.5, 0.0, 0.0, 0.0, CLOSE]), "down"
        return action, expert.stage

    return control


def facts_start_z(facts: TaskFacts, name: str) -> float:
    """Height of an object at the nominal initial state."""
    return next(thing for thing in facts.objects if thing.name == name).start_pos[2]


def approach_and_retreat(facts: TaskFacts, start: Start) -> Controller:
    """Goes to where it would act, turns back, and again."""
    expert = ScriptedExpert(facts, seed=start.seed)
    retreat = 0

    def control(state: State, _step: int) -> tuple[np.ndarray, str]:
        nonlocal retreat
        action = expert.act(state)
        if retreat == 0 and not expert.stage.startswith("approach"):
            retreat = 14
            expert.reset(start.seed)
        if retreat > 0:
            retreat -= 1
            return np.array([-0.3, 0.0, 1.0, 0.0, 0.0, 0.0, OPEN]), "retreat"
        return action, expert.stage

    return control


def wrong_object(facts: TaskFacts, start: Start, swaps: dict[str, str]) -> Controller:
    """The expert's motion with other objects, until each has been let go."""
    goal = tuple(replace(atom, args=(swaps.get(atom.args[0], atom.args[0]), *atom.args[1:])) for atom in facts.goal)
    expert = ScriptedExpert(replace(facts, goal=goal), seed=start.seed)
    done_at: int | None = None

    def control(state: State, step: int) -> tuple[np.ndarray, str]:
        nonlocal done_at
        if done_at is None:
            action = expert.act(state)
            if expert.stage.startswith("release"):
                done_at = step
            return action, expert.stage
        return np.array([0.0, 0.0, 0.5 if 3 < step - done_at < 12 else 0.0, 0.0, 0.0, 0.0, OPEN]), "wait"

    return control


# ---------------------------------------------------------------------- one task


def hover_step(expert: Episode) -> int:
    """
    The step from which waiting keeps the goal unreached: before the last lowering, or, where something else is done after it
    (a drawer is shut), shortly before success.
    """
    last = len(expert.actions)
    lowering = [step for step, stage in enumerate(expert.stages) if stage.startswith("lower")]
    if lowering and expert.stages[lowering[-1]].split()[-1] == expert.stages[-1].split()[-1]:
        step = lowering[-1]
        while step > 0 and expert.stages[step - 1] == expert.stages[lowering[-1]]:
            step -= 1
        return step
    return last - 3


def _swaps(facts: TaskFacts) -> list[dict[str, str]]:
    """Other objects to move instead of the goal's, the most alike first."""
    targets = {atom.args[0]: None for atom in facts.goal}
    things = {thing.name: thing for thing in facts.objects}
    moved = [name for name in targets if name in things]
    mentioned = {arg for atom in facts.goal for arg in atom.args} | {site.parent for site in facts.sites}
    spare = [thing for thing in facts.objects if thing.name not in mentioned]
    if not moved:
        return []
    kind = things[moved[0]].kind
    spare.sort(key=lambda thing: thing.kind != kind)
    return [{name: other.name for name in moved} for other in spare]


class Recorder:
    """
    Records the traces of one task.

    :param task: ``libero_object-3``.
    :param assets: ``"full"``, ``"light"`` or ``"auto"``; the physics is the same.
    """

    def __init__(self, task: str, assets: Any = "auto") -> None:
        self.facts = load_task_facts(task)
        self.task = self.facts.task_id
        self.env = LiberoEnv(self.facts.suite, self.facts.index, observations=(), assets=assets)

    def _trace(self, kind: TraceKind, episode: Episode, label: str = "") -> Trace:
        meta = {
            "seed": episode.start.seed,
            "init_state_id": episode.start.init_state_id,
            "detour": episode.start.detour,
            "assets": self.env.assets.kind,
        }
        return Trace(self.task, kind, episode.states, np.array(episode.actions), label, "simulated", meta)

    def experts(self) -> list[Episode]:
        """Successful episodes: from stored initial states as it is, and from drawn ones with detours."""
        found: list[Episode] = []
        stored = (Start(0, k) for k in range(_TRIES))
        drawn = (Start(seed, None, 0.03) for seed in range(1, _TRIES))
        for starts, wanted in ((stored, N_EXPERTS - 2), (drawn, N_EXPERTS)):
            for start in starts:
                if len(found) == wanted:
                    break
                episode = play(self.env, start, expert_controller(self.facts, start))
                if episode.success:
                    found.append(episode)
        return found

    def record(self) -> list[Trace]:
        """
        All traces of the task; without a successful expert, those that need none.

        :return: At least noop and random episodes.
        """
        start = Start(0, 0)
        experts = self.experts()
        traces = [self._trace("expert", episode) for episode in experts]
        wait = replay_then_wait([], 0)
        traces.append(self._trace("noop", play(self.env, start, wait)))
        traces += [self._trace("random", play(self.env, start, random_controller(seed)), f"seed {seed}") for seed in (0, 1)]
        if experts:
            traces += self._unfinished(experts[0])
        traces += self._mistaken(experts[0].start if experts else start)
        return traces

    def _unfinished(self, expert: Episode) -> Iterable[Trace]:
        """Hovering, and stopping after each stage."""
        until = hover_step(expert)
        hover = play(self.env, expert.start, replay_then_wait(expert.actions, until))
        while hover.success and until > 3:
            until -= 3
            hover = play(self.env, expert.start, replay_then_wait(expert.actions, until))
        yield self._trace("hover", hover)
        starts = expert.stage_starts()
        for before, step in zip(starts, list(starts.values())[1:], strict=False):
            if step >= until:
                break
            episode = play(self.env, expert.start, replay_then_wait(expert.actions, step))
            if not episode.success:
                yield self._trace("partial", episode, f"after {before}")

    def _mistaken(self, start: Start) -> Iterable[Trace]:
        """Going back and forth, and moving something else."""
        episodes: list[tuple[TraceKind, str, Controller]] = [
            ("oscillate", "approach and retreat", approach_and_retreat(self.facts, start))
        ]
        moved = [atom.args[0] for atom in self.facts.goal if atom.args[0] in self.facts.names("object")]
        if moved:
            episodes.append(("oscillate", "lift and put down", lift_and_drop(self.facts, start, moved[0])))
        for kind, label, controller in episodes:
            episode = play(self.env, start, controller)
            if not episode.success:
                yield self._trace(kind, episode, label)
        for swaps in _swaps(self.facts):
            try:
                episode = play(self.env, start, wrong_object(self.facts, start, swaps))
            except ValueError:  # too wide for the gripper
                continue
            other = next(iter(swaps.values()))
            z = [float(state[f"{other}_pos"][2]) for state in episode.states]  # type: ignore[index]
            if not episode.success and max(z) > z[0] + 0.04:
                yield self._trace("wrong-object", episode, other)
                return

    def close(self) -> None:
        """Free the simulator."""
        self.env.close()


def main(argv: list[str] | None = None) -> int:
    """:return: Exit status; 1 if a task has no successful expert episode."""
    parser = argparse.ArgumentParser(prog="python scripts/record_traces.py", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help="such as libero_object-3; default: the 40 shipped tasks")
    parser.add_argument("--assets", default="auto", choices=("auto", "full", "light"))
    parser.add_argument("--out", type=Path, default=None, help="folder; default: the package's own")
    args = parser.parse_args(argv)
    folder = args.out or Path(str(data_folder("traces")))
    without = []
    for task in map(str, task_names(args.tasks or SHIPPED_SUITES)):
        recorder = Recorder(task, args.assets)
        try:
            traces = recorder.record()
        finally:
            recorder.close()
        path = folder / f"{recorder.task}.npz"
        save_traces(path, traces)
        experts = sum(trace.kind == "expert" for trace in traces)
        without += [] if experts else [recorder.task]
        size = path.stat().st_size / 1000
        print(f"{recorder.task}: {len(traces)} traces, {experts} of an expert, {size:.0f} kB", flush=True)
    if without:
        print(f"No successful expert episode: {', '.join(without)}.", file=sys.stderr)
    return 1 if without else 0


if __name__ == "__main__":
    sys.exit(main())
