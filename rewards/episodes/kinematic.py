"""
Episodes without a simulator: a gripper that moves in straight lines through a task's facts.

They have no physics, so a reward that holds on them has shown its logic, not its thresholds. They serve tests, and tasks for
which no successful simulated episode exists; reports name their source as ``kinematic``.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np

from sb3_tgrpo.rewards.episodes.measure import guess_grasp, world_box
from sb3_tgrpo.rewards.episodes.traces import Trace, TraceKind, load_traces
from sb3_tgrpo.rewards.facts.helpers import Vec3, add, distance, scale, sub
from sb3_tgrpo.rewards.facts.task_facts import GoalAtom, JointFacts, TaskFacts, nominal_state
from sb3_tgrpo.rewards.facts.vocabulary import State

SPEED = 0.02
"""Metres a step: 0.4 m/s at 20 Hz."""
_CARRY = 0.16
_WAIT = 60
_CONTACTS = ("left_pad", "right_pad", "grasped", "touched")


class _World:
    """A state that can be acted on; every method yields the states it goes through."""

    def __init__(self, facts: TaskFacts, rng: np.random.Generator, jitter: float) -> None:
        self.facts = facts
        self.state: State = nominal_state(facts)
        for thing in facts.objects:
            if jitter and all(site.parent != thing.name for site in facts.sites):
                x, y = rng.uniform(-jitter, jitter, 2).tolist()
                self.state[f"{thing.name}_pos"] = add(thing.start_pos, (x, y, 0.0))
        self.held = ""
        self.grip: Vec3 = (0.0, 0.0, 0.0)

    def at(self, name: str) -> Vec3:
        return self.state[f"{name}_pos"]  # type: ignore[return-value]

    def now(self) -> State:
        self.state["success"] = all(self.state[f"goal_{k}"] for k in range(len(self.facts.goal)))
        return dict(self.state)

    def wait(self, steps: int) -> Iterator[State]:
        for _ in range(steps):
            yield self.now()

    def go(self, target: Vec3) -> Iterator[State]:
        while True:
            way = sub(target, self.at("eef"))
            left = distance(way, (0.0, 0.0, 0.0))
            self.state["eef_pos"] = target if left <= SPEED else add(self.at("eef"), scale(way, SPEED / left))
            if self.held:
                self.state[f"{self.held}_pos"] = sub(self.at("eef"), self.grip)
            yield self.now()
            if left <= SPEED:
                return

    def grasp(self, name: str) -> Iterator[State]:
        grasp = guess_grasp(next(thing for thing in self.facts.objects if thing.name == name))
        point = add(self.at(name), (0.0, grasp.radius, grasp.height))
        yield from self.go(add(point, (0.0, 0.0, 0.12)))
        yield from self.go(point)
        for opening in (0.06, 0.045, 0.03):
            self.state["gripper_opening"] = opening
            yield self.now()
        self.state.update({f"{name}_{key}": True for key in _CONTACTS})
        self.held, self.grip = name, sub(point, self.at(name))
        yield from self.wait(5)

    def carry_to(self, place: Vec3) -> Iterator[State]:
        eef = self.at("eef")
        high = max(eef[2], add(place, self.grip)[2]) + _CARRY
        yield from self.go((eef[0], eef[1], high))
        over = add(place, self.grip)
        yield from self.go((over[0], over[1], high))

    def drop(self, place: Vec3, goal: int | None) -> Iterator[State]:
        name = self.held
        yield from self.go(add(add(place, self.grip), (0.0, 0.0, 0.02)))
        self.held = ""
        self.state.update({f"{name}_{key}": False for key in _CONTACTS})
        self.state["gripper_opening"] = self.facts.gripper_range[1]
        self.state[f"{name}_pos"] = place
        if goal is not None:
            self.state[f"goal_{goal}"] = True
        yield self.now()

    def retreat(self) -> Iterator[State]:
        yield from self.go(add(self.at("eef"), (0.0, 0.0, 0.12)))

    def turn(self, joint: JointFacts, target: float, goal: int | None) -> Iterator[State]:
        handle = next(h for h in self.facts.handles if h.joint == joint.name)
        yield from self.go(add(self.at(handle.name), (0.0, 0.0, 0.12)))
        yield from self.go(self.at(handle.name))
        self.state[f"{handle.name}_touched"] = True
        yield from self.wait(4)
        fixture = next(f for f in self.facts.fixtures if f.name == joint.fixture)
        out = sub(handle.start_pos, fixture.start_pos)
        size = math.hypot(out[0], out[1]) or 1.0
        step = 0.01 if joint.type == "slide" else 0.05
        q: float = self.state[f"{joint.name}_qpos"]  # type: ignore[assignment]
        while q != target:
            new = max(q - step, target) if target < q else min(q + step, target)
            if joint.type == "slide":
                move = ((q - new) * out[0] / size, (q - new) * out[1] / size, 0.0)
                for name in [handle.name, "eef"] + [s.name for s in self.facts.sites if s.joint == joint.name]:
                    self.state[f"{name}_pos"] = add(self.at(name), move)
            q = self.state[f"{joint.name}_qpos"] = new
            if goal is not None and q == target:
                self.state[f"goal_{goal}"] = True
            yield self.now()
        self.state[f"{handle.name}_touched"] = False

    def slide(self, name: str, target: str, goal: int, upto: str) -> Iterator[State]:
        lo, _ = world_box(next(thing for thing in self.facts.objects if thing.name == name))
        edge = add(self.at(name), (0.0, lo[1] - 0.01, 0.02))
        yield from self.go(add(edge, (0.0, 0.0, 0.1)))
        yield from self.go(edge)
        self.state[f"{name}_touched"] = True
        yield from self.wait(4)
        self.held, self.grip = name, sub(self.at("eef"), self.at(name))
        end = add(self.at(target), self.grip)
        way = sub((end[0], end[1], self.at("eef")[2]), self.at("eef"))
        share = {"grasp": 0.0, "move": 0.7}.get(upto, 1.0)
        yield from self.go(add(self.at("eef"), scale(way, share)))
        self.held = ""
        if share == 1.0:
            self.state[f"goal_{goal}"] = True
            yield self.now()

    def place_of(self, name: str, target: str) -> Vec3:
        """Where the object's origin ends up."""
        lo, _ = world_box(next(thing for thing in self.facts.objects if thing.name == name))
        x, y, z = self.at(target)
        return (x, y, z + 0.01 - (lo[2] if all(s.name != target or not s.joint for s in self.facts.sites) else 0.0) * 0.5)


