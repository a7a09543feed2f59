"""
Stable-Baselines3's own tests with TGRPO in PPO's place and groups in the place of its vector environments.

    pip download --no-binary :all: --no-deps stable-baselines3==2.9.2 && tar xf stable_baselines3-2.9.2.tar.gz
    python scripts/sb3_own_tests.py stable_baselines3-2.9.2 [pytest's arguments]

Only construction is adapted: PPO's own settings are left out, one environment becomes a group of two copies, and wrappers are
put around groups. Nothing of Stable-Baselines3 is kept here: the tests are read from the unpacked source tree.
"""

import argparse
import copy
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
import stable_baselines3
from stable_baselines3.common import env_util, evaluation, vec_env  # noqa: F401  # keep the classes that they have imported
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecExtractDictObs,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    VecVideoRecorder,
)

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import GroupVecEnv, GroupVecNormalize, SyncGroupVectorEnv, make_group_env

PPOS_OWN = {
    "n_steps", "gae_lambda", "clip_range_vf", "normalize_advantage", "ent_coef", "vf_coef", "use_sde", "sde_sample_freq",
}  # fmt: skip
CRITICS_OWN = {"share_features_extractor", "full_std", "use_expln", "squash_output"}
ALL_OF = (
    "test_vec_envs.py",
    "test_vec_normalize.py",
    "test_vec_stacked_obs.py",
    "test_vec_monitor.py",
    "test_vec_check_nan.py",
)
"""Files whose tests are of vector environments: all of their tests are run."""
WITH_PPO = (
    "test_callbacks.py", "test_cnn.py", "test_custom_policy.py", "test_deterministic.py", "test_dict_env.py",
    "test_identity.py", "test_logger.py", "test_predict.py", "test_run.py", "test_save_load.py", "test_spaces.py",
    "test_tensorboard.py", "test_train_eval_mode.py", "test_vec_extract_dict_obs.py",
)  # fmt: skip
"""Files whose tests are run where they are PPO's."""


class SeededSpace(gym.Wrapper):
    """Resets that are seeded, for environments whose observations are samples of a space."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.unwrapped.observation_space.seed(seed)
        return self.env.reset(seed=seed) if options is None else self.env.reset(seed=seed, options=options)


def _seeded(env_fn: Callable[[], gym.Env]) -> gym.Env:
    return SeededSpace(env_fn())


class Slow(Exception):
    """A test took too long."""


class Groups(GroupVecEnv):
    """One group in the place of a ``DummyVecEnv``, or of a ``SubprocVecEnv``."""

    subprocess = False

    def __new__(cls, env_fns: list[Callable[[], gym.Env]], start_method: str | None = None) -> Any:
        return super().__new__(cls) if len(env_fns) > 1 else DummyVecEnv(env_fns)  # one environment is no group

    def __init__(self, env_fns: list[Callable[[], gym.Env]], start_method: str | None = None) -> None:
        makers = [partial(_seeded, env_fn) for env_fn in env_fns]
        super().__init__(SyncGroupVectorEnv(makers, len(makers), stop_on="never", subprocess=self.subprocess))

    def step_async(self, actions: Any) -> None:
        if not self.n_moves:  # a DummyVecEnv can be stepped before its first reset
            self.reset()
        super().step_async(actions)

    @property
    def envs(self) -> list[gym.Env]:
        return [worker.env for worker in self.groups._workers]  # type: ignore[attr-defined]


class GroupsInProcesses(Groups):
    """The same in processes."""

    subprocess = True


def as_groups(env: Any) -> Any:
    """An environment of SB3's tests as groups, in the same wrappers."""
    if isinstance(env, str):
        return make_group_env(env, 2, stop_on="never", subprocess=False)
    if isinstance(env, GroupVecEnv) or env is None:
        return env
    if isinstance(env, gym.Env):
        if isinstance(env, Monitor):  # groups report their episodes themselves, and its file can't be copied
            env = env.env
        return Groups([lambda: copy.deepcopy(env)] * 2)
    if isinstance(env, DummyVecEnv):
        return Groups([lambda: copy.deepcopy(env.envs[0])] * max(2, env.num_envs))
    if isinstance(env, SubprocVecEnv):
        raise TypeError("environments of other processes can't be copied")
    assert isinstance(env, VecEnvWrapper)
    inner = as_groups(env.venv)
    if isinstance(env, VecNormalize):
        if isinstance(env, GroupVecNormalize):
            return env
        names = ("training", "norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon", "norm_obs_keys")
        return GroupVecNormalize(inner, **{name: getattr(env, name) for name in names})
    if isinstance(env, VecFrameStack):
        return env if inner is env.venv else VecFrameStack(inner, env.stacked_obs.n_stack)
    if isinstance(env, VecVideoRecorder):
        settings = {"video_length": env.video_length, "name_prefix": env.name_prefix}
        return VecVideoRecorder(inner, env.video_folder, env.record_video_trigger, **settings)
    if isinstance(env, VecMonitor):  # groups report their episodes themselves
        return inner
    if isinstance(env, VecExtractDictObs):
        return VecExtractDictObs(inner, env.key)
    return VecTransposeImage(inner) if isinstance(env, VecTransposeImage) and inner is not env.venv else env


