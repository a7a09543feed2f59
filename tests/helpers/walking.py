"""An environment whose episodes depend on every action, and a policy for it."""

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import FloatSchedule

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation
from sb3_tgrpo.openvla.policy import OpenVLAPolicy

INSTRUCTION = np.frombuffer(b"pick up the milk".ljust(256, b"\x00"), np.uint8)


class Walk(gym.Env):
    """
    The image follows from start and actions; the sum of the actions decides when and how the episode ends. A chaotic walk: one
    different token anywhere changes lengths and rewards.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8), "instruction": spaces.Box(0, 255, (256,), np.uint8)}
    )
    action_space = spaces.Box(-1, 1, (7,), np.float32)

    def __init__(self, render_mode: str | None = None, fail_at: int | None = None, crash_file: str | None = None) -> None:
        self.render_mode, self.fail_at, self.crash_file = render_mode, fail_at, crash_file

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        start = (options or {}).get("init_state_id", 100 + (seed or 0))
        self.state = np.random.default_rng(start).uniform(0, 1, 7)
        self.steps = 0
        return self.observe(), {"is_success": False}

    def observe(self) -> dict[str, np.ndarray]:
        row = np.resize((255 * self.state).astype(np.uint8), 64 * 3)
        return {"image": np.broadcast_to(row.reshape(1, 64, 3), (64, 64, 3)).copy(), "instruction": INSTRUCTION.copy()}

    def step(self, action: np.ndarray):
        self.steps += 1
        self.state = (3.7 * self.state + 1.3 * np.asarray(action, np.float64)) % 1.0
        if self.crash_file is not None and self.steps == 2 and not os.path.exists(self.crash_file):
            Path(self.crash_file).touch()
            os._exit(3)
        success = bool(self.state[0] < 0.15)
        info = {"is_success": success, "stage": self.steps // 2, "n_stages": 4, "progress": min(1.0, self.steps / 8)}
        return self.observe(), float(self.state[1]), success, self.steps >= 7, info

    def render(self) -> np.ndarray:
        return self.observe()["image"]


def make_policy(space: spaces.Dict = Walk.observation_space) -> OpenVLAPolicy:
    th.manual_seed(0)
    policy = OpenVLAPolicy(space, Walk.action_space, FloatSchedule(0.0), checkpoint="tiny", lora=None, value_head=False)
    with th.no_grad():  # the fresh one hardly looks at the image
        policy.model.language_model.lm_head.weight.mul_(40.0)
    return policy


WALKS = {"walk-0": Walk, "walk-1": Walk}


def fake(outcomes: list[int], name: str = "a", task: str = "libero_object-3", noise: float = 0.0) -> Evaluation:
    episodes = [EvalEpisode(task, k, 0, bool(success), 10, float(success)) for k, success in enumerate(outcomes)]
    return Evaluation(name, [f"LIBERO/{task}-v0"], Decoding(), "light", {"start_noise": noise}, episodes)
