"""Picking an object up and putting it into a container, onto another object, or onto a region."""

from collections.abc import Sequence

import numpy as np

from sb3_tgrpo.envs.experts.grasps import (
    FINGERTIP,
    PALM_DEPTH,
    Grasp,
    box_of,
    check_graspable,
    choose_grasp,
    heights,
    obstacles,
    pose,
)
from sb3_tgrpo.envs.experts.motion import CLOSE, OPEN, Command, Vector, about_axis, finger_yaw, gripper_down, rotation_of
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts
from sb3_tgrpo.rewards.facts.vocabulary import State

_HELD_STEPS = 3
"""A grasp counts after so many steps of contact, and is lost after as many without."""
_CLOSING_STEPS = 16
"""A grasp that has not come about after so many steps of closing has failed."""
_RELEASE_STEPS = 15
"""Time for an object to fall into place."""
_STUCK_STEPS = 20
"""Without a new closest approach for so many steps, the way is blocked: another grasp is tried."""
_UPRIGHT = -0.8
"""Vertical part of the direction in which the hand points: above this it is lying, and moves nowhere before it is raised."""
_NEAR = 0.12
"""Closer than this to what is higher, an object is lifted straight up, metres: the hand is 0.2 m wide."""
_UNDER = 0.06
"""What is at least this far above the table juts out over things, metres."""
_HAND_HEIGHT, _MOST_LEAN = 0.15, 0.35
"""Height above the fingertips at which the hand is to be clear of what juts out, metres, and how far it leans for that."""
_WIDE_OPEN = 0.074
"""Opening at which the fingers hold nothing, whatever they touch, metres."""
_NARROW = 0.05
"""Half width below which an opening wants the object turned to fit, metres."""


def _ends_of_hand(point: Vector, fingers: Vector) -> list[tuple[Vector, float]]:
    """The hand above a point: two points along the direction in which the fingers open, each with its half width."""
    return [(point + 0.085 * side * fingers, 0.04) for side in (-1, 1)]


