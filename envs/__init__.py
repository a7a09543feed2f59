"""Environments for TGRPO: groups that start alike and step together, and LIBERO."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "sb3_tgrpo.envs":
    raise ImportError(f"Import this package as sb3_tgrpo.envs, not as {__name__}: two copies of a class are not equal.")

if TYPE_CHECKING:
    from sb3_tgrpo.envs.demo_collection import CollectionSettings, collect_demos
    from sb3_tgrpo.envs.demo_key_poses import KeyPoses, key_poses
    from sb3_tgrpo.envs.demos import Demo, Demos, load_demos
    from sb3_tgrpo.envs.experts import ScriptedExpert
    from sb3_tgrpo.envs.group_vec_env import GroupVecEnv, make_group_env
    from sb3_tgrpo.envs.groups import SyncGroupVectorEnv
    from sb3_tgrpo.envs.libero import LiberoEnv
    from sb3_tgrpo.envs.registration import register_envs

# Imported on first use: nothing here pulls in a simulator, torch or SB3 before it is needed.
_LAZY = {
    "CollectionSettings": "sb3_tgrpo.envs.demo_collection",
    "Demo": "sb3_tgrpo.envs.demos",
    "Demos": "sb3_tgrpo.envs.demos",
    "GroupVecEnv": "sb3_tgrpo.envs.group_vec_env",
    "KeyPoses": "sb3_tgrpo.envs.demo_key_poses",
    "LiberoEnv": "sb3_tgrpo.envs.libero",
    "ScriptedExpert": "sb3_tgrpo.envs.experts",
    "SyncGroupVectorEnv": "sb3_tgrpo.envs.groups",
    "collect_demos": "sb3_tgrpo.envs.demo_collection",
    "key_poses": "sb3_tgrpo.envs.demo_key_poses",
    "load_demos": "sb3_tgrpo.envs.demos",
    "make_group_env": "sb3_tgrpo.envs.group_vec_env",
    "register_envs": "sb3_tgrpo.envs.registration",
}

__all__ = [
    "CollectionSettings",
    "Demo",
    "Demos",
    "GroupVecEnv",
    "KeyPoses",
    "LiberoEnv",
    "ScriptedExpert",
    "SyncGroupVectorEnv",
    "collect_demos",
    "key_poses",
    "load_demos",
    "make_group_env",
    "register_envs",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