class PPO(TGRPO):
    """TGRPO that is constructed as PPO is."""

    def __init__(self, policy: Any, env: VecEnv | gym.Env | str | None, *args: Any, **kwargs: Any) -> None:
        given = {name: value for name, value in kwargs.items() if name not in PPOS_OWN}
        given["policy_kwargs"] = {
            name: value for name, value in (kwargs.get("policy_kwargs") or {}).items() if name not in CRITICS_OWN
        }
        super().__init__(policy, as_groups(env), *args, **{"learning_rate": 3e-4, "n_epochs": 4, "batch_size": 64, **given})

    def learn(self, *args: Any, tb_log_name: str = "PPO", **kwargs: Any) -> Any:
        return super().learn(*args, tb_log_name=tb_log_name, **kwargs)

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        super().set_env(as_groups(env), force_reset)

    @classmethod
    def load(cls, path: Any, env: Any = None, *args: Any, **kwargs: Any) -> Any:
        return super().load(path, as_groups(env), *args, **kwargs)


class OnlyPPO:
    """
    A pytest plugin that leaves out tests of other algorithms, and ends a test that waits for what groups never do.

    :param seconds: Longest time of a test.
    """

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        signal.signal(signal.SIGALRM, self._stop)

    def _stop(self, *_: object) -> None:
        raise Slow(f"not finished after {self.seconds} s")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Any:
        signal.alarm(self.seconds)
        try:
            return (yield)
        finally:
            signal.alarm(0)

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        def applies(item: pytest.Item) -> bool:
            if item.path.name in ALL_OF:
                return True
            test: Any = item
            ids = test.callspec.id.split("-") if hasattr(test, "callspec") else []
            names = test.obj.__code__.co_names
            return "PPO" in ids or "ppo" in ids or ("PPO" in names and "model_class" not in test.fixturenames)

        left_out = [item for item in items if not applies(item)]
        items[:] = [item for item in items if applies(item)]
        config.hook.pytest_deselected(items=left_out)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, help="unpacked source tree of Stable-Baselines3")
    parser.add_argument("--seconds", type=int, default=60, help="longest time of a test")
    known, others = parser.parse_known_args()
    tests = known.path / "tests"
    if not tests.is_dir():
        parser.error(f"{tests} is no folder: give the unpacked source distribution of Stable-Baselines3.")
    stable_baselines3.PPO = PPO  # type: ignore[misc, assignment]
    vec_env.DummyVecEnv, vec_env.SubprocVecEnv = Groups, GroupsInProcesses  # type: ignore[misc, assignment]
    files = [str(tests / name) for name in (*ALL_OF, *WITH_PPO)]
    return pytest.main(
        [*files, "--rootdir", str(tests), "-c", "/dev/null", "-p", "no:cacheprovider", *others],
        plugins=[OnlyPPO(known.seconds)],
    )


if __name__ == "__main__":
    sys.exit(main())
