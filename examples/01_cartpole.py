"""
TGRPO on CartPole in about a minute on a laptop: groups of eight start alike, the better ones show the way.

    python examples/01_cartpole.py
"""

import argparse

import gymnasium as gym
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import make_group_env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=140_000, help="environment steps that count")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    th.set_num_threads(1)  # faster for a network this small

    env = make_group_env("CartPole-v1", group_size=8, n_groups=4, stop_on="never")
    model = TGRPO(
        "MlpPolicy", env, learning_rate=1e-3, n_epochs=10, batch_size=256, kl_coef=0.0, seed=args.seed, verbose=1, device="cpu"
    )
    evaluation = Monitor(gym.make("CartPole-v1"))  # un-grouped: a group that stops early would cut episodes short
    evaluation.reset(seed=1000)

    before, _ = evaluate_policy(model, evaluation, 20)
    model.learn(args.steps, log_interval=5, progress_bar=True)
    after, deviation = evaluate_policy(model, evaluation, 20)
    print(f"Mean reward over 20 episodes, of at most 500: {before:.0f} before, {after:.0f} +- {deviation:.0f} after.")


if __name__ == "__main__":
    main()
