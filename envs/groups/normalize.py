"""Running normalisation of observations and rewards of groups."""

from typing import cast

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_tgrpo.envs.groups.vec_env import GroupVecEnv


class GroupVecNormalize(VecNormalize):
    """
    SB3's ``VecNormalize`` for groups: its statistics are those of observations that are acted on, and of rewards of steps that
    count. ``VecNormalize`` itself counts the observation at which a member stands still again at every step of the others.

    Parameters, saving and loading are ``VecNormalize``'s. Where nobody stands still the two are equal.
    """

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        assert isinstance(obs, (np.ndarray, dict))
        self.old_obs, self.old_reward = obs, rewards
        groups = cast(GroupVecEnv, self.venv.unwrapped)
        if self.training:
            self._count(obs, groups.active)
            self._count_rewards(rewards, groups.valid)
        for info, done in zip(infos, dones, strict=True):
            if done:
                info["terminal_observation"] = self.normalize_obs(info["terminal_observation"])
        self.returns[dones | [info.get("resampled", False) for info in infos]] = 0.0
        return self.normalize_obs(obs), self.normalize_reward(rewards), dones, infos

    def _count(self, obs: np.ndarray | dict[str, np.ndarray], rows: np.ndarray) -> None:
        if not self.norm_obs or not rows.any():
            return
        if isinstance(obs, dict):
            assert isinstance(self.obs_rms, dict)
            for key, statistics in self.obs_rms.items():
                statistics.update(obs[key][rows])
        else:
            assert isinstance(self.obs_rms, RunningMeanStd)
            self.obs_rms.update(obs[rows])

    def _count_rewards(self, rewards: np.ndarray, rows: np.ndarray) -> None:
        if rows.any():
            self.returns[rows] = self.returns[rows] * self.gamma + rewards[rows]
            self.ret_rms.update(self.returns[rows])
