"""Environments and observations small enough to train OpenVLA on a CPU in seconds."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

INSTRUCTIONS = ("put it to the left", "pick it up and put it to the right")


class InstructionSpace(spaces.Box):
    """Like LIBERO's: says which suite and assets an observation comes from."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(0, 255, (256,), np.uint8)
        for name, value in attributes.items():
            setattr(self, name, value)


def encode(text: str) -> np.ndarray:
    return np.frombuffer(text.encode().ljust(256, b"\x00"), dtype=np.uint8)


def observation_space(image_size: int = 64, **attributes: Any) -> spaces.Dict:
    image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
    return spaces.Dict({"image": image, "instruction": InstructionSpace(**attributes)})


def observations(n: int, image_size: int = 64, seed: int = 0, same_instruction: bool = False) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "image": rng.integers(0, 256, (n, image_size, image_size, 3), dtype=np.uint8),
        "instruction": np.stack([encode(INSTRUCTIONS[0 if same_instruction else i % 2]) for i in range(n)]),
    }


class FollowInstruction(gym.Env):
    """One step per episode: the reward is the share of action dimensions with the sign that the instruction names."""

    def __init__(self, n_dims: int = 1, episode_length: int = 1) -> None:
        self.observation_space = observation_space()
        self.action_space = spaces.Box(-1.0, 1.0, (n_dims,), np.float32)
        self.episode_length = episode_length

    def _observation(self) -> dict[str, np.ndarray]:
        image = np.full((64, 64, 3), 127, dtype=np.uint8)
        return {"image": image, "instruction": encode(INSTRUCTIONS[self._target])}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self._target = int(self.np_random.integers(2))
        self._steps = 0
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        self._steps += 1
        right = np.asarray(action) > 0
        reward = float((right == bool(self._target)).mean())
        done = self._steps >= self.episode_length
        return self._observation(), reward, done, False, {}
