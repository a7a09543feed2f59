"""Environments for TGRPO: groups that start alike and step together, and LIBERO."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "sb3_tgrpo.envs":
    raise ImportError(f"Import this package as sb3_tgrpo.envs, not as {__name__}: two copies of a class are not equal.")

if TYPE_CHECKING:
    from sb3_tgrpo.envs.group_vec_env import GroupVecEnv, make_group_env
    from sb3_tgrpo.envs.groups import SyncGroupVectorEnv

# Imported on first use: nothing here pulls in a simulator, torch or SB3 before it is needed.
_LAZY = {
    "GroupVecEnv": "sb3_tgrpo.envs.group_vec_env",
    "SyncGroupVectorEnv": "sb3_tgrpo.envs.groups",
    "make_group_env": "sb3_tgrpo.envs.group_vec_env",
}

__all__ = ["GroupVecEnv", "SyncGroupVectorEnv", "make_group_env"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
