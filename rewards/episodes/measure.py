"""
What successful episodes measured: the numbers behind thresholds and key poses.

An object's origin is where its modeller put it: at the base of bowls, in the middle of cans. Whether "5 cm from the origin"
can be reached, how high an object is lifted or where the gripper is at release is read from episodes that succeeded.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from sb3_tgrpo.rewards.episodes.traces import Trace
from sb3_tgrpo.rewards.facts import helpers
from sb3_tgrpo.rewards.facts.task_facts import ObjectFacts, TaskFacts, Vec3
from sb3_tgrpo.rewards.facts.vocabulary import State
from sb3_tgrpo.rewards.program.spec import DEBOUNCE_STEPS

_RIM = ("bowl", "mug", "plate", "ramekin", "frypan")


@dataclass(frozen=True)
class MeasuredGrasp:
    """
    How an object is held.

    :param height: Height of the gripper over the object's origin when the grasp closes.
    :param radius: Horizontal distance of the gripper from the origin then: the rim of a bowl, about 0 for a can.
    :param opening: Opening of the gripper while carrying; NaN if not measured.
    :param lift: Smallest greatest rise of the object over its start; NaN if not measured.
    :param episodes: Successful episodes it was measured on, 0 for a guess from the object's size.
    """

    height: float
    radius: float
    opening: float = math.nan
    lift: float = math.nan
    episodes: int = 0


@dataclass(frozen=True)
class Release:
    """Where the gripper is, relative to the goal's place, when the goal's atom comes true."""

    offset: Vec3
    height: float
    episodes: int = 0


@dataclass(frozen=True)
class Reach:
    """Least distance of the gripper to a handle while the joint moves."""

    distance: float
    episodes: int = 0


@dataclass(frozen=True)
class Measurements:
    """By name: grasps of objects, releases by goal atom, reaches of handles."""

    grasps: dict[str, MeasuredGrasp]
    releases: dict[int, Release]
    reaches: dict[str, Reach]


def world_box(thing: ObjectFacts) -> tuple[Vec3, Vec3]:
    """Corners of an object's collision box along the world's axes, relative to its origin, as it stands at the start."""
    lo, hi = thing.aabb_lo, thing.aabb_hi
    corners = [
        helpers.rotate(thing.start_quat, (x, y, z)) for x in (lo[0], hi[0]) for y in (lo[1], hi[1]) for z in (lo[2], hi[2])
    ]
    low = tuple(min(c[axis] for c in corners) for axis in range(3))
    high = tuple(max(c[axis] for c in corners) for axis in range(3))
    return low, high  # type: ignore[return-value]


def guess_grasp(thing: ObjectFacts) -> MeasuredGrasp:
    """A grasp from the object's size: rims at their edge, the rest over the middle, 2 cm below the top."""
    lo, hi = world_box(thing)
    rim = any(kind in thing.kind for kind in _RIM)
    radius = 0.25 * (hi[0] - lo[0] + hi[1] - lo[1]) if rim else 0.0
    return MeasuredGrasp(height=max(hi[2] - 0.02, 0.5 * (lo[2] + hi[2])), radius=radius)


def measure(facts: TaskFacts, traces: Sequence[Trace]) -> Measurements:
    """Numbers from the successful episodes among ``traces``; guesses from sizes where there are none."""
    experts = [trace for trace in traces if trace.kind == "expert" and trace.success_step is not None]
    grasps = {}
    for thing in facts.objects:
        seen = [g for g in (_grasp(trace.states, thing.name) for trace in experts) if g is not None]
        if not seen:
            grasps[thing.name] = guess_grasp(thing)
            continue
        grasps[thing.name] = MeasuredGrasp(
            height=statistics.median([g.height for g in seen]),
            radius=max(g.radius for g in seen),
            opening=statistics.median([g.opening for g in seen]),
            lift=min(g.lift for g in seen),
            episodes=len(seen),
        )
    releases = {}
    for k, atom in enumerate(facts.goal):
        found = [r for r in (_release(trace.states, k, atom.args) for trace in experts) if r is not None]
        if found:
            x, y, z = (statistics.median([r.offset[axis] for r in found]) for axis in range(3))
            releases[k] = Release((x, y, z), statistics.median([r.height for r in found]), len(found))
    reaches = {}
    for handle in facts.handles:
        near = [d for d in (_reach(trace.states, handle.name, f"{handle.joint}_qpos") for trace in experts) if d is not None]
        reaches[handle.name] = Reach(max(near), len(near)) if near else Reach(0.03)
    return Measurements(grasps, releases, reaches)


def _grasp(states: Sequence[State], name: str) -> MeasuredGrasp | None:
    held = [bool(state[f"{name}_grasped"]) for state in states]
    start: float = states[0][f"{name}_pos"][2]  # type: ignore[index]
    lift = max(state[f"{name}_pos"][2] for state in states) - start  # type: ignore[index]
    if lift < 0.02:
        return None
    # A failed first attempt also closes on the object: the grasp that counts is the one that precedes the rise.
    risen = next(t for t, state in enumerate(states) if state[f"{name}_pos"][2] > start + 0.02)  # type: ignore[index]
    t = next((t for t in range(risen, DEBOUNCE_STEPS - 2, -1) if not held[t - 1] and all(held[t : t + DEBOUNCE_STEPS])), None)
    if t is None:
        return None
    x, y, z = helpers.sub(states[t]["eef_pos"], states[t][f"{name}_pos"])  # type: ignore[arg-type]
    carried = [float(state["gripper_opening"]) for state, h in zip(states, held, strict=True) if h]  # type: ignore[arg-type]
    return MeasuredGrasp(z, math.hypot(x, y), statistics.median(carried), lift, 1)


def _release(states: Sequence[State], k: int, args: tuple[str, ...]) -> Release | None:
    t = next((t for t, state in enumerate(states) if state[f"goal_{k}"]), None)
    if not t or len(args) < 2 or f"{args[1]}_pos" not in states[0]:
        return None
    target: Vec3 = states[t][f"{args[1]}_pos"]  # type: ignore[assignment]
    offset = helpers.sub(states[t]["eef_pos"], target)  # type: ignore[arg-type]
    height = states[t][f"{args[0]}_pos"][2] - target[2]  # type: ignore[index]
    return Release(offset, float(height), 1)


def _reach(states: Sequence[State], handle: str, joint: str) -> float | None:
    values: list[float] = [state[joint] for state in states]  # type: ignore[misc]
    moving = [t for t in range(1, len(values)) if abs(values[t] - values[0]) > 0.01]
    if not moving:
        return None
    began = moving[0]
    window = states[max(began - 5, 0) : began + 1]
    return min(helpers.distance(state["eef_pos"], state[f"{handle}_pos"]) for state in window)  # type: ignore[arg-type]