def _perform(world: _World, k: int, atom: GoalAtom, upto: str = "") -> Iterator[State]:
    """Reach one goal atom; ``upto`` names the part after which to stop."""
    facts = world.facts
    if atom.predicate in ("open", "close", "turnon"):
        joint = facts.joint_of(atom.args[0])
        threshold = next(t for t in joint.thresholds if t.predicate == atom.predicate)
        beyond = threshold.value + (0.004 if threshold.op == "above" else -0.004)
        yield from world.turn(joint, beyond, None if upto else k)
        return
    name, target = atom.args
    site = next((site for site in facts.sites if site.name == target), None)
    if site is not None and site.joint:
        joint = facts.joint_of(target)
        opened = next(t for t in joint.thresholds if t.predicate == "open")
        if joint.start > opened.value + 0.02:
            yield from world.turn(joint, opened.value - 0.01, None)
            yield from world.retreat()
    if "push" in facts.name:
        yield from world.slide(name, target, k, upto)
        return
    yield from world.grasp(name)
    if upto == "grasp":
        return
    yield from world.carry_to(world.place_of(name, target))
    if upto == "move":
        return
    yield from world.drop(world.place_of(name, target), k)
    yield from world.retreat()


def _wrong_object(world: _World, order: list[int]) -> Iterator[State]:
    """Carry something that is no part of the goal to where the goal wants something else."""
    facts = world.facts
    goal = {part for atom in facts.goal for part in atom.args} | {site.parent for site in facts.sites}
    spare = [name for name in facts.names("object") if name not in goal]
    target = facts.goal[order[-1]].args[-1]
    if not spare or f"{target}_pos" not in world.state:
        yield from world.wait(_WAIT)
        return
    yield from world.grasp(spare[0])
    yield from world.carry_to(world.place_of(spare[0], target))
    yield from world.drop(world.place_of(spare[0], target), None)
    yield from world.wait(5)


def kinematic_traces(facts: TaskFacts, n_experts: int = 3, seed: int = 0) -> list[Trace]:
    """
    Episodes of every kind.

    :param n_experts: Successful episodes, from initial states that differ by up to 2 cm.
    :param seed: Seed of the initial states and of the random episode.
    """
    rng = np.random.default_rng(seed)
    wanted = [k for k, atom in enumerate(facts.goal) if not atom.true_at_start]
    order = sorted(wanted, key=lambda k: facts.goal[k].predicate == "close")
    traces: list[Trace] = []

    def record(kind: TraceKind, script: Callable[[_World], Iterator[State]], label: str = "", jitter: float = 0.0) -> None:
        world = _World(facts, rng, jitter)
        states = [world.now()]
        for state in script(world):
            states.append(state)
            if state["success"] or len(states) > facts.horizon:
                break
        traces.append(Trace(facts.task_id, kind, states, label=label, source="kinematic", meta={"seed": seed}))

    def everything(world: _World) -> Iterator[State]:
        for k in order:
            yield from _perform(world, k, facts.goal[k])

    def almost(upto: str) -> Callable[[_World], Iterator[State]]:
        def script(world: _World) -> Iterator[State]:
            for k in order[:-1]:
                yield from _perform(world, k, facts.goal[k])
            yield from _perform(world, order[-1], facts.goal[order[-1]], upto)
            yield from world.wait(facts.horizon if upto == "move" else _WAIT)

        return script

    def wander(world: _World) -> Iterator[State]:
        for _ in range(120):
            yield from world.go(add(world.at("eef"), tuple(rng.uniform(-SPEED, SPEED, 3).tolist())))

    def lift_and_lower(world: _World) -> Iterator[State]:
        name = facts.goal[order[0]].args[0]
        if name in facts.names("object"):
            yield from world.grasp(name)
        eef = world.at("eef")
        for _ in range(6):
            yield from world.go(add(eef, (0.0, 0.0, 0.15)))
            yield from world.go(eef)

    for i in range(n_experts):
        record("expert", everything, str(i), jitter=0.02 if i else 0.0)
    record("noop", lambda world: world.wait(_WAIT))
    record("random", wander)
    record("hover", almost("move"))
    record("oscillate", lift_and_lower)
    record("wrong-object", lambda world: _wrong_object(world, order))
    record("partial", almost("grasp"), "grasp")
    return traces


def task_traces(facts: TaskFacts) -> list[Trace]:
    """The shipped episodes of a task; where none succeeds, kinematic ones."""
    try:
        traces = load_traces(facts.task_id)
    except ValueError:
        traces = []
    if any(trace.kind == "expert" and trace.success_step is not None for trace in traces):
        return traces
    return kinematic_traces(facts)