class Place:
    """
    Pick an object up and put it where an ``in`` or ``on`` atom wants it.

    Held or not, and where it is, decide what happens: above the object, down, close, lift, across, down, open, away. Only
    three things are remembered: the grasp chosen, for how long the gripper has been closing, and how long ago it let go.

    :param detour: Size of this episode's variation, metres.
    :raises ValueError: If the object is too wide for the gripper.
    """

    def __init__(self, facts: TaskFacts, k: int, rng: np.random.Generator, detour: float) -> None:
        atom = facts.goal[k]
        self.facts = facts
        self.predicate = atom.predicate
        self.thing = next(thing for thing in facts.objects if thing.name == atom.args[0])
        check_graspable(self.thing)
        self.target = atom.args[1]
        self.site = next((site for site in facts.sites if site.name == self.target), None)
        self.target_object = next((thing for thing in facts.objects if thing.name == self.target), None)
        self._parent_is_object = self.site is not None and self.site.parent in facts.names("object")
        # Where several objects go onto one region, side by side.
        others = [
            j for j, other in enumerate(facts.goal) if self.site and (other.predicate, other.args[1:]) == ("on", atom.args[1:])
        ]
        self._slot = others.index(k) - (len(others) - 1) / 2 if len(others) > 1 else 0.0
        self._narrow: int | None = None  # axis of the region in which it is narrow
        if atom.predicate == "in" and self.site is not None:
            half = np.where(np.abs(rotation_of(self.site.start_quat)[2]) < 0.5, self.site.half_size, np.inf)
            self._narrow = int(np.argmin(half)) if half.min() < _NARROW else None
        self._atom = f"goal_{k}"
        self._rng = rng
        self._detour = detour
        self.stage = "approach"
        self._grasp: Grasp | None = None
        self._yaw = 0.0
        self._held = 0
        self._closing = 0
        self._since_release = _RELEASE_STEPS
        self._retreat = 0
        self._left = False
        self._closest, self._waited = np.inf, 0
        self._failed: list[Grasp] = []
        self._from = -np.inf
        size = min(1.0, detour / 0.05)
        self._hover = 0.06 + 0.04 * size * float(rng.uniform(0, 1))
        self._extra_height = 0.05 * size * float(rng.uniform(0, 1))
        self._side_step = detour * rng.uniform(-1, 1, 2)
        self._aim = 0.01 * size * rng.uniform(-1, 1, 2)
        self._speed = 1.0 - 0.25 * size * float(rng.uniform(0, 1))

    def _holds(self, state: State) -> bool:
        """Debounced: contact flags of a held rim drop out for single steps."""
        if state[f"{self.thing.name}_grasped"]:
            self._held = min(self._held + 1, 2 * _HELD_STEPS)
        elif self._held > 0:
            self._held = self._held - 1 if state[f"{self.thing.name}_touched"] else 0
        return self._held >= _HELD_STEPS

    def _surface(self, state: State) -> tuple[Vector, float]:
        """Where the object is to go: a point, and the height above which nothing of the target stands."""
        pos, rotation = pose(state, self.target)
        if self.site is not None:
            return pos, float(pos[2] + np.abs(rotation[2]) @ np.array(self.site.half_size))
        assert self.target_object is not None
        return pos, float(pos[2] + heights(self.target_object, rotation)[1])

    def goal(self, state: State) -> tuple[Vector, float]:
        """Where the object's origin is to be when the gripper opens, and how high its lowest point must be on the way."""
        _, rotation = pose(state, self.thing.name)
        below = -heights(self.thing, rotation)[0]
        point, top = self._surface(state)
        aim = point + np.array([*self._aim, 0.0])
        if self.predicate == "in":
            # Let go just above the region, so that it ends with the release; but guide it into a narrow one.
            aim[2] = top - 0.02 if self._narrow is not None else top + 0.022
            # The walls of LIBERO's fixtures stand above their regions.
            return aim, top + (0.02 if self._parent_is_object else 0.05)
        aim[2] = top + below + 0.008
        if self._slot:
            half = box_of(self.thing)[1]
            narrow = rotation[:, min((0, 1), key=lambda axis: half[axis])] * [1, 1, 0]
            aim += self._slot * (2 * min(half[:2]) + 0.008) * narrow * np.sign(narrow[:2].sum())
        return aim, top + 0.02

    def _fitting_yaw(self, state: State) -> float:
        """The gripper's yaw on the way: as it grasped, unless the opening is narrow."""
        if self._narrow is not None:
            return finger_yaw(pose(state, self.target)[1][:, self._narrow], self._yaw)
        return self._yaw

    def _obstacle_height(self, state: State, start: Vector, end: Vector, margin: float, ignore: tuple[str, ...]) -> float:
        """Top of the highest obstacle near the straight way between two points; the support where there is none."""
        points = start[:2] + np.linspace(0.0, 1.0, 9)[:, None] * (end - start)[:2]
        tops = [
            obstacle.top
            for obstacle in obstacles(state, self.facts, ignore)
            if float(obstacle.distance(points).min()) < margin
        ]
        return max(tops, default=self.facts.support_z)

    def _room(self, state: State, pos: Vector, eef: Vector, height: float) -> float:
        """From 1 where nothing that is higher than ``height`` is near to 0 where the object or the hand might meet it."""
        points = np.array([pos[:2], eef[:2]])
        near = [
            float(obstacle.distance(points).min())
            for obstacle in obstacles(state, self.facts, (self.thing.name,))
            if obstacle.top > height
        ]
        return float(np.clip((min(near, default=1.0) - _NEAR) / 0.1, 0.0, 1.0))

    def _from_under(self, state: State, parts: Sequence[tuple[Vector, float]]) -> Vector:
        """The way (2,) that takes points, each with a margin, from under what juts out over them."""
        ways = [
            obstacle.way_out(point, margin)
            for obstacle in obstacles(state, self.facts, (self.thing.name,))
            if obstacle.bottom > self.facts.support_z + _UNDER
            for point, margin in parts
        ]
        return max(ways, key=lambda way: float(np.linalg.norm(way)), default=np.zeros(2))

    def _hand(self, state: State, point: Vector, yaw: float) -> Vector:
        """The rotation of a hand above a point: leaning away from what juts out over it."""
        down = gripper_down(yaw)
        way = self._from_under(state, _ends_of_hand(point, down[:, 1]))
        far = float(np.linalg.norm(way))
        if far == 0:
            return down
        axis = np.array([-way[1], way[0], 0.0]) / far
        return about_axis(axis, min(far / _HAND_HEIGHT, _MOST_LEAN)) @ down

    def finished(self, state: State) -> bool:
        """The object is where it belongs and the gripper has been clear of it."""
        if not self._left and not state[f"{self.thing.name}_touched"]:
            pos, rotation = pose(state, self.thing.name)
            top = pos[2] + heights(self.thing, rotation)[1]
            self._left = float(state["eef_pos"][2]) > top + 0.04  # type: ignore[index]
        return self._left

    def command(self, state: State) -> Command:
        eef = np.array(state["eef_pos"])
        held = self._holds(state)
        self._since_release += 1
        if state[self._atom] or self._since_release < _RELEASE_STEPS:
            return self._let_go(state, eef)
        self._left = False
        if held:
            if self._held == _HELD_STEPS and self.stage == "grasp":
                self._from = float(state[f"{self.thing.name}_pos"][2])  # type: ignore[index]
                self._closest, self._waited = np.inf, 0
            self._retreat = 0
            return self._carry(state, eef)
        return self._pick(state, eef)

    def _let_go(self, state: State, eef: Vector) -> Command:
        self.stage = "release"
        self._grasp = None
        self._held = 0
        free = not state[f"{self.thing.name}_touched"] or float(state["gripper_opening"]) > _WIDE_OPEN  # type: ignore[arg-type]
        up = 0.1 if free else 0.0
        return Command(eef + np.array([0.0, 0.0, up]), gripper_down(self._yaw), OPEN)

    def _pick(self, state: State, eef: Vector) -> Command:
        pos, rotation = pose(state, self.thing.name)
        if self._grasp is None:
            shift = self.goal(state)[0] - pos
            self._grasp = choose_grasp(state, self.facts, self.thing, self._rng, self._detour, self._failed, shift)
            self._closing, self._closest, self._waited = 0, np.inf, 0
            self._yaw = self._grasp.place(pos, rotation, 0.0)[1]
        point, self._yaw = self._grasp.place(pos, rotation, self._yaw)
        error = point - eef
        across, down = float(np.linalg.norm(error[:2])), float(error[2])
        turn = abs(finger_yaw(rotation_of(state["eef_quat"])[:, 1], self._yaw) - self._yaw)  # type: ignore[arg-type]
        target = point.copy()

        if self._retreat > 0:
            self._retreat -= 1
            self.stage = "approach"
            return Command(eef + np.array([0.0, 0.0, 0.1]), gripper_down(self._yaw), OPEN)
        if self._closing > 0 or (across < 0.010 and abs(down) < 0.008 and turn < 0.15):
            self._closing += 1
            self.stage = "grasp"
            if self._closing > _CLOSING_STEPS or across > 0.03:
                self._give_up()
            return Command(target, self._hand(state, point, self._yaw), CLOSE)

        self.stage = "approach"
        distance = float(np.linalg.norm(error)) + 0.1 * turn
        self._waited = 0 if distance < self._closest - 0.002 else self._waited + 1
        self._closest = min(self._closest, distance)
        if self._waited > _STUCK_STEPS:
            self._give_up()
        top = pos[2] + heights(self.thing, rotation)[1] + FINGERTIP + 0.005
        # Down only when well aligned: a finger that meets a rim from above stays there. Once down, some drift is fine.
        tolerance, askew = (0.007, 0.1) if eef[2] > top else (0.02, 0.3)
        if across > tolerance or turn > askew:
            clear = self._obstacle_height(state, eef, point, 0.08, (self.thing.name,)) + FINGERTIP
            safe = max(top, clear, point[2]) + 0.015
            hover = max(point[2] + self._hover, safe)
            far = float(np.clip((across - 0.02) / 0.10, 0.0, 1.0))
            target[2] = hover if far > 0 else max(safe, point[2])
            target[:2] += self._side_step * far
            lying = float(rotation_of(state["eef_quat"])[2, 2]) > _UPRIGHT  # type: ignore[arg-type]
            if lying:
                target[2] = max(target[2], float(eef[2]))
            if (eef[2] < safe - 0.01 or lying) and across > 0.04:  # up before across
                target[:2] = eef[:2] + (target[:2] - eef[:2]) * 0.1
        return Command(target, self._hand(state, point, self._yaw), OPEN, self._speed)

    def _give_up(self) -> None:
        """Back off, then try another grasp."""
        assert self._grasp is not None
        self._failed.append(self._grasp)
        self._closing, self._retreat, self._grasp = 0, 8, None

    def _carry(self, state: State, eef: Vector) -> Command:
        pos, rotation = pose(state, self.thing.name)
        self._closing = 0
        aim, clearance = self.goal(state)
        below = -heights(self.thing, rotation)[0]
        across = float(np.linalg.norm((aim - pos)[:2]))
        tight = self._narrow is not None
        fitting = self._fitting_yaw(state)
        carrying = gripper_down(fitting)
        turn = abs(finger_yaw(rotation_of(state["eef_quat"])[:, 1], fitting) - fitting)  # type: ignore[arg-type]
        begin, keep = (0.007, 0.015) if tight else (0.012, 0.03)
        lowering = self.stage == "lower"
        if across < (keep if lowering else begin) and (turn < 0.05 or lowering or not tight):
            if pos[2] < aim[2] + 0.006:
                self._since_release = 0
                return self._let_go(state, eef)
            self.stage = "lower"
            return Command(eef + (aim - pos), carrying, CLOSE, 0.3 if tight else 0.6)
        margin = 0.03 + float(np.linalg.norm((np.abs(rotation) @ box_of(self.thing)[1])[:2]))
        others = (self.thing.name, self.target, self.site.parent if self.site is not None else "")
        above = self._obstacle_height(state, pos, aim, margin, others) + 0.03
        hand = self._obstacle_height(state, eef, eef + aim - pos, 0.11, others) - PALM_DEPTH + 0.005
        height = max(max(clearance, above) + below, hand - float(eef[2] - pos[2]), self._from + 0.05)
        height += self._extra_height
        self._waited = 0 if across < self._closest - 0.002 or pos[2] < height - 0.03 else self._waited + 1
        self._closest = min(self._closest, across)
        if self._waited > _STUCK_STEPS and self._extra_height < 0.15:
            self._extra_height += 0.05
            self._waited = 0
        target = aim.copy()
        target[2] = height
        if pos[2] < height - 0.03:
            self.stage = "lift"
            target[:2] = pos[:2] + (aim - pos)[:2] * 0.05 * self._room(state, pos, eef, float(pos[2]) - below)
            radius = float((np.abs(rotation) @ box_of(self.thing)[1])[:2].max()) + 0.015
            fingers = rotation_of(state["eef_quat"])[:, 1]  # type: ignore[arg-type]
            aside = self._from_under(state, [(pos, radius), *_ends_of_hand(eef, fingers)])
            carrying = self._hand(state, eef, fitting)
            if aside.any():
                target[:2] = pos[:2] + aside
                if float(np.linalg.norm(aside)) > 0.02:
                    target[2] = max(self._from + 0.015, float(pos[2]) - 0.02)
            return Command(eef + (target - pos), carrying, CLOSE, 0.5 * self._speed)
        self.stage = "move"
        far = float(np.clip((across - 0.03) / 0.10, 0.0, 1.0))
        target[:2] += self._side_step * far
        return Command(eef + (target - pos), carrying, CLOSE, self._speed)
