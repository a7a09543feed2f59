"""Small environments whose every number is known in advance."""

import os
import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class ScriptEnv(gym.Env):
    """
    Counts its steps: the observation is ``[seed, step, action sum]``. What happens at a step is told by ``script``, by action:
    an action ``a`` in ``script`` ends the episode as ``script[a]`` says ("success", "terminated", "truncated") or does harm
    ("crash", "hang", "raise", "nan"). Other actions earn a reward of their own value.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, script: dict[int, str] | None = None, limit: int = 20, render_mode: str | None = None) -> None:
        self.script = script or {}
        self.limit = limit
        self.render_mode = render_mode
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), dtype=np.float64)
        self.action_space = spaces.Discrete(100)
        self.tag = "none"

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.start = float(seed if seed is not None else -1)
        self.count, self.total = 0, 0
        return self._obs(), {"options": options}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        action = int(action)
        self.count += 1
        self.total += action
        event = self.script.get(action, "")
        if event == "crash":
            os._exit(3)
        if event == "hang":
            time.sleep(1000)
        if event == "raise":
            raise ValueError("broken on purpose")
        reward = float("nan") if event == "nan" else float(action)
        info = {"is_success": event == "success"}
        return self._obs(), reward, event in ("success", "terminated"), event == "truncated" or self.count >= self.limit, info

    def _obs(self) -> np.ndarray:
        return np.array([self.start, self.count, self.total])

    def render(self) -> np.ndarray:
        return np.full((32, 48, 3), 10 * self.count, dtype=np.uint8)

    def set_tag(self, tag: str) -> str:
        self.tag = tag
        return f"tag {tag}"


class OnceCrashingEnv(ScriptEnv):
    """Action 9 kills the process, but only the first time: ``marker`` remembers across processes, and which it was."""

    def __init__(self, marker: str, how: str = "crash", limit: int = 20) -> None:
        super().__init__(limit=limit)
        self.marker = marker
        self.how = how

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if int(action) == 9 and not os.path.exists(self.marker):
            with open(self.marker, "w") as file:
                file.write(str(os.getpid()))
            if self.how == "crash":
                os._exit(3)
            time.sleep(1000)
        return super().step(action)


class IdentityEnv(gym.Env):
    """The action should be the observation. ``kind``: "discrete", "box", "multidiscrete", "multibinary", "dict" or "image"."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012

    def __init__(self, kind: str = "discrete", length: int = 20, size: int = 3) -> None:
        self.kind, self.length, self.size = kind, length, size
        self.render_mode = "rgb_array"
        one_hot = spaces.Box(0.0, 1.0, (size,), dtype=np.float32)
        self.observation_space: spaces.Space = one_hot
        self.action_space: spaces.Space = spaces.Discrete(size)
        if kind == "box":
            self.observation_space = self.action_space = spaces.Box(-1.0, 1.0, (2,), dtype=np.float32)
        elif kind == "multidiscrete":
            self.action_space = spaces.MultiDiscrete([size, size])
        elif kind == "multibinary":
            self.action_space = spaces.MultiBinary(size)
        elif kind == "dict":
            image = spaces.Box(0, 255, (36, 36, 3), dtype=np.uint8)
            self.observation_space = spaces.Dict({"one_hot": one_hot, "image": image})
        elif kind == "image":
            self.observation_space = spaces.Box(0, 255, (36, 36, 1), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = 0
        return self._draw(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.kind == "box":
            reward = -float(np.abs(action - self.target).mean())
        elif self.kind == "multibinary":
            reward = float(np.mean(np.asarray(action) == np.eye(self.size, dtype=int)[self.target]))
        else:
            reward = float(np.mean(np.asarray(action) == self.target))
        self.count += 1
        return self._draw(), reward, False, self.count >= self.length, {}

    def _draw(self) -> Any:
        if self.kind == "box":
            self.target = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
            return self.target.copy()
        self.target = int(self.np_random.integers(self.size))
        one_hot = np.eye(self.size, dtype=np.float32)[self.target]
        if self.kind == "dict":
            return {"one_hot": one_hot, "image": np.full((36, 36, 3), 80 * self.target, dtype=np.uint8)}
        if self.kind == "image":
            image = np.zeros((36, 36, 1), dtype=np.uint8)
            image[:, 12 * self.target : 12 * self.target + 12] = 255
            return image
        return one_hot

    def render(self) -> np.ndarray:
        return np.zeros((32, 32, 3), dtype=np.uint8)


class UnseededEnv(ScriptEnv):
    """Ignores its seed."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed, options=options)
        self.start = float(np.random.default_rng().random())
        return self._obs(), {}


class SignalEnv(ScriptEnv):
    """Pays nothing until the end, but reports its progress as the step signal."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(truncated) * self.total, terminated, truncated, {**info, "step_signal": float(action)}
