"""Environments for TGRPO: groups that start alike and step together, and LIBERO."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "sb3_tgrpo.envs":
    raise ImportError(f"Import this package as sb3_tgrpo.envs, not as {__name__}: two copies of a class are not equal.")

if TYPE_CHECKING:
    from sb3_tgrpo.envs.group_vec_env import GroupVecEnv, make_group_env
    from sb3_tgrpo.envs.groups import SyncGroupVectorEnv
    from sb3_tgrpo.envs.libero import LiberoEnv
    from sb3_tgrpo.envs.registration import register_envs

# Imported on first use: nothing here pulls in a simulator, torch or SB3 before it is needed.
_LAZY = {
    "GroupVecEnv": "sb3_tgrpo.envs.group_vec_env",
    "LiberoEnv": "sb3_tgrpo.envs.libero",
    "SyncGroupVectorEnv": "sb3_tgrpo.envs.groups",
    "make_group_env": "sb3_tgrpo.envs.group_vec_env",
    "register_envs": "sb3_tgrpo.envs.registration",
}

__all__ = ["GroupVecEnv", "LiberoEnv", "SyncGroupVectorEnv", "make_group_env", "register_envs"]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
