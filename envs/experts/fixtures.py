"""Drawers, doors and knobs: opening, closing, turning; and pushing things over the table."""

import numpy as np

from sb3_tgrpo.envs.experts.grasps import FINGERTIP, pose
from sb3_tgrpo.envs.experts.motion import CLOSE, OPEN, Command, Vector, finger_yaw, gripper_down, rotation_of, rotation_vector
from sb3_tgrpo.rewards.facts.task_facts import HandleFacts, JointFacts, TaskFacts
from sb3_tgrpo.rewards.facts.vocabulary import State

_CLOSING_STEPS, _BAR_STEPS = 12, 9
_CLEAR = 0.10
_SLOPE = 0.25
"""How much the hand that takes a drawer's bar points down, radians: lying flat, the arm comes to its limits."""

_PUSH_SLOPE = 0.8
"""The same of the hand that pushes a drawer shut."""
_HOLLOW, _PRESS = 0.006, 0.006
"""Thickness of a flat thing's bottom, and how far the fingers that push it press into it, metres."""


def handle_of(facts: TaskFacts, name: str) -> tuple[HandleFacts, JointFacts]:
    """Handle and joint behind an atom's argument, a region or a fixture; ValueError if it has none."""
    joint = facts.joint_of(name)
    return next(handle for handle in facts.handles if handle.joint == joint.name), joint


def opening_direction(facts: TaskFacts, handle: HandleFacts) -> Vector:
    """Horizontal unit vector (3,) along which a drawer opens: its handle sticks out that way."""
    fixture = next(fixture for fixture in facts.fixtures if fixture.name == handle.fixture)
    rotation = rotation_of(fixture.start_quat)
    way = np.array(handle.start_pos) - np.array(fixture.start_pos)
    # Along one of the fixture's own axes, whichever is nearest.
    local = rotation.T @ np.array([way[0], way[1], 0.0])
    axis = np.zeros(3)
    axis[int(np.argmax(np.abs(local[:2])))] = np.sign(local[int(np.argmax(np.abs(local[:2])))])
    return rotation @ axis


class _Handle:
    """What the skills on handles share."""

    def __init__(self, facts: TaskFacts, k: int, rng: np.random.Generator, detour: float) -> None:
        self.facts = facts
        self.handle, self.joint = handle_of(facts, facts.goal[k].args[-1])
        self._atom = f"goal_{k}"
        self.stage = "approach"
        size = min(1.0, detour / 0.05)
        self._speed = 1.0 - 0.25 * size * float(rng.uniform(0, 1))
        self._offset = 0.006 * size * rng.uniform(-1, 1, 3)
        self._left = False
        self._closing = 0

    def finished(self, state: State) -> bool:
        """The gripper has let go of the handle and is out of the way."""
        self._left = self._left or (not state[f"{self.handle.name}_touched"] and self._clear(state))
        return self._left

    def _clear(self, state: State) -> bool:
        return float(np.linalg.norm(np.array(state["eef_pos"]) - np.array(state[f"{self.handle.name}_pos"]))) > 0.07

    def _position(self, state: State) -> Vector:
        return np.array(state[f"{self.handle.name}_pos"]) + self._offset


class TurnKnob(_Handle):
    """Take a knob by its blade and turn it."""

    _yaw: float | None = None
    """Of the gripper that fits the knob at zero: one of two, kept."""

    def command(self, state: State) -> Command:
        eef, knob = np.array(state["eef_pos"]), self._position(state)
        angle = float(state[f"{self.joint.name}_qpos"])  # type: ignore[arg-type]
        # The blade stands along the fixture's x axis when the knob is at zero, and turns with the joint.
        fixture = next(fixture for fixture in self.facts.fixtures if fixture.name == self.handle.fixture)
        across = rotation_of(fixture.start_quat)[:, 1]
        fingers = rotation_of(state["eef_quat"])[:, 1]  # type: ignore[arg-type]
        if self._yaw is None:
            self._yaw = finger_yaw(across, finger_yaw(fingers))
        now = finger_yaw(fingers, self._yaw + angle)
        yaw = self._yaw + angle
        point = knob + np.array([0.0, 0.0, 0.012])
        if state[self._atom]:
            self.stage = "release"
            up = 0.0 if state[f"{self.handle.name}_touched"] else 0.1
            return Command(eef + np.array([0.0, 0.0, up]), gripper_down(now), OPEN)
        away, down = float(np.linalg.norm((point - eef)[:2])), float(eef[2] - point[2])
        turned = abs(yaw - now)  # how much the hand still has to turn to fit the blade
        if away < 0.015 and down < 0.012 and (turned < 0.15 or self._closing > 0):
            self._closing += 1
            if self._closing > _CLOSING_STEPS:
                self.stage = "turn"
                return Command(point, gripper_down(now + 0.35), CLOSE)
            self.stage = "grasp"
            return Command(point, gripper_down(yaw), CLOSE)
        self._closing = 0
        self.stage = "approach"
        target = point.copy()
        if (away > 0.007 or turned > 0.1) and down > 0.012:
            target[2] += 0.06
        return Command(target, gripper_down(yaw), OPEN, self._speed)


