"""
The functions that a reward may call: geometry on float tuples.

Tuples are immutable and, for three numbers, faster than numpy. None of these can loop without end, allocate or raise for
finite arguments of the right types.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_type_hints

from sb3_tgrpo.rewards.facts.vocabulary import ValueType

Vec3 = tuple[float, float, float]
Quat = tuple[float, float, float, float]


def distance(a: Vec3, b: Vec3) -> float:
    """Euclidean distance."""
    return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2)


def distance_xy(a: Vec3, b: Vec3) -> float:
    """Horizontal distance."""
    return math.sqrt((a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2)


def vec3(x: float, y: float, z: float) -> Vec3:
    """A vector from its components."""
    return (x, y, z)


def add(a: Vec3, b: Vec3) -> Vec3:
    """Sum of two vectors."""
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def sub(a: Vec3, b: Vec3) -> Vec3:
    """Difference of two vectors."""
    return (a[0] - b[0], a[1] - b[1], a[2] - b[2])


def scale(v: Vec3, factor: float) -> Vec3:
    """A vector times a number."""
    return (v[0] * factor, v[1] * factor, v[2] * factor)


def rotate(q: Quat, v: Vec3) -> Vec3:
    """A vector turned by a unit quaternion (x, y, z, w)."""
    x, y, z, w = q
    tx, ty, tz = 2.0 * (y * v[2] - z * v[1]), 2.0 * (z * v[0] - x * v[2]), 2.0 * (x * v[1] - y * v[0])
    return (
        v[0] + w * tx + y * tz - z * ty,
        v[1] + w * ty + z * tx - x * tz,
        v[2] + w * tz + x * ty - y * tx,
    )


def tilt(q: Quat) -> float:
    """Angle in radians between the z axis of an orientation and the vertical."""
    x, y = q[0], q[1]
    return math.acos(max(-1.0, min(1.0, 1.0 - 2.0 * (x * x + y * y))))


def angle(p: Quat, q: Quat) -> float:
    """Angle in radians between two orientations; q and -q are the same orientation."""
    dot = abs(p[0] * q[0] + p[1] * q[1] + p[2] * q[2] + p[3] * q[3])
    return 2.0 * math.acos(min(1.0, dot))


def outside(point: Vec3, centre: Vec3, q: Quat, half: Vec3) -> float:
    """
    How far a point is outside a region, in metres along the worst axis; negative inside.

    The region is LIBERO's: an axis-aligned box in the world whose half extents are |R half|, so it shrinks when the region is
    turned, and which reaches one centimetre further down.
    """
    size = rotate(q, half)
    below = centre[2] - point[2] - abs(size[2]) - 0.01
    above = point[2] - centre[2] - abs(size[2])
    return max(outside_xy(point, centre, q, half), below, above)


def outside_xy(point: Vec3, centre: Vec3, q: Quat, half: Vec3) -> float:
    """:func:`outside` seen from above: along the worse of the horizontal axes, however high the point is."""
    size = rotate(q, half)
    return max(abs(point[0] - centre[0]) - abs(size[0]), abs(point[1] - centre[1]) - abs(size[1]))


def sqrt(x: float) -> float:
    """Square root, 0 for negative numbers."""
    return math.sqrt(x) if x > 0.0 else 0.0


def exp(x: float) -> float:
    """Exponential, of at most 50."""
    return math.exp(min(x, 50.0))


def tanh(x: float) -> float:
    """Hyperbolic tangent."""
    return math.tanh(x)


def abs_(x: float) -> float:
    """Absolute value."""
    return abs(x)


def min_(a: float, b: float) -> float:
    """The smaller of two numbers."""
    return a if a < b else b


def max_(a: float, b: float) -> float:
    """The larger of two numbers."""
    return a if a > b else b


def clip(x: float, low: float, high: float) -> float:
    """``x`` held between two bounds."""
    return max(low, min(high, x))


def closeness(x: float, reach: float) -> float:
    """1 at ``x = 0``, falling linearly to 0 at ``x = reach`` and beyond."""
    return max(0.0, 1.0 - x / reach) if reach > 0.0 else 0.0


def ladder_below(x: float, *rungs: float) -> float:
    """
    Value of the last rung that ``x`` is below; 0 if none.

    :param rungs: Threshold, value, threshold, value, ... from far to near.
    """
    value = 0.0
    for i in range(0, len(rungs), 2):
        if x < rungs[i]:
            value = rungs[i + 1]
    return value


def ladder_above(x: float, *rungs: float) -> float:
    """Value of the last rung that ``x`` is above; 0 if none. Arguments as in :func:`ladder_below`, from low to high."""
    value = 0.0
    for i in range(0, len(rungs), 2):
        if x > rungs[i]:
            value = rungs[i + 1]
    return value


_ALL = (
    distance, distance_xy, vec3, add, sub, scale, rotate, tilt, angle, outside, outside_xy, sqrt, exp, tanh, abs_, min_, max_,
    clip, closeness, ladder_below, ladder_above,
)  # fmt: skip
FUNCTIONS: dict[str, Callable[..., object]] = {function.__name__.rstrip("_"): function for function in _ALL}
"""Names in a reward program -> functions."""


@dataclass(frozen=True)
class Helper:
    """
    A function that a reward written in Python may call.

    :param args: Types of its positional arguments; it takes no keywords.
    :param returns: Type of its result.
    :param doc: Meaning, in one sentence.
    :param pairs: Whether one to twelve (threshold, value) pairs of scalars follow ``args``.
    """

    args: tuple[ValueType, ...]
    returns: ValueType
    doc: str
    pairs: bool


def _described(function: Callable[..., object]) -> Helper:
    kinds: dict[object, ValueType] = {float: "scalar", Vec3: "vec3", Quat: "quat"}
    hints = get_type_hints(function)
    parameters = list(inspect.signature(function).parameters.values())
    pairs = parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL
    args = tuple(kinds[hints[parameter.name]] for parameter in parameters[: -1 if pairs else None])
    return Helper(args, kinds[hints["return"]], (inspect.getdoc(function) or "").split("\n\n")[0], pairs)


HELPERS: dict[str, Helper] = {name: _described(function) for name, function in FUNCTIONS.items()}
"""Signatures of the functions, from their annotations."""
