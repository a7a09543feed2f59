"""How scripted experts hold things: grasp poses from an object's box, or on its rim or handle where the box is too wide."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from sb3_tgrpo.envs.experts.motion import Vector, finger_yaw, rotation_of
from sb3_tgrpo.rewards.facts.task_facts import ObjectFacts, TaskFacts
from sb3_tgrpo.rewards.facts.vocabulary import State

PALM_DEPTH = 0.024
"""How far below the top of an object the fingertips may go before the palm meets it, metres."""
MAX_WIDTH = 0.074
"""Widest thing that the fingers go around, metres."""
FINGERTIP = 0.0085
"""How far the fingers reach below the point between the fingertips, metres."""
DRAWER_WALL = 0.01
"""By how much a drawer is larger than the region in it, metres."""
DRAWER_BAR = (0.05, 0.02, 0.01)
"""Half sizes of a drawer's handle in the fixture's frame, metres."""


@dataclass(frozen=True)
class Rim:
    """
    A hollow round object that is held by its wall.

    :param center: Axis of the wall in the body's frame, x and y, metres.
    :param radius: Radius of the middle of the wall, metres.
    :param depth: Depth of the fingertips below the top, metres.
    :param gap: Half width, in radians around ``blocked``, that is not graspable (a mug's handle).
    :param blocked: Direction of the handle in the body's frame, radians.
    """

    center: tuple[float, float]
    radius: float
    depth: float
    gap: float = 0.0
    blocked: float = 0.0


@dataclass(frozen=True)
class Spot:
    """
    One place on the object where the fingers go.

    :param point: Position in the body's frame, metres.
    :param axis: Direction along which the fingers close, in the body's frame.
    """

    point: tuple[float, float, float]
    axis: tuple[float, float, float]


RIMS: Mapping[str, Rim] = MappingProxyType(
    {
        "akita_black_bowl": Rim((0.0, 0.0), 0.047, 0.018),
        "porcelain_mug": Rim((0.0125, -0.001), 0.042, 0.025, gap=0.7, blocked=np.pi),
        "white_yellow_mug": Rim((-0.0185, 0.0), 0.047, 0.025, gap=0.7, blocked=0.0),
        "red_coffee_mug": Rim((0.0125, -0.001), 0.042, 0.025, gap=0.7, blocked=np.pi),
        "plate": Rim((0.0, 0.0), 0.064, 0.012),
    }
)
"""By object kind: what is held by its wall."""

FIXTURES: Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = MappingProxyType(
    {
        "wooden_cabinet": ((-0.123, -0.110, 0.0), (0.131, 0.112, 0.223)),
        "white_cabinet": ((-0.131, -0.112, 0.0), (0.131, 0.112, 0.223)),
        "flat_stove": ((-0.055, -0.095, -0.02), (0.245, 0.095, 0.026)),
        "wine_rack": ((-0.134, -0.124, 0.0), (0.134, 0.129, 0.33)),
        "desk_caddy": ((-0.075, -0.217, 0.0), (0.075, 0.217, 0.168)),
        "microwave": ((-0.23, -0.17, 0.0), (0.23, 0.17, 0.20)),
    }
)
"""By fixture kind: lower and upper corner of its box in the body's frame, closed, metres."""

SPOTS: Mapping[str, Spot] = MappingProxyType({"moka_pot": Spot((0.0, 0.073, 0.040), (1.0, 0.0, 0.0))})
"""By object kind: what is held by its handle."""


@dataclass(frozen=True)
class Grasp:
    """
    A grasp of an object, pointing down.

    :param point: Point between the fingertips, in the object's frame, (3,).
    :param axis: Direction along which the fingers close, in the object's frame, (3,).
    """

    point: Vector
    axis: Vector

    def place(self, pos: Vector, rotation: Vector, near_yaw: float) -> tuple[Vector, float]:
        """
        The point in the world, and the gripper's yaw, for an object's position and rotation (3, 3): of the two solutions,
        which are half a turn apart, the one that is nearer to ``near_yaw``.
        """
        return pos + rotation @ self.point, finger_yaw(rotation @ self.axis, near_yaw)


def box_of(thing: ObjectFacts) -> tuple[Vector, Vector]:
    """Centre and half sizes of an object's box in its own frame."""
    low, high = np.array(thing.aabb_lo), np.array(thing.aabb_hi)
    return (low + high) / 2, (high - low) / 2


def heights(thing: ObjectFacts, rotation: Vector) -> tuple[float, float]:
    """How far an object reaches below and above its origin at this rotation, metres (the first is negative)."""
    center, half = box_of(thing)
    middle, extent = float((rotation @ center)[2]), float(np.abs(rotation[2]) @ half)
    return middle - extent, middle + extent


def pose(state: State, name: str) -> tuple[Vector, Vector]:
    """Position (3,) and rotation (3, 3) of an object, fixture or site."""
    return np.array(state[f"{name}_pos"]), rotation_of(state[f"{name}_quat"])  # type: ignore[arg-type]


@dataclass(frozen=True)
class Obstacle:
    """
    A box that stands in the way.

    :param name: Name of the object or fixture.
    :param center: (2,), horizontal, world frame.
    :param axes: (2, 2), its horizontal axes as columns.
    :param half: (2,), half sizes along them.
    :param top: Height of its top.
    :param bottom: Height of its lower side.
    """

    name: str
    center: Vector
    axes: Vector
    half: Vector
    top: float
    bottom: float

    def way_out(self, point: Vector, margin: float) -> Vector:
        """The shortest horizontal way (2,) that takes a point out of the box and ``margin`` away from its sides."""
        local = self.axes.T @ (point[:2] - self.center)
        excess = self.half + margin - np.abs(local)
        if excess.min() <= 0:
            return np.zeros(2)
        side = int(np.argmin(excess))
        return np.array(self.axes[:, side] * np.copysign(excess[side], local[side]))

    def distance(self, points: Vector) -> Vector:
        """Horizontal distance of points (n, 2) to the box, 0 inside, (n,)."""
        inside = np.abs((points - self.center) @ self.axes) - self.half
        return np.linalg.norm(np.maximum(inside, 0.0), axis=1)


def obstacles(state: State, facts: TaskFacts, ignore: Sequence[str] = ()) -> list[Obstacle]:
    """Movable objects, fixtures and the goal's drawers as boxes, without those named in ``ignore``."""
    boxes = [(thing.name, *pose(state, thing.name), *box_of(thing)) for thing in facts.objects]
    for fixture in facts.fixtures:
        if fixture.kind in FIXTURES:
            low, high = np.array(FIXTURES[fixture.kind])
            boxes.append((fixture.name, *pose(state, fixture.name), (low + high) / 2, (high - low) / 2))
    middle = np.zeros(3)
    for site in facts.sites:
        for handle in facts.handles:
            if site.joint and handle.joint == site.joint:
                boxes.append((site.name, *pose(state, site.name), middle, np.array(site.half_size) + DRAWER_WALL))
                rotation = pose(state, handle.fixture)[1]
                boxes.append((handle.name, np.array(state[f"{handle.name}_pos"]), rotation, middle, np.array(DRAWER_BAR)))
    return [_obstacle(*box) for box in boxes if box[0] not in ignore]


def _obstacle(name: str, pos: Vector, rotation: Vector, center: Vector, half: Vector) -> Obstacle:
    middle = pos + rotation @ center
    up = int(np.argmax(np.abs(rotation[2])))
    sides = [axis for axis in range(3) if axis != up]
    axes = rotation[:2, sides] / np.maximum(np.linalg.norm(rotation[:2, sides], axis=0), 1e-9)
    height = float(np.abs(rotation[2]) @ half)
    return Obstacle(name, middle[:2], axes, half[sides], float(middle[2]) + height, float(middle[2]) - height)


def _crowding(point: Vector, direction: Vector, around: Sequence[Obstacle]) -> float:
    """How deep the open fingers, and the palm above them, would be inside obstacles, metres; 0 if they are free."""
    depth = 0.0
    along = direction[:2] / max(float(np.linalg.norm(direction[:2])), 1e-9)
    for reach, low, margin in ((0.05, -FINGERTIP, 0.022), (0.085, PALM_DEPTH, 0.035)):
        parts = point[:2] + np.array([[-reach], [reach]]) * along
        for obstacle in around:
            if obstacle.top > point[2] + low:
                depth += float(np.maximum(margin - obstacle.distance(parts), 0.0).sum())
                depth += sum(float(np.linalg.norm(obstacle.way_out(part, 0.0))) for part in parts)
    return depth


def check_graspable(thing: ObjectFacts) -> None:
    """
    :raises ValueError: If an object, as it stands at the start, is too wide for the gripper and no wall or handle of its kind
        is known.
    """
    if thing.kind in RIMS or thing.kind in SPOTS:
        return
    half = box_of(thing)[1]
    up = int(np.argmax(np.abs(rotation_of(thing.start_quat)[2])))
    width = 2 * min(half[axis] for axis in range(3) if axis != up)
    if width > MAX_WIDTH:
        raise ValueError(f"{thing.name} is {width:.3f} m wide; the gripper goes around {MAX_WIDTH} m.")


def choose_grasp(
    state: State,
    facts: TaskFacts,
    thing: ObjectFacts,
    rng: np.random.Generator,
    spread: float = 0.0,
    failed: Sequence[Grasp] = (),
    shift: Vector | None = None,
) -> Grasp:
    """
    Where to hold an object now: across its narrower side; where that is too wide, at its wall or handle, on the side that is
    free of neighbours and near the robot's present orientation.

    :param rng: Generator for the choice among equally good grasps.
    :param spread: Variation of the choice, metres.
    :param failed: Grasps that did not work out: others are preferred.
    :param shift: (3,), from where the object is to where it goes: a grasp is to be free of obstacles there, too.
    """
    rotation = pose(state, thing.name)[1]
    if thing.kind in SPOTS:
        spot = SPOTS[thing.kind]
        return Grasp(np.array(spot.point), np.array(spot.axis))
    if thing.kind in RIMS:
        return _rim_grasp(state, facts, thing, rng, spread, failed, shift)
    center, half = box_of(thing)
    up = int(np.argmax(np.abs(rotation[2])))
    sides = [axis for axis in range(3) if axis != up]
    close, along = sorted(sides, key=lambda axis: half[axis])
    bottom, top = heights(thing, rotation)
    # In the middle of its height, but not deeper than the palm allows nor lower than the fingers reach above the support.
    middle = (bottom + top) / 2
    height = max(middle, top - PALM_DEPTH, bottom + FINGERTIP + 0.002)
    point = np.array(center)
    # Further from the middle with each failure, to alternate sides.
    shift = min(0.3 * len(failed), 0.7) * half[along] * (-1) ** len(failed)
    point[along] += shift + float(rng.uniform(-1, 1)) * min(spread, 0.3 * half[along])
    point += rotation.T @ np.array([0.0, 0.0, height - (rotation @ point)[2]])
    axis = np.zeros(3)
    axis[close] = 1.0
    return Grasp(point, axis)


def _rim_grasp(
    state: State,
    facts: TaskFacts,
    thing: ObjectFacts,
    rng: np.random.Generator,
    spread: float,
    failed: Sequence[Grasp],
    shift: Vector | None,
) -> Grasp:
    rim = RIMS[thing.kind]
    pos, rotation = pose(state, thing.name)
    around = obstacles(state, facts, (thing.name,))
    now = finger_yaw(rotation_of(state["eef_quat"])[:, 1])  # type: ignore[arg-type]
    best: tuple[float, Grasp] | None = None
    angles = np.linspace(-np.pi, np.pi, 24, endpoint=False) + float(rng.uniform(-1, 1)) * min(spread, 0.03) * 4
    for angle in angles:
        if rim.gap and abs((angle - rim.blocked + np.pi) % (2 * np.pi) - np.pi) < rim.gap:
            continue
        direction = np.array([np.cos(angle), np.sin(angle), 0.0])
        top = thing.aabb_hi[2] - rim.depth
        point = np.array([*rim.center, 0.0]) + rim.radius * direction + np.array([0.0, 0.0, top])
        world, outward = pos + rotation @ point, rotation @ direction
        turn = abs(finger_yaw(outward, now) - now)
        # Near the robot's base rather than behind the object, little turning, and free of neighbours above all.
        crowding = _crowding(world, outward, around)
        if shift is not None:
            crowding += _crowding(world + shift, outward, around)
        cost = 20 * crowding + 0.3 * turn + 0.5 * float(world[0] - pos[0])
        cost += float(rng.uniform(0, 1)) * spread
        cost += sum(max(0.0, 1.0 - float(np.linalg.norm(point - grasp.point)) / 0.06) for grasp in failed)
        if best is None or cost < best[0]:
            best = (cost, Grasp(point, direction))
    assert best is not None
    return best[1]
