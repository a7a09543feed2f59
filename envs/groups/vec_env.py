"""Groups as a Stable-Baselines3 ``VecEnv``."""

import importlib
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from sb3_tgrpo.defaults import GROUP_SIZE
from sb3_tgrpo.envs.groups.sync_vector_env import StartOptions, StopOn, SyncGroupVectorEnv, stack_observations, succeeded
from sb3_tgrpo.settings import check_number


class GroupVecEnv(VecEnv):
    """
    Thin adapter that shows a :class:`~sb3_tgrpo.envs.groups.sync_vector_env.SyncGroupVectorEnv` to Stable-Baselines3.

    All members of a group are ``done`` in the same step. ``info["valid"]`` is True where a member's step counts. A done info
    holds ``terminal_observation``, ``TimeLimit.truncated`` and ``episode`` with the return and length over the steps that
    count, in place of a ``Monitor``'s: each member has one entry. ``env_is_wrapped(Monitor)`` is True therefore, and
    ``evaluate_policy`` uses these entries.

    :param groups: Groups to adapt; closed with this adapter.
    """

    def __init__(self, groups: SyncGroupVectorEnv) -> None:
        self.groups = groups
        # What TGRPO needs of a group environment beside VecEnv's interface, see sb3_tgrpo.group_env.GroupEnv
        self.group_size, self.n_groups, self.stop_on = groups.group_size, groups.n_groups, groups.stop_on
        self.alternate, self.restarts = groups.alternate, groups.restarts
        self.pause, self.resume = groups.pause, groups.resume
        super().__init__(groups.num_envs, groups.single_observation_space, groups.single_action_space)
        self.metadata = {**groups.metadata, **self.metadata}
        self._next_seed: int | None = None
        self._actions: np.ndarray | None = None
        self._returns = np.zeros(self.num_envs)
        self._lengths = np.zeros(self.num_envs, dtype=np.int64)
        self._start_time = time.time()
        self.valid = np.zeros(self.num_envs, dtype=bool)

    @property
    def n_moves(self) -> int:
        """Resets and steps so far."""
        return self.groups.n_moves

    @property
    def active(self) -> np.ndarray:
        """``(num_envs,)`` bool: members whose next action will be carried out."""
        return self.groups.active

    def start_state(self) -> dict[str, Any]:
        """See :meth:`SyncGroupVectorEnv.start_state`. A seed for the next reset is where the sequence is already."""
        if self._next_seed is not None:
            return {"seed": self._next_seed, "n_starts": [0] * self.n_groups}
        return self.groups.start_state()

    def set_start_state(self, state: dict[str, Any]) -> None:
        """See :meth:`SyncGroupVectorEnv.set_start_state`. A state that has a seed outranks an earlier :meth:`seed`."""
        if state["seed"] is not None:
            self._next_seed = None
        self.groups.set_start_state(state)

    # VecEnv's interface
    def seed(self, seed: int | None = None) -> list[int | None]:
        """
        Seed the starts from the next reset on.

        :param seed: Base seed; group ``g`` starts with ``seed + g``. None draws one.
        :return: The seed of each environment's next start.
        """
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self._next_seed = seed
        return [seed + i // self.group_size for i in range(self.num_envs)]

    def reset(self) -> VecEnvObs:
        options, *others = self._options
        self._reset_options()  # also where they are refused: the next reset is without them
        if any(other != options for other in others):
            raise ValueError("set_options() got different options per environment: give one dict for all, groups start by it.")
        self.reset_infos = self.groups.reset_groups(seed=self._next_seed, options=options or None)
        self._next_seed = None
        self._returns[:] = 0.0
        self._lengths[:] = 0
        return stack_observations(self.observation_space, self.groups.observations)

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        assert self._actions is not None
        step = self.groups.step_groups(self._actions)
        self.valid = step.valid
        self._returns += step.rewards
        self._lengths += step.valid
        dones = step.terminations | step.truncations
        # An entry of the member's own Monitor comes at another step, and counts none where the group ends before the member.
        infos = [{key: value for key, value in info.items() if key != "episode"} for info in step.infos]
        for i, info in enumerate(infos):
            info["valid"] = bool(step.valid[i])
            if "resampled" in info:
                self._returns[i], self._lengths[i] = 0.0, 0
            if i in step.start_infos:
                self.reset_infos[i] = step.start_infos[i]
            if dones[i]:
                info["terminal_observation"] = step.final_observations[i]
                info["TimeLimit.truncated"] = bool(step.truncations[i])
                elapsed = round(time.time() - self._start_time, 6)
                info["episode"] = {"r": round(float(self._returns[i]), 6), "l": int(self._lengths[i]), "t": elapsed}
                if "is_success" in step.final_infos[i]:  # a held member reported it when it ended
                    info["is_success"] = succeeded(step.final_infos[i])
                self._returns[i], self._lengths[i] = 0.0, 0
        return stack_observations(self.observation_space, step.observations), step.rewards, dones, infos

    def close(self) -> None:
        self.groups.close()

    def get_images(self) -> Sequence[np.ndarray | None]:
        return list(self.groups.call("render"))

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        return list(self.groups.get_attr(attr_name, indices=list(self._get_indices(indices))))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        chosen = list(self._get_indices(indices))
        self.groups.set_attr(attr_name, [value] * len(chosen), indices=chosen)  # for SB3 a list is one value

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        chosen = list(self._get_indices(indices))
        return list(self.groups.call(method_name, *method_args, indices=chosen, **method_kwargs))

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        chosen = list(self._get_indices(indices))
        if wrapper_class is Monitor:  # what it would add is there
            return [True] * len(chosen)
        return list(self.groups.is_wrapped(wrapper_class, indices=chosen))


def make_group_env(
    env_id: str | Iterable[str] | Callable[[], gym.Env],
    group_size: int = GROUP_SIZE,
    n_groups: int = 1,
    *,
    stop_on: StopOn = "success",
    seed: int | None = None,
    env_kwargs: dict[str, Any] | None = None,
    subprocess: bool | None = None,
    timeout: float | None = 60.0,
    start_options: StartOptions | None = None,
    alternate: bool = False,
    processes: int | None = None,
) -> GroupVecEnv:
    """
    Groups of environments for :class:`~sb3_tgrpo.tgrpo.TGRPO`.

    ::

        env = make_group_env("LIBERO/libero_object-3-v0", group_size=4)
        env = make_group_env(["LIBERO/libero_object-3-v0", "LIBERO/libero_object-4-v0"], group_size=4)  # two groups

    :param env_id: Gymnasium id (also ``"module:id"``), one id per group, or a function that makes the environment. Resets must
        be seeded.
    :param group_size: Members per group.
    :param n_groups: Number of groups; with several ids, groups per id.
    :param stop_on: Rule by which a group ends, see :class:`~sb3_tgrpo.envs.groups.sync_vector_env.SyncGroupVectorEnv`.
    :param seed: Seed of the starts; ``TGRPO(seed=...)`` sets it too.
    :param env_kwargs: Keyword arguments of ``gymnasium.make`` (of the function, if one is given).
    :param subprocess: Whether environments run in processes of their own. None: where observations hold an image. Simulators
        that render gain from it, small environments lose.
    :param timeout: Seconds to wait for one environment's step or reset when it has a process of its own.
    :param start_options: Reset options of each new start, see
        :class:`~sb3_tgrpo.envs.groups.sync_vector_env.SyncGroupVectorEnv`.
    :param alternate: Whether halves of the groups take turns, so that simulators and policy work at the same time. For
        processes and at least two groups.
    :param processes: Number of processes that environments share; None: one each.
    :return: SB3 ``VecEnv`` of ``n_groups * group_size`` environments (times the number of ids).
    :raises TypeError: If ``env_id`` is none of these.
    :raises ValueError: On bad numbers, an empty list of ids, or environments that do not fit together.
    """
    check_number("n_groups", n_groups, int)
    kwargs = dict(env_kwargs or {})
    single = isinstance(env_id, str) or callable(env_id) or not isinstance(env_id, Iterable)
    makers = [_env_fn(item, kwargs) for item in ([env_id] if single else cast(Iterable[Any], env_id))]
    if not makers:
        raise ValueError("env_id is an empty list: name at least one environment.")
    env_fns = [maker for maker in makers for _ in range(n_groups * group_size)]
    if subprocess is None:
        subprocess = _has_image(makers[0])
    groups = SyncGroupVectorEnv(
        env_fns, group_size, stop_on=stop_on, subprocess=subprocess, timeout=timeout, start_options=start_options,
        alternate=alternate, processes=processes,
    )  # fmt: skip
    env = GroupVecEnv(groups)
    if seed is not None:
        env.seed(seed)
    return env


def _env_fn(item: Any, kwargs: dict[str, Any]) -> Callable[[], gym.Env]:
    if callable(item):
        return lambda: item(**kwargs)
    if not isinstance(item, str):
        raise TypeError(f"env_id must be an id, a list of ids or a function that makes an environment, not {item!r}.")
    spec = find_spec(item)  # here, as a worker does not know what this process has registered
    return lambda: gym.make(spec, **kwargs)


def find_spec(env_id: str) -> EnvSpec:
    """
    Specification registered in Gymnasium under an id such as ``CartPole-v1``, or ``module:Id-v0``, whose module is imported.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    return gym.spec(name)


def _has_image(maker: Callable[[], gym.Env]) -> bool:
    env = maker()
    space = env.observation_space
    env.close()
    parts = space.spaces.values() if isinstance(space, spaces.Dict) else [space]
    return any(isinstance(part, spaces.Box) and part.dtype == np.uint8 and len(part.shape) == 3 for part in parts)
