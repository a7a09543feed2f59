"""``vla_toy:Toy-v0``: an environment for vision-language-action policies that a test can train on in a second."""

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from openvla_toys import INSTRUCTIONS, encode
from openvla_toys import observation_space as spaces_of

TOY_FLAGS = [
    "--env", "vla_toy:Toy-v0", "--checkpoint", "tiny", "--eval-initial-states", "3", "--total-timesteps", "100",
    "--group-size", "2", "--groups-per-update", "2", "--learning-rate", "1e-3", "--device", "cpu", "--eval-n-envs", "1",
    "--update-threads", "1",
]  # fmt: skip
"""Flags of ``sb3-tgrpo train`` for a run of seconds."""


class Toy(gym.Env):
    """
    Five steps long; succeeds where three steps in a row move to the right. Reports stages as a reward program does.

    The environment variable ``VLA_TOY_PAUSE`` holds the seconds that each step takes.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces_of()
        self.action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.pause = float(os.environ.get("VLA_TOY_PAUSE", "0"))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict, dict]:
        super().reset(seed=seed)
        self.colour = int(self.np_random.integers(256))
        self.count = self.run = 0
        return self._observation(), {"is_success": False}

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict]:
        time.sleep(self.pause)
        self.count += 1
        self.run = min(self.run + 1, 3) if action[0] > 0 else 0
        success = self.run == 3
        info = {"is_success": success, "stage": self.run, "n_stages": 3, "progress": self.run / 3}
        return self._observation(), float(action[0] > 0), success, self.count >= 5, info

    def _observation(self) -> dict[str, np.ndarray]:
        image = np.full((64, 64, 3), self.colour, dtype=np.uint8)
        image[self.count * 8 : self.count * 8 + 8] = 255
        return {"image": image, "instruction": encode(INSTRUCTIONS[0])}

    def render(self) -> np.ndarray:
        return self._observation()["image"]


if "Toy-v0" not in gym.registry:
    gym.register("Toy-v0", entry_point=Toy)
