"""What TGRPO asks of an environment."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np


class GroupEnv(Protocol):
    """
    What TGRPO uses of the innermost ``VecEnv``, beside SB3's interface: groups of consecutive environments that start alike,
    step together and are done in the same step. ``sb3_tgrpo.envs.GroupVecEnv`` is one.

    Infos hold ``resampled=True`` for the members of a group that is sampled again from the same start, and on done steps
    ``episode`` and, where the environment reports it, ``is_success`` of each member.
    """

    @property
    def group_size(self) -> int:
        """Members per group."""
        ...

    @property
    def n_groups(self) -> int:
        """Number of groups."""
        ...

    @property
    def stop_on(self) -> str:
        """Rule by which a group ends."""
        ...

    @property
    def active(self) -> np.ndarray:
        """``(num_envs,)`` bool: members whose next action will be carried out."""
        ...

    valid: np.ndarray
    """``(num_envs,)`` bool: members whose latest step counts."""

    def pause(self, groups: Sequence[int]) -> None:
        """Let groups stand still."""
        ...

    def resume(self) -> None:
        """Let all groups go on."""
        ...

    def start_state(self) -> dict[str, Any]:
        """Position in the sequence of starts; the current start counts as not yet taken."""
        ...

    def set_start_state(self, state: dict[str, Any]) -> None:
        """Go on from a saved position at the next reset."""
        ...
