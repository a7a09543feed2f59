"""What pushes an expert off its way while demonstrations are recorded, so that they show how to come back."""

import numpy as np

from sb3_tgrpo.envs.experts.motion import ActionNoise, Vector

_CORRELATION = 0.7


class Disturbance:
    """
    Executed instead of the expert's action, while the expert's is recorded (DART, arXiv 1703.09327): noise at every step, now
    and then a push of a few steps in one direction, now and then a gripper that does the opposite.

    Noise alone keeps a demonstration within millimetres of its way, and a policy that strays by centimetres, or closes on
    nothing, has never seen what to do.

    :param std: Standard deviation of the noise on the translation (action units).
    :param rng: Source of everything random.
    :param pushes: Probability per step that a push begins; it lasts 4 to 8 steps.
    :param slips: Probability per step that the gripper begins to do the opposite, for 4 to 11 steps.
    """

    def __init__(self, std: float, rng: np.random.Generator, pushes: float = 0.0, slips: float = 0.0) -> None:
        for name, value in (("pushes", pushes), ("slips", slips)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be a probability between 0 and 1, got {value!r}.")
        self._noise = ActionNoise(std, rng, _CORRELATION)
        self._rng = rng
        self._pushes, self._slips = pushes, slips
        self._push = np.zeros(3)
        self._push_steps = self._slip_steps = 0

    def __call__(self, action: Vector) -> Vector:
        """The action (7,) to execute, in [-1, 1], instead of the expert's."""
        rng = self._rng
        if self._push_steps == 0 and self._pushes and rng.random() < self._pushes:
            direction = rng.normal(size=3)
            self._push = direction / np.linalg.norm(direction) * rng.uniform(0.6, 1.3)
            self._push_steps = int(rng.integers(4, 9))
        if self._slip_steps == 0 and self._slips and rng.random() < self._slips:
            self._slip_steps = int(rng.integers(4, 12))
        executed = self._noise(action)
        if self._push_steps:
            self._push_steps -= 1
            executed[:3] = np.clip(0.3 * executed[:3] + self._push, -1.0, 1.0)
        if self._slip_steps:
            self._slip_steps -= 1
            executed[6] = -executed[6]
        return executed
