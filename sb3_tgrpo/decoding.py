"""How actions are taken from a policy's distribution."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Decoding:
    """
    Greedy or sampled actions, as one number. ``str()`` gives ``greedy`` or ``T=1``.

    :param temperature: 0 for the most likely action, else the temperature of the distribution that is sampled from.
    :raises ValueError: If the temperature is negative or not finite.
    """

    temperature: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"temperature={self.temperature} must be 0 (greedy) or positive.")

    @property
    def greedy(self) -> bool:
        """Whether the most likely action is taken; Stable-Baselines3's ``deterministic``."""
        return self.temperature == 0

    def __str__(self) -> str:
        return "greedy" if self.greedy else f"T={self.temperature:g}"
