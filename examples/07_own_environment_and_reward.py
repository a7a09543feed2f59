"""
An environment of your own, and a reward of your own.

The environment is any Gymnasium class whose `reset(seed=s)` gives the same initial state every time. Here a point has to reach
a goal. It reports `info["is_success"]`, so that groups can end, and `info["step_signal"]`, which the step level compares.

The reward is a few lines of a safe subset of Python for a LIBERO task. Verification plays recorded episodes through it.

    python examples/07_own_environment_and_reward.py
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import LiberoEnv, make_group_env
from sb3_tgrpo.rewards import RewardProgram, load_traces, verify_reward


class Reach(gym.Env):
    """A point in the unit square moves to a goal. Observation: point and goal; action: a motion; reward: 1 at the goal."""

    observation_space = gym.spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.point, self.goal = self.np_random.random((2, 2))
        return self._observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.point = np.clip(self.point + 0.1 * np.clip(action, -1.0, 1.0), 0.0, 1.0)
        info = self._info()
        return self._observation(), float(info["is_success"]), info["is_success"], False, info

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.point, self.goal]).astype(np.float32)

    def _info(self) -> dict[str, Any]:
        distance = float(np.linalg.norm(self.point - self.goal))
        return {"is_success": distance < 0.05, "step_signal": -distance}


def make_env() -> gym.Env:
    """An environment that ends after 50 steps."""
    return gym.wrappers.TimeLimit(Reach(), max_episode_steps=50)


REWARD = """
def compute_reward(state, info):
    max_level = 3.0
    n_stages = 3
    stage = 0
    level = closeness(distance(state["eef_pos"], state["chocolate_pudding_1_pos"]), 0.3)
    if state["chocolate_pudding_1_grasped"]:
        stage = 1
        risen = state["chocolate_pudding_1_pos"][2] - info["start_chocolate_pudding_1_pos"][2]
        near = closeness(distance_xy(state["chocolate_pudding_1_pos"], state["basket_1_contain_region_pos"]), 0.4)
        level = 1.0 + clip(risen / 0.1, 0.0, 1.0) * (0.5 + 0.5 * near)
    if state["goal_0"]:
        stage = 3
        level = 3.0
    return level
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps that count")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    th.set_num_threads(1)  # faster for a network this small

    check_env(Reach(), skip_render_check=True)
    env = make_group_env(make_env, group_size=8, n_groups=4, stop_on="never", seed=args.seed)
    model = TGRPO("MlpPolicy", env, learning_rate=1e-3, n_epochs=10, batch_size=256, kl_coef=0.0, seed=args.seed, device="cpu")
    test = make_env()
    test.reset(seed=1000)
    before, _ = evaluate_policy(model, test, 50, warn=False)
    model.learn(args.steps, progress_bar=True)
    after, _ = evaluate_policy(model, test, 50, warn=False)
    print(f"Goals reached, greedily: {before:.0%} before, {after:.0%} after.")

    program = RewardProgram.from_python(REWARD, task="libero_object-8")
    report = verify_reward(program, load_traces("libero_object-8"), other_process=False)
    print(report.table())
    libero = LiberoEnv("libero_object", 8, reward=program, observations=("state",), assets="light")
    libero.reset(seed=args.seed)
    _, reward, _, _, info = libero.step(np.zeros(7))
    print(f"A step that does nothing gives {reward:.3f}, in stage {info['stage']} of {info['n_stages']}.")
    libero.close()


if __name__ == "__main__":
    main()
