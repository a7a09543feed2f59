"""
What else a training run can train, in the place of TGRPO and under the same protocol: Stable-Baselines3's PPO with the same
policy on un-grouped environments, preference methods on the same groups, and sb3-contrib's TRPO and RecurrentPPO with policies
of their own as references that are no VLA.
"""

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv
from torch.nn import functional

from sb3_tgrpo.envs.groups.sync_vector_env import StartOptions

GROUPED = ("tgrpo", "dpo", "tpo")
"""Methods that sample groups."""
REFERENCES = ("trpo", "recurrent_ppo")
"""Methods with a policy of their own, which starts from nothing."""


def algorithm_class(algo: str) -> type[OnPolicyAlgorithm]:
    """
    The class that trains, by the name in :class:`~sb3_tgrpo.train.config.AlgorithmConfig`.

    :raises ImportError: If the package of the method is not installed.
    """
    if algo in REFERENCES:
        try:
            from sb3_contrib import TRPO, RecurrentPPO
        except ImportError as error:
            raise ImportError(f"{algo} needs sb3-contrib: pip install 'sb3-tgrpo[baselines]'") from error
        return TRPO if algo == "trpo" else RecurrentPPO
    if algo == "ppo":
        return PPO
    from sb3_tgrpo.baselines.preferences import DPO, TPO
    from sb3_tgrpo.tgrpo import TGRPO

    grouped: dict[str, type[OnPolicyAlgorithm]] = {"tgrpo": TGRPO, "dpo": DPO, "tpo": TPO}
    return grouped[algo]


class DrawnStarts(gym.Wrapper):
    """
    Resets with seeds (and options) drawn from a generator of its own, so that un-grouped environments start where groups do:
    at starts that depend on the seed alone. Stable-Baselines3 seeds its i-th environment with ``seed + i``: environments of
    neighbouring seeds would share their starts, but for ``place``.

    :param env: Environment with seeded resets.
    :param start_options: Reset options of each start, drawn with the same generator.
    :param place: Number of the environment among those trained on.
    """

    def __init__(self, env: gym.Env, start_options: StartOptions | None = None, place: int = 0) -> None:
        super().__init__(env)
        self.start_options = start_options
        self.place = place
        self._rng = np.random.default_rng([0, place])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self._rng = np.random.default_rng([seed, self.place])
        drawn = int(self._rng.integers(2**31))
        if self.start_options is not None:
            options = {**(options or {}), **(self.start_options(self._rng) or {})}
        return self.env.reset(seed=drawn, options=options)


def make_ungrouped_env(make: Callable[[], gym.Env], n_envs: int, start_options: StartOptions | None = None) -> VecEnv:
    """Environments that each go their own way, in processes of their own; ``make`` also works in another process."""

    def one(place: int) -> gym.Env:
        import sb3_tgrpo  # noqa: F401  # registers the LIBERO ids in the process that makes the environment

        os.environ.setdefault("LP_NUM_THREADS", "0")  # as for groups: Mesa's threads would fight for the cores
        return Monitor(DrawnStarts(make(), start_options, place))

    # Fresh interpreters: a simulator that renders does not survive a fork.
    return SubprocVecEnv([partial(one, place) for place in range(n_envs)], start_method="spawn")


def rollout_steps(total_timesteps: int, n_envs: int, wanted: int) -> int:
    """
    Steps per environment and rollout, near what is wanted, such that whole rollouts make up the budget: methods that only
    stop between rollouts then spend what the others spend, give or take a step per rollout and environment.
    """
    n_rollouts = max(1, round(total_timesteps / (n_envs * wanted)))
    return max(2, -(-total_timesteps // (n_envs * n_rollouts)))


def even_batch_size(n_steps: int, wanted: int) -> int:
    """
    Steps per minibatch, at most ``wanted``, such that no small rest of a rollout's ``n_steps`` makes an optimizer step of its
    own, with an advantage normalisation and a KL estimate of its own.
    """
    n_minibatches = -(-n_steps // wanted)
    even = -(-n_steps // n_minibatches)

    def last(size: int) -> int:
        return n_steps % size or size

    # Many small minibatches, each rounded up, can leave a small rest all the same.
    return even if last(even) >= even / 2 else max(range(even, 0, -1), key=last)


class SceneExtractor(CombinedExtractor):
    """
    SB3's ``CombinedExtractor`` without the instruction, whose bytes are the same in every step of a task, and with larger
    channel-first pictures reduced to the 84 pixels that its network was made for (Mnih et al., 2015).
    """

    SIDE = 84

    def __init__(self, observation_space: spaces.Dict) -> None:
        seen = {key: space for key, space in observation_space.spaces.items() if key != "instruction"}
        # TRPO takes some 25 gradients of a whole rollout per update: from 128 pixels they are most of a study's time.
        reduced = {
            key: spaces.Box(0, 255, (space.shape[0], self.SIDE, self.SIDE), np.uint8)
            for key, space in seen.items()
            if isinstance(space, spaces.Box) and is_image_space(space) and min(space.shape[1:]) > self.SIDE
        }
        super().__init__(spaces.Dict({**seen, **reduced}))
        self.reduced = list(reduced)

    def forward(self, observations: dict[str, th.Tensor]) -> th.Tensor:
        smaller = {key: functional.adaptive_avg_pool2d(observations[key], self.SIDE) for key in self.reduced}
        return super().forward({**observations, **smaller})
