"""What TGRPO asks of an environment, and of the wrappers around it."""

from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize


class GroupEnv(Protocol):
    """
    What TGRPO uses of the innermost ``VecEnv``, beside SB3's interface: groups of consecutive environments that start alike,
    step together and are done in the same step. ``sb3_tgrpo.envs.GroupVecEnv`` is one.

    Infos hold ``resampled=True`` for the members of a group that is sampled again from the same start, and on done steps
    ``episode`` and, where the environment reports it, ``is_success`` of each member.
    """

    group_size: int
    """Members per group."""
    n_groups: int
    """Number of groups."""
    stop_on: str
    """Rule by which a group ends."""
    restarts: bool
    """Whether an environment that is lost is started anew, and its group sampled again."""
    n_moves: int
    """Resets and steps so far, by which one user notices those of another."""
    active: np.ndarray
    """``(num_envs,)`` bool: members whose next action will be carried out."""
    valid: np.ndarray
    """``(num_envs,)`` bool: members whose latest step counts."""

    def pause(self, groups: Sequence[int]) -> None:
        """Let groups stand still."""

    def resume(self) -> None:
        """Let all groups go on."""

    def start_state(self) -> dict[str, Any]:
        """Position in the sequence of starts; the current start counts as not yet taken."""

    def set_start_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved position at the next reset."""


def groups_of(env: VecEnv) -> GroupEnv:
    """The groups behind wrappers."""
    return cast(GroupEnv, env.unwrapped)


def check_wrappers(env: VecEnv) -> None:
    """
    Refuse wrappers that would take steps at which a member, or a whole group, stands still for steps that were made.

    :param env: Groups, in wrappers or not.
    :raises ValueError: If there is such a wrapper, with what to use in its place.
    """
    groups = groups_of(env)
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and env.training and type(env).step_wait is VecNormalize.step_wait:
            raise ValueError(
                "VecNormalize around groups counts the observation of a member that stands still at every step of the others: "
                "use sb3_tgrpo.envs.GroupVecNormalize, or set its training to False."
            )
        if isinstance(env, VecMonitor):
            raise ValueError(
                "VecMonitor around groups counts steps at which members stand still. Groups report their episodes themselves: "
                "leave it out."
            )
        if isinstance(env, VecFrameStack) and (groups.n_groups > 1 or groups.restarts):
            raise ValueError(
                "VecFrameStack around groups stacks frames while a group waits, and goes on stacking where a group is sampled "
                "again: stack frames in each member, with make_group_env(lambda: "
                "gymnasium.wrappers.FrameStackObservation(gymnasium.make(...), 4))."
            )
        env = env.venv
