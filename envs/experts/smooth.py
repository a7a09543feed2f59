"""
An expert for small networks to imitate: its action changes gradually with what a camera sees.

:class:`~sb3_tgrpo.envs.experts.scripted.ScriptedExpert` decides by millimetres, counts steps and remembers. A network that
sees the gripper to within a centimetre can't tell its stages apart. The smooth expert comes down a funnel, whose height above
the object follows from the distance across. It remembers nothing but for how long it has felt the object.
"""

import numpy as np

from sb3_tgrpo.envs.experts.grasps import check_graspable, choose_grasp, heights, pose
from sb3_tgrpo.envs.experts.motion import (
    CLOSE,
    OPEN,
    POSITION_SCALE,
    ROTATION_SCALE,
    Vector,
    finger_yaw,
    gripper_down,
    rotation_of,
    rotation_vector,
)
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.facts.vocabulary import State

_HOVER = 0.08
"""Height of the funnel's rim above the grasp, metres."""
_FUNNEL = (0.012, 0.062)
"""Distances across at which the funnel's slope begins and ends, metres."""
_CARRY = 0.05
"""How high above the container's region an object is carried, metres."""
_CLOSED = 0.07
"""A gripper that is open by less is closing, metres."""
_TURNED = 0.3
"""Radians by which the fingers may be askew on the way down."""
_UPRIGHT = 0.08
"""Radians by which the hand may be askew without being turned. A rotation of exactly zero makes robosuite's controller hold
the orientation it has; the smallest other one makes it follow the arm's drift."""
_HELD = 2
"""Steps of contact after which an object counts as held."""


def smoothstep(x: float) -> float:
    """From 0 at 0 to 1 at 1 without a kink."""
    x = float(np.clip(x, 0.0, 1.0))
    return x * x * (3.0 - 2.0 * x)


class SmoothExpert:
    """
    Picks one object up and drops it into a container that stands open, such as a basket: LIBERO-Object's ten tasks, and what
    their scenes hold besides the target (:func:`~sb3_tgrpo.envs.libero.target_variants.target_facts`).

    :param task: ``"libero_object-3"``, a gym id, or task facts.
    :param gain: Units of action per 5 cm of distance; small values make positions matter less.
    :param detour: Metres by which the height of the approach varies from episode to episode.
    :param seed: Seed of that variation.
    :raises ValueError: If the task is of another kind, or the object too wide for the gripper.
    """

    def __init__(self, task: str | TaskFacts, *, gain: float = 0.8, detour: float = 0.0, seed: int | None = None) -> None:
        facts = load_task_facts(task) if isinstance(task, str) else task
        atom = facts.goal[0]
        region = {site.name: site for site in facts.sites}.get(atom.args[-1])
        # A container that is an object itself is open at the top; drawers, caddies and microwaves are fixtures.
        if len(facts.goal) != 1 or atom.predicate != "in" or region is None or region.parent not in facts.names("object"):
            raise ValueError(
                f"task={facts.task_id!r}: the smooth expert puts one object into an open container, as LIBERO-Object asks; "
                "use the scripted expert for other tasks."
            )
        if gain <= 0:
            raise ValueError(f"gain must be positive, got {gain}.")
        self.task_facts = facts
        self.gain = gain
        self.thing = next(thing for thing in facts.objects if thing.name == atom.args[0])
        check_graspable(self.thing)
        self.region = region
        self.stage = "approach"
        self._hover = _HOVER + float(np.random.default_rng(seed).uniform(0.0, detour))
        self._felt = 0

    def act(self, state: State) -> Vector:
        """The action, float32 (7,) in [-1, 1], in a state from ``LiberoEnv.facts()``."""
        felt = bool(state[f"{self.thing.name}_grasped"])
        self._felt = min(self._felt + 1, 2 * _HELD) if felt else max(self._felt - 1, 0)
        hand = rotation_of(state["eef_quat"])  # type: ignore[arg-type]
        grasp = choose_grasp(state, self.task_facts, self.thing, np.random.default_rng(0))
        point, yaw = grasp.place(*pose(state, self.thing.name), 0.0)
        if self._felt >= _HELD:
            shift, gripper = self._carry(state)
            yaw = finger_yaw(hand[:, 1], yaw)
        else:
            shift, gripper = self._pick(state, point, abs(finger_yaw(hand[:, 1], yaw) - yaw))
        move = np.clip(shift * (self.gain / POSITION_SCALE), -1.0, 1.0)
        turn = rotation_vector(gripper_down(yaw) @ hand.T)
        if np.abs(turn).max() < _UPRIGHT:
            turn[:] = 0.0
        turn /= ROTATION_SCALE
        return np.array([*move, *(turn / max(1.0, float(np.abs(turn).max()))), gripper], np.float32)

    def _pick(self, state: State, point: Vector, askew: float) -> tuple[Vector, float]:
        """Down a funnel towards the grasp; close when there, and keep closing while not far off."""
        eef, pos = np.array(state["eef_pos"]), np.array(state[f"{self.thing.name}_pos"])
        target = np.array(state[f"{self.region.name}_pos"])
        if np.linalg.norm((target - pos)[:2]) < 0.06 and pos[2] > self.thing.start_pos[2] + 0.01:
            self.stage = "release"  # it is falling into the container
            return np.zeros(3), OPEN
        error = point - eef
        across = float(np.linalg.norm(error[:2]))
        closing = float(state["gripper_opening"]) < _CLOSED  # type: ignore[arg-type]
        tolerance, height = (0.02, 0.02) if closing else (0.013, 0.011)
        if across < tolerance and abs(error[2]) < height and askew < _TURNED:
            self.stage = "grasp"
            return error, CLOSE
        self.stage = "approach"
        low, high = _FUNNEL
        rise = 1.0 if askew > _TURNED else smoothstep((across - low) / (high - low))
        return error + np.array([0.0, 0.0, self._hover * rise]), OPEN

    def _carry(self, state: State) -> tuple[Vector, float]:
        """Up, across once high enough, a little down over the container, and open."""
        self.stage = "carry"
        pos, rotation = pose(state, self.thing.name)
        target = np.array(state[f"{self.region.name}_pos"])
        across = float(np.linalg.norm((target - pos)[:2]))
        clear = float(target[2]) + self.region.half_size[2] - heights(self.thing, rotation)[0]
        lifted = smoothstep((pos[2] - self.thing.start_pos[2] - 0.02) / 0.05)
        above = smoothstep((pos[2] - clear + 0.03) / 0.04)
        if across < 0.04:
            above = max(above, 1.0 - smoothstep((across - 0.03) / 0.08))
        way = (target - pos)[:2] * (lifted if across > 0.14 else min(lifted, above))
        height = clear + _CARRY - 0.03 * (1.0 - smoothstep((across - 0.02) / 0.04))
        gripper = OPEN if across < 0.03 and pos[2] < clear + 0.045 else CLOSE
        return np.array([*way, height - pos[2]]), gripper
