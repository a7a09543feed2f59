"""
TGRPO and Stable-Baselines3's PPO, from one base policy: the same policy class, the same reward, the same number of steps.

The base policy is the tiny one that ships. Success is greedy, on initial states that LIBERO's sampler draws from seeds that
training does not use. `sb3-tgrpo study table1` compares the two with five seeds and intervals.

    python examples/06_ppo_baseline.py
"""

import argparse

import gymnasium as gym
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_tgrpo import TGRPO, OpenVLAPolicy
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.train.config import shipped_start

ENV = "LIBERO/libero_object-8-v0"
SCENE = {"assets": "light", "image_size": 128}


def success(model: PPO | TGRPO, episodes: int, max_episode_steps: int) -> float:
    """Share of successful episodes. Without a reward program LIBERO's reward is 1 at success."""
    env = make_vec_env(ENV, env_kwargs={**SCENE, "max_episode_steps": max_episode_steps}, seed=100_000)
    rate, _ = evaluate_policy(model, env, episodes)
    env.close()
    return float(rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps for each of the two")
    parser.add_argument("--max-episode-steps", type=int, default=150, help="step limit")
    parser.add_argument("--members", type=int, default=8, help="members of a group, and environments of PPO")
    parser.add_argument("--episodes", type=int, default=20, help="episodes of an evaluation")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    th.set_num_threads(1)  # the cores belong to the simulators

    training = {**SCENE, "reward": "libero_object-8", "joint_noise": 0.02, "max_episode_steps": args.max_episode_steps}
    policy = {"checkpoint": str(shipped_start()), "lora": None}
    shared = {"learning_rate": 1e-4, "n_epochs": 3, "clip_range": 0.3, "target_kl": 0.08, "device": "cpu"}

    groups = make_group_env(ENV, args.members, stop_on="never", env_kwargs=training, seed=args.seed)
    tgrpo = TGRPO(
        "OpenVLAPolicy",
        groups,
        groups_per_update=2,
        batch_size=256,
        kl_coef=0.0,
        policy_kwargs=policy,
        seed=args.seed,
        **shared,
    )
    print(f"base policy: {success(tgrpo, args.episodes, args.max_episode_steps):.0%} of {args.episodes} episodes")
    tgrpo.learn(args.steps, progress_bar=True)
    groups.close()
    print(f"TGRPO: {success(tgrpo, args.episodes, args.max_episode_steps):.0%}")

    # PPO takes single environments. Its value head is part of the policy class, and new.
    single = make_vec_env(ENV, args.members, seed=args.seed, env_kwargs=training, vec_env_cls=SubprocVecEnv)
    n_steps = min(256, args.steps // args.members)
    batch_size = min(256, n_steps * args.members)
    ppo = PPO(OpenVLAPolicy, single, n_steps=n_steps, batch_size=batch_size, policy_kwargs=policy, seed=args.seed, **shared)
    ppo.learn(args.steps, progress_bar=True)
    single.close()
    print(f"PPO: {success(ppo, args.episodes, args.max_episode_steps):.0%}")


if __name__ == "__main__":
    gym.logger.min_level = gym.logger.ERROR
    main()