class OpenDrawer(_Handle):
    """Take a drawer's bar from the front, with the hand nearly lying, and pull."""

    def __init__(self, facts: TaskFacts, k: int, rng: np.random.Generator, detour: float) -> None:
        super().__init__(facts, k, rng, detour)
        out = self.out = opening_direction(facts, self.handle)
        up = np.array([0.0, 0.0, 1.0])
        pointing = -out * np.cos(_SLOPE) - up * np.sin(_SLOPE)
        fingers = up * np.cos(_SLOPE) - out * np.sin(_SLOPE)
        self._rotation = np.stack([np.cross(fingers, pointing), fingers, pointing], axis=1)
        self._enough = next(limit.value for limit in self.joint.thresholds if limit.predicate == "open")

    def opened(self, state: State) -> bool:
        """Whether the drawer is open."""
        return float(state[f"{self.joint.name}_qpos"]) < self._enough  # type: ignore[arg-type]

    def shut(self, state: State) -> bool:
        """Whether it is too far shut to put anything in."""
        return float(state[f"{self.joint.name}_qpos"]) > 0.7 * self._enough  # type: ignore[arg-type]

    def ready(self, state: State) -> bool:
        """Open, and the gripper out of the way or never there."""
        if self.stage == "approach":
            return not self.shut(state)
        return self.opened(state) and self.finished(state)

    def _clear(self, state: State) -> bool:
        """Above what is to come."""
        return float((np.array(state["eef_pos"]) - self._position(state))[2]) > 0.08

    def command(self, state: State) -> Command:
        eef, bar = np.array(state["eef_pos"]), self._position(state)
        error = bar - eef
        ahead = float(-error @ self.out)  # distance in front of the bar
        beside = error + ahead * self.out
        if self.opened(state):
            self.stage = "release"
            self._closing = 0
            gone = ahead > 0.05
            if not gone and float(state["gripper_opening"]) < 0.05:  # type: ignore[arg-type]
                return Command(eef, self._rotation, OPEN)
            up = np.array([0.0, 0.0, 1.0 if gone else 0.0])
            return Command(eef + 0.1 * (self.out * (ahead < 0.09) + up), self._rotation, OPEN)
        self._left = False
        if self._closing > 0 or (float(np.linalg.norm(beside)) < 0.012 and abs(ahead) < 0.010):
            self._closing += 1
            if float(np.linalg.norm(beside)) > 0.03 or ahead > 0.04:
                self._closing = 0
            if self._closing > _BAR_STEPS:
                self.stage = "pull"
                # Slower towards the end: a drawer pulled out further than need be is only in the way.
                nearly = float(state[f"{self.joint.name}_qpos"]) < 0.8 * self._enough  # type: ignore[arg-type]
                return Command(eef + 0.08 * self.out, self._rotation, CLOSE, 0.4 if nearly else 0.9)
            self.stage = "grasp"
            return Command(bar, self._rotation, CLOSE)
        self.stage = "approach"
        target = bar.copy()
        across = float(np.linalg.norm(beside[:2]))
        turn = float(np.linalg.norm(rotation_vector(self._rotation @ rotation_of(state["eef_quat"]).T)))  # type: ignore[arg-type]
        if across > 0.02 or turn > 0.2 or (ahead < 0.06 and float(np.linalg.norm(beside)) > 0.02):
            # High over what stands on the table: the hand that lies reaches far below its fingers.
            target += _CLEAR * self.out
            target[2] += 0.10
        elif abs(float(beside[2])) > 0.010 and ahead > 0.03:
            target += _CLEAR * self.out
        return Command(target, self._rotation, OPEN, self._speed)


