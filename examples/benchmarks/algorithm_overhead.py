"""
What TGRPO costs beside SB3's PPO: valid environment steps per second on CartPole-v1, with the same number of environments,
epochs and batch size, in one run. Everything runs in one thread and CPU time is measured, which other programs disturb little.
Variants take turns over the repetitions. The table shows medians, also of the ratios to PPO in the same repetition.

    python examples/benchmarks/algorithm_overhead.py
"""

import argparse
import statistics
import time

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import make_group_env


class TimeSplit(BaseCallback):
    """Seconds between rollout start and end (the rest of a run is the update), and the share of steps that count."""

    def __init__(self) -> None:
        super().__init__()
        self.rollout = 0.0
        self.valid = self.slots = 0

    def _on_rollout_start(self) -> None:
        self.started = time.process_time()

    def _on_rollout_end(self) -> None:
        self.rollout += time.process_time() - self.started

    def _on_step(self) -> bool:
        self.valid += int(getattr(self.training_env.unwrapped, "valid", np.ones(self.training_env.num_envs)).sum())
        self.slots += self.training_env.num_envs
        return True


def measure(model: TGRPO | PPO, steps: int) -> dict[str, float]:
    split = TimeSplit()
    started = time.process_time()
    model.learn(steps, callback=split)
    seconds = time.process_time() - started
    return {
        "steps/s": model.num_timesteps / seconds,
        "valid": split.valid / split.slots,
        "rollout us/step": 1e6 * split.rollout / model.num_timesteps,
        "update us/step": 1e6 * (seconds - split.rollout) / model.num_timesteps,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps per repetition")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--n-envs", type=int, default=8)
    args = parser.parse_args()
    th.set_num_threads(1)
    shared = {"n_epochs": 10, "batch_size": 256, "device": "cpu", "learning_rate": 1e-3}

    def ppo(seed: int) -> PPO:
        env = make_vec_env("CartPole-v1", args.n_envs, seed=seed)
        return PPO("MlpPolicy", env, n_steps=256, seed=seed, **shared)

    def tgrpo(seed: int, group_size: int, stop_on: str = "never", kl_coef: float = 0.0) -> TGRPO:
        n_groups = args.n_envs // group_size
        env = make_group_env("CartPole-v1", group_size, n_groups, stop_on=stop_on, seed=seed)  # type: ignore[arg-type]
        return TGRPO("MlpPolicy", env, groups_per_update=8, kl_coef=kl_coef, seed=seed, **shared)

    variants = {
        "PPO": ppo,
        "TGRPO, groups of 4": lambda seed: tgrpo(seed, 4),
        "TGRPO, groups of 8": lambda seed: tgrpo(seed, 8),
        "TGRPO, groups of 4, KL": lambda seed: tgrpo(seed, 4, kl_coef=0.04),
        "TGRPO, groups of 8, KL": lambda seed: tgrpo(seed, 8, kl_coef=0.04),
        "TGRPO, 4, nobody held": lambda seed: tgrpo(seed, 4, stop_on="termination"),
    }
    results: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for repetition in range(args.repetitions):
        for name, make in variants.items():
            results[name].append(measure(make(repetition), args.steps))

    medians = {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in results.items()}
    print(f"CartPole-v1, {args.n_envs} environments, {shared}, gymnasium {gym.__version__}, torch {th.__version__}")
    print(f"\n| {'':22} | steps/s | of PPO | valid | rollout us/step | update us/step |\n|---|---|---|---|---|---|")
    for name, row in medians.items():
        share = statistics.median(
            one["steps/s"] / other["steps/s"] for one, other in zip(results[name], results["PPO"], strict=True)
        )
        split = f"{row['valid']:5.2f} | {row['rollout us/step']:15.0f} | {row['update us/step']:14.0f}"
        print(f"| {name:22} | {row['steps/s']:7.0f} | {share:6.2f} | {split} |")


if __name__ == "__main__":
    main()
