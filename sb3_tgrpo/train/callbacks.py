"""Callbacks for a training that can be watched, measured and resumed, in any script."""

import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from sb3_tgrpo.files import JsonLines, atomic_path


class TimedVecEnv(VecEnvWrapper):
    """Counts the seconds spent waiting for the environments, in ``seconds``."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.seconds = 0.0

    def reset(self) -> VecEnvObs:
        return self.venv.reset()

    def step_async(self, actions: np.ndarray) -> None:
        started = time.perf_counter()
        self.venv.step_async(actions)
        self.seconds += time.perf_counter() - started

    def step_wait(self) -> VecEnvStepReturn:
        started = time.perf_counter()
        result = self.venv.step_wait()
        self.seconds += time.perf_counter() - started
        return result


class MetricsCallback(BaseCallback):
    """
    One row per update, of numbers: what SB3's logger holds (``rollout/...``, ``train/...``, ``time/...``), and of the groups
    that were sampled for it

    - ``rollout/group_reward``: mean return of a member;
    - ``rollout/member_success_rate``: share of members that succeeded;
    - ``rollout/progress``: how far a member came, mean of the highest ``info["progress"]``;
    - ``stages``: steps spent with 0, 1, 2, ... stages done (``info["stage"]``), and ``furthest``: members by the highest;
    - ``rollout/resampled_groups``: groups that were sampled again because a simulator was lost, where there were any;
    - ``time/rollout_seconds`` and ``time/update_seconds``, also for algorithms that do not log them;
    - ``time/env_seconds`` and ``time/policy_seconds``: parts of the former (with :class:`TimedVecEnv`).

    :param path: File to append the rows to, as JSON lines; None: only :attr:`rows`. When a training is resumed, rows after
        the model's ``num_timesteps`` are dropped.
    :param on_row: Function called with each row.
    :param on_progress: Function called at each step of the environment, with the model's ``num_timesteps`` and the number of
        groups that have ended since the last update.
    :param on_update: Function called when a rollout has ended and its update begins.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        on_row: Callable[[dict[str, Any]], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        on_update: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self._file = None if path is None else JsonLines(Path(path))
        self._on_row, self._on_progress, self._on_update = on_row, on_progress, on_update
        self._pending: dict[str, Any] | None = None

    def _on_training_start(self) -> None:
        if self._file is not None:
            self.rows = [row for row in self._file.read() if row["timesteps"] <= self.num_timesteps]
            self._file.rewrite(self.rows)

    def _on_rollout_start(self) -> None:
        self._finish_row()
        self._begin()

    def _begin(self) -> None:
        self._stages: Counter[int] = Counter()
        self._furthest: Counter[int] = Counter()
        self._successes: list[bool] = []
        self._progress: list[float] = []
        self._stage_of = np.zeros(self.training_env.num_envs, dtype=int)
        self._progress_of = np.zeros(self.training_env.num_envs)
        self._groups = self._resampled = 0
        self._env_seconds = _env_seconds(self.training_env)
        self._began = time.perf_counter()

    def _on_step(self) -> bool:
        infos, dones = self.locals["infos"], self.locals["dones"]
        for i, info in enumerate(infos):
            if info.get("resampled"):
                self._stage_of[i], self._progress_of[i] = 0, 0.0
            elif info.get("valid", True) and "stage" in info:
                self._stages[info["stage"]] += 1
                self._stage_of[i] = max(self._stage_of[i], info["stage"])
                self._progress_of[i] = max(self._progress_of[i], info["progress"])
            if dones[i]:
                if "is_success" in info:
                    self._successes.append(bool(info["is_success"]))
                self._furthest[int(self._stage_of[i])] += 1
                self._progress.append(float(self._progress_of[i]))
                self._stage_of[i], self._progress_of[i] = 0, 0.0
        size = getattr(self.model, "group_size", None) or 1
        self._groups += int(dones.reshape(-1, size).all(axis=1).sum())
        resampled = np.array([bool(info.get("resampled")) for info in infos])
        self._resampled += int(resampled.reshape(-1, size).any(axis=1).sum())
        if self._on_progress is not None:
            self._on_progress(self.num_timesteps, self._groups)
        return True

    def _on_rollout_end(self) -> None:
        values = self.logger.name_to_value
        row: dict[str, Any] = {name: value for name, value in values.items() if name.startswith("rollout/")}
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        if hasattr(buffer, "mask"):
            row["rollout/group_reward"] = float(buffer.returns.mean())
            row["rollout/groups"] = int(buffer.mask.shape[1])
        if self._resampled:
            row["rollout/resampled_groups"] = self._resampled
        if self._successes:
            row["rollout/member_success_rate"] = float(np.mean(self._successes))
        if self._stages:
            row["rollout/progress"] = float(np.mean(self._progress))
            row["stages"] = _as_list(self._stages)
            row["furthest"] = _as_list(self._furthest)
        self._ended = time.perf_counter()
        seconds = values.get("time/rollout_seconds", self._ended - self._began)
        row["time/rollout_seconds"] = seconds
        waited = _env_seconds(self.training_env) - self._env_seconds
        if waited > 0:
            row["time/env_seconds"], row["time/policy_seconds"] = waited, max(seconds - waited, 0.0)
        self._pending = row
        if self._on_update is not None:
            self._on_update()

    def _on_training_end(self) -> None:
        self._finish_row()

    def _finish_row(self) -> None:
        """The update of the last rollout is over: its numbers are in the logger."""
        if self._pending is None:
            return
        values = self.logger.name_to_value
        if not any(name.startswith("train/") for name in values):  # stopped before the update
            return
        kept = {name: value for name, value in values.items() if name.startswith(("train/", "time/update"))}
        kept.setdefault("time/update_seconds", time.perf_counter() - self._ended)
        row = {"update": len(self.rows) + 1, "timesteps": self.num_timesteps, **self._pending, **kept}
        row = {name: value.item() if isinstance(value, np.generic) else value for name, value in row.items()}
        self._pending = None
        self.rows.append(row)
        if self._file is not None:
            self._file.append(row)
        if self._on_row is not None:
            self._on_row(row)


class ThreadsCallback(BaseCallback):
    """Threads of torch on the CPU: few while simulators need the cores, more for updates, for which they wait."""

    def __init__(self, sampling: int, update: int) -> None:
        super().__init__()
        self.sampling, self.update = sampling, update

    def _on_rollout_start(self) -> None:
        th.set_num_threads(self.sampling)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        th.set_num_threads(self.update)

    def _on_training_end(self) -> None:
        th.set_num_threads(self.sampling)


class ResumeCallback(BaseCallback):
    """
    Saves the model between updates, where a training that is resumed from it ends exactly as one that was never interrupted:
    ``TGRPO.load(path, env=env).learn(total - model.num_timesteps, reset_num_timesteps=False)``.

    Put it after :class:`MetricsCallback`, whose rows must not be behind.

    :param path: The file, replaced at each time.
    :param every: Updates between saves.
    """

    def __init__(self, path: str | os.PathLike[str], every: int = 1) -> None:
        super().__init__()
        if every < 1:
            raise ValueError(f"every={every} must be at least 1 update.")
        self.path, self.every = Path(path), every
        self._updates = -1

    def _on_rollout_start(self) -> None:
        self._updates += 1
        if self._updates and self._updates % self.every == 0:
            save_atomically(self.model, self.path)

    def _on_step(self) -> bool:
        return True


def save_atomically(model: Any, path: Path) -> None:
    """Save an algorithm of Stable-Baselines3 so that the file is there whole or not at all."""
    with atomic_path(path) as unfinished:
        model.save(unfinished)


def _env_seconds(env: VecEnv) -> float:
    """Seconds waited for the environments so far, 0 without a :class:`TimedVecEnv`."""
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, TimedVecEnv):
            return env.seconds
        env = env.venv
    return 0.0


def _as_list(counts: "Counter[int]") -> list[int]:
    return [counts.get(k, 0) for k in range(max(counts) + 1)]