class CloseDrawer(_Handle):
    """Push a drawer shut: closed fingers against its bar, the hand nearly lying, so that it passes under the bars above."""

    def __init__(self, facts: TaskFacts, k: int, rng: np.random.Generator, detour: float) -> None:
        super().__init__(facts, k, rng, detour)
        self.out = opening_direction(facts, self.handle)

    def command(self, state: State) -> Command:
        eef, bar = np.array(state["eef_pos"]), self._position(state)
        now = rotation_of(state["eef_quat"])  # type: ignore[arg-type]
        error = bar - eef
        ahead = float(-error @ self.out)
        beside = error + ahead * self.out
        pointing = -self.out * np.cos(_PUSH_SLOPE) - np.array([0.0, 0.0, np.sin(_PUSH_SLOPE)])
        fingers = np.cross(self.out, [0.0, 0.0, 1.0])
        fingers *= np.sign(fingers @ now[:, 1]) or 1.0
        rotation = np.stack([np.cross(fingers, pointing), fingers, pointing], axis=1)
        if state[self._atom]:
            self.stage = "release"
            return Command(eef + 0.1 * self.out, rotation, CLOSE)
        turn = float(np.linalg.norm(rotation_vector(rotation @ now.T)))
        if ahead > -0.01 and float(np.linalg.norm(beside)) < 0.025 and turn < 0.35:
            self.stage = "push"
            return Command(bar - 0.08 * self.out, rotation, CLOSE, 0.6)
        self.stage = "approach"
        target = bar + 0.06 * self.out
        if ahead < 0.03 or float(np.linalg.norm(beside[:2])) > 0.02 or turn > 0.35:  # over it, then down in front
            target[2] += 0.16
            if eef[2] < target[2] - 0.04 and ahead < 0.03:  # up before across
                target[:2] = eef[:2] + (target[:2] - eef[:2]) * 0.1
        return Command(target, rotation, CLOSE, self._speed)


class Push:
    """
    Push a flat thing over the table, from inside: closed fingers on its hollow, pressed against the rim in front of them.

    Behind the thing the hand would often meet what stands there.

    :param k: Index of an ``on`` atom whose region belongs to the table.
    """

    def __init__(self, facts: TaskFacts, k: int, rng: np.random.Generator, detour: float) -> None:
        atom = facts.goal[k]
        self.thing = next(thing for thing in facts.objects if thing.name == atom.args[0])
        self.target = atom.args[1]
        self._atom = f"goal_{k}"
        self.stage = "approach"
        low, high = np.array(self.thing.aabb_lo), np.array(self.thing.aabb_hi)
        self._radius = float(np.max(high[:2] - low[:2])) / 2
        self._aim = 0.01 * min(1.0, detour / 0.05) * rng.uniform(-1, 1, 2)

    def finished(self, state: State) -> bool:
        """The gripper does not touch it any more."""
        return not state[f"{self.thing.name}_touched"]

    def command(self, state: State) -> Command:
        eef = np.array(state["eef_pos"])
        pos, _ = pose(state, self.thing.name)
        way = (pose(state, self.target)[0] - pos)[:2] + self._aim
        way /= max(float(np.linalg.norm(way)), 1e-6)
        side = np.array([-way[1], way[0]])
        fingers = rotation_of(state["eef_quat"])[:, 1]  # type: ignore[arg-type]
        down = gripper_down(finger_yaw(side, finger_yaw(fingers)))
        if state[self._atom]:
            self.stage = "release"
            return Command(eef + np.array([0.0, 0.0, 0.1]), down, CLOSE)
        bottom = float(pos[2]) + _HOLLOW + FINGERTIP
        along, beside = float((eef - pos)[:2] @ way), float((eef - pos)[:2] @ side)
        inside = abs(beside) < 0.3 * self._radius and -0.1 * self._radius < along < 0.9 * self._radius
        if inside and eef[2] < bottom + (0.012 if self.stage == "push" else 0.004):
            self.stage = "push"
            target = np.array([*(eef[:2] + 0.03 * way - beside * side), bottom - _PRESS])
            return Command(target, down, CLOSE, 0.6)
        self.stage = "approach"
        target = np.array([*(pos[:2] + 0.4 * self._radius * way), bottom])
        if float(np.linalg.norm((eef - target)[:2])) > 0.015:
            target[2] += 0.07
        return Command(target, down, CLOSE)
