"""Moving the gripper: what scripted experts command, and the actions that do it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from sb3_tgrpo.rewards.facts.vocabulary import State

Vector = np.ndarray
"""A float array of shape (3,), (4,) or (3, 3)."""

POSITION_SCALE = 0.05
"""Metres per unit of action (robosuite's OSC_POSE)."""
ROTATION_SCALE = 0.5
"""Radians per unit of action."""
OPEN, CLOSE = -1.0, 1.0

_START_REACH, _SHOULDER = 0.45, 0.07
"""From the start position of the gripper back to the robot's shoulder, and up, metres."""
_HAND, _WRIST = 0.21, 0.088
"""From the fingertips up to the wrist, and its offset, metres."""
_STRETCH, _MAX_LEAN = 0.64, 0.6
"""The arm from shoulder to wrist is 0.70 m long when straight."""

_POSITION_GAIN = 1.5
_ROTATION_GAIN = 1.0


def rotation_of(quat: tuple[float, ...] | Vector) -> Vector:
    """Rotation matrix (3, 3) of a unit quaternion (x, y, z, w)."""
    x, y, z, w = quat
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def about(axis: int, angle: float) -> Vector:
    """Rotation matrix about a world axis (0, 1, 2), radians."""
    c, s = float(np.cos(angle)), float(np.sin(angle))
    matrix = np.eye(3)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def rotation_vector(matrix: Vector) -> Vector:
    """The axis of a rotation matrix (3, 3) times its angle in radians, (3,)."""
    skew = np.array([matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]])
    sine, cosine = float(np.linalg.norm(skew)) / 2, (float(np.trace(matrix)) - 1) / 2
    angle = float(np.arctan2(sine, cosine))
    if sine > 1e-9:
        return skew * (angle / (2 * sine))
    # At half a turn the skew part vanishes; the axis is the column of (R + I) that is longest.
    column = (matrix + np.eye(3))[:, int(np.argmax(np.diag(matrix)))]
    return column * (angle / max(float(np.linalg.norm(column)), 1e-9))


def gripper_down(yaw: float) -> Vector:
    """Rotation matrix (3, 3) of a gripper that points down; at ``yaw`` 0 the fingers open along the world's y axis."""
    return about(2, yaw) @ np.diag([1.0, -1.0, -1.0])


def lean(target: Vector, eef_start: Vector) -> Vector:
    """
    How the hand leans back towards the robot where a vertical one would need a straight arm.

    A Panda whose elbow is straight is at a joint limit, and the controller does not get it out of there.

    :param target: Position that the gripper goes to, (3,).
    :param eef_start: Gripper's position in the arm's initial posture, (3,), from which the robot's place follows.
    :return: Rotation matrix (3, 3), to be applied to the gripper's rotation.
    """
    shoulder = eef_start + np.array([-_START_REACH, 0.0, _SHOULDER])
    way = target + np.array([0.0, 0.0, _HAND]) - shoulder
    across = float(np.hypot(way[0], way[1]))
    stretch = float(np.hypot(across - _WRIST, way[2]))
    angle = float(np.clip((stretch - _STRETCH) / _HAND, 0.0, _MAX_LEAN))
    # About the horizontal axis that takes the hand, above the fingertips, towards the robot.
    axis = np.array([way[1], -way[0], 0.0]) / max(across, 1e-9)
    return about_axis(axis, angle)


def about_axis(axis: Vector, angle: float) -> Vector:
    """Rotation matrix about a unit vector, radians."""
    x, y, z = axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def finger_yaw(direction: Vector, near: float = 0.0) -> float:
    """The yaw, of two half a turn apart, nearer to ``near`` at which the fingers open along a horizontal direction."""
    yaw = float(np.arctan2(direction[1], direction[0])) - np.pi / 2
    return near + (yaw - near + np.pi / 2) % np.pi - np.pi / 2


@dataclass(frozen=True)
class Command:
    """
    Where the gripper is to go.

    :param position: Position of the point between the fingertips, (3,), metres.
    :param rotation: Rotation of the gripper, (3, 3).
    :param gripper: :data:`OPEN` or :data:`CLOSE`.
    :param speed: Bound on the action's components for translation, up to 1.
    """

    position: Vector
    rotation: Vector
    gripper: float
    speed: float = 1.0


class Skill(Protocol):
    """Works on one atom of the goal."""

    stage: str
    """What it is doing: for traces and for people."""

    def command(self, state: State) -> Command:
        """Where the gripper is to go now."""

    def finished(self, state: State) -> bool:
        """Given that its atom holds: the gripper has let go and is out of the way."""


def action_towards(command: Command, eef_pos: Vector, eef_rotation: Vector) -> Vector:
    """The action, float32 (7,) in [-1, 1], that moves the gripper towards a commanded pose: proportional to the way."""
    # Each axis on its own: the arm drifts sideways on its way down, and this keeps all authority for correcting it.
    shift = np.clip((command.position - eef_pos) * (_POSITION_GAIN / POSITION_SCALE), -command.speed, command.speed)
    turn = rotation_vector(command.rotation @ eef_rotation.T) * (_ROTATION_GAIN / ROTATION_SCALE)
    largest = float(np.abs(turn).max())
    if largest > 1:
        turn /= largest
    return np.array([*shift, *turn, command.gripper], np.float32)


class ActionNoise:
    """
    Noise on the motion that lasts a few steps, as a hand's trembling does: first-order autoregressive.

    :param std: Standard deviation of the noise on each of the three translation components (action units).
    :param correlation: Correlation with the step before.
    :param rng: Its source.
    """

    def __init__(self, std: float, rng: np.random.Generator, correlation: float = 0.7) -> None:
        if not 0 <= std <= 1:
            raise ValueError(f"std must be between 0 and 1 (action units), got {std!r}.")
        self.std = std
        self._correlation = correlation
        self._rng = rng
        self._value = rng.normal(0.0, std, 3)

    def __call__(self, action: Vector) -> Vector:
        """The action (7,) with noise on the translation, clipped to [-1, 1]."""
        innovation = self._rng.normal(0.0, self.std * np.sqrt(1 - self._correlation**2), 3)
        self._value = self._correlation * self._value + innovation
        noisy = np.array(action, np.float32)
        noisy[:3] = np.clip(noisy[:3] + self._value, -1.0, 1.0)
        return noisy
