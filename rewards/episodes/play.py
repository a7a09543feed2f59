"""Playing recorded episodes through a reward, and the surgery on them that verification needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.facts.vocabulary import State
from sb3_tgrpo.rewards.program.program import RewardProgram, RewardStep
from sb3_tgrpo.rewards.program.spec import DEBOUNCE_STEPS


@dataclass(frozen=True)
class Played:
    """
    An episode and what a reward made of it.

    :param states: The reset state, then one per step.
    :param steps: One result per state; the first is the reset state's, which pays nothing but under ``per_step``.
    """

    states: Sequence[State]
    steps: list[RewardStep]

    @property
    def rewards(self) -> list[float]:
        """Payments of the control steps."""
        return [step.reward for step in self.steps[1:]]

    @property
    def total(self) -> float:
        """The return."""
        return float(sum(self.rewards))

    @property
    def most_stages(self) -> int:
        """Most stages done at one time."""
        return max(step.stage for step in self.steps)

    def start(self, facts: TaskFacts) -> dict[str, Any]:
        """Positions of the movable objects at reset."""
        return {name: self.states[0][f"{name}_pos"] for name in facts.names("object")}

    def first(self, n_stages: int) -> int | None:
        """Index of the first state at which so many stages are done."""
        return next((t for t, step in enumerate(self.steps) if step.stage >= n_stages), None)


def play(program: RewardProgram, states: Sequence[State]) -> Played:
    """Run a reward over an episode."""
    memory = program.reset()
    steps = []
    for t, state in enumerate(states):
        step, memory = program(state, {"step": t}, memory)
        steps.append(step)
    return Played(states, steps)


def objects_of_goal(facts: TaskFacts) -> list[str]:
    """Movable objects that the goal is about: its arguments, and the parents of its regions."""
    names = facts.names("object")
    parents = {site.name: site.parent for site in facts.sites}
    args = [part for atom in facts.goal for arg in atom.args for part in (arg, parents.get(arg, ""))]
    return [name for name in names if name in args]


def exchange(states: Sequence[State], one: str, other: str, facts: TaskFacts) -> list[State]:
    """The episode in which ``one`` did what ``other`` does and the other way round; goal atoms about either do not hold."""
    keys = facts.state_types
    lost = {"success"} | {f"goal_{k}" for k, atom in enumerate(facts.goal) if {one, other} & set(atom.args)}
    pairs = {}
    for a, b in ((one, other), (other, one)):
        for suffix in ("_pos", "_quat", "_left_pad", "_right_pad", "_grasped", "_touched"):
            if a + suffix in keys:
                pairs[a + suffix] = b + suffix
    return [{key: False if key in lost else state[pairs.get(key, key)] for key in state} for state in states]


def flicker(states: Sequence[State], rng: np.random.Generator, rate: float = 0.04) -> list[State]:
    """Contacts that drop out, or appear, for one or two steps at random."""
    keys = [key for key in states[0] if key.endswith(("_grasped", "_left_pad", "_right_pad", "_touched"))]
    new = [dict(state) for state in states]
    for key in keys:
        t = 1
        while t < len(new):
            if rng.random() < rate:
                length = int(rng.integers(1, DEBOUNCE_STEPS))
                for state in new[t : t + length]:
                    state[key] = not state[key]
                t += length + 2 * DEBOUNCE_STEPS
            t += 1
    return new


def noisy(states: Sequence[State], facts: TaskFacts, rng: np.random.Generator) -> list[State]:
    """Positions off by up to 2 mm, orientations by up to 1 degree, the gripper by up to 1 mm."""
    types = facts.state_types
    new = []
    for state in states:
        edited: State = {}
        for key, value in state.items():
            kind = types.get(key)
            if kind == "vec3":
                edited[key] = tuple(v + d for v, d in zip(value, rng.uniform(-0.002, 0.002, 3).tolist(), strict=True))  # type: ignore[arg-type]
            elif kind == "quat":
                axis = rng.normal(size=3)
                axis *= np.sin(np.radians(rng.uniform(-0.5, 0.5))) / np.linalg.norm(axis)
                edited[key] = _turn(value, axis.tolist())  # type: ignore[arg-type]
            elif key == "gripper_opening":
                edited[key] = float(value) + float(rng.uniform(-0.001, 0.001))  # type: ignore[arg-type]
            else:
                edited[key] = value
        new.append(edited)
    return new


def _turn(q: tuple[float, ...], half: list[float]) -> tuple[float, ...]:
    x, y, z, w = q
    a, b, c = half
    d = float(np.sqrt(max(0.0, 1.0 - a * a - b * b - c * c)))
    return (
        d * x + a * w + b * z - c * y,
        d * y - a * z + b * w + c * x,
        d * z + a * y - b * x + c * w,
        d * w - a * x - b * y - c * z,
    )


def milestones(trace: Trace, facts: TaskFacts) -> list[tuple[str, int]]:
    """
    When an episode passed what any solution must pass, read from the states alone: first touch, grasp, lift, half of the way,
    half of the joint's way, each atom of the goal.

    :return: (name, step) in time order, at least three steps apart; later ones win over earlier ones that are too close.
    """
    found: list[tuple[str, int]] = []
    states = trace.states

    def first(name: str, test: Callable[[int], bool]) -> None:
        step = next((t for t in range(len(states)) if test(t)), None)
        if step is not None:
            found.append((name, step))

    for k, atom in enumerate(facts.goal):
        if atom.true_at_start:
            continue
        first(f"goal_{k}", lambda t, k=k: bool(states[t][f"goal_{k}"]))  # type: ignore[misc]
        name = atom.args[0]
        if name in facts.names("object"):
            first(f"touch {name}", lambda t, n=name: _lasting(states, t, f"{n}_touched"))  # type: ignore[misc]
            if any(_lasting(states, t, f"{name}_grasped") for t in range(len(states))):
                first(f"grasp {name}", lambda t, n=name: _lasting(states, t, f"{n}_grasped"))  # type: ignore[misc]
                floor = _z(states[0], name)
                first(f"lift {name}", lambda t, n=name, z=floor: _z(states[t], n) > z + 0.04)  # type: ignore[misc]
            if len(atom.args) > 1 and f"{atom.args[1]}_pos" in states[0]:
                away = _gap(states[0], name, atom.args[1])
                if away > 0.1:
                    first(f"half way {name}", lambda t, n=name, o=atom.args[1], d=away: _gap(states[t], n, o) < d / 2)  # type: ignore[misc]
    ordered = sorted(found, key=lambda item: item[1])
    kept: list[tuple[str, int]] = []
    for name, step in ordered:
        if kept and step - kept[-1][1] < 3:
            kept.pop()
        if step > 0:
            kept.append((name, step))
    return kept


def _lasting(states: Sequence[State], t: int, key: str) -> bool:
    return t + 1 >= DEBOUNCE_STEPS and all(states[t - i][key] for i in range(DEBOUNCE_STEPS))


def _z(state: State, name: str) -> float:
    return float(state[f"{name}_pos"][2])  # type: ignore[index]


def _gap(state: State, one: str, other: str) -> float:
    a, b = state[f"{one}_pos"], state[f"{other}_pos"]
    return float(np.hypot(a[0] - b[0], a[1] - b[1]))  # type: ignore[index]


def swap_order(trace: Trace, first: str, second: str, k_first: int, k_second: int, facts: TaskFacts) -> list[State] | None:
    """
    The episode with its two sub-goals in the other order, cut at the step where the first is reached.

    :param first: Object of the sub-goal that the episode reaches first, atom ``k_first``; ``second`` is the other one's.
    :return: None if the episode does not reach both.
    """
    states = trace.states
    cut = next((t for t, state in enumerate(states) if state[f"goal_{k_first}"]), None)
    if cut is None or not states[-1][f"goal_{k_second}"]:
        return None

    def part(at: State, name: str, source: State) -> State:
        own = {key: value for key, value in source.items() if key.startswith(f"{name}_") and key in at}
        return {**at, **own}

    new: list[State] = [states[0]]
    for state in states[cut + 1 :]:
        new.append({**part(state, first, states[0]), f"goal_{k_first}": False, "success": False})
    for state in states[1 : cut + 1]:
        late = part(state, second, states[-1])
        done = bool(state[f"goal_{k_first}"])
        others = all(states[-1][f"goal_{k}"] for k in range(len(facts.goal)) if k not in (k_first, k_second))
        new.append({**late, f"goal_{k_second}": True, "success": done and others})
    return new
