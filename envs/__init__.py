"""Environments for TGRPO: groups that start alike and step together, and LIBERO."""

# ruff: noqa: F401

from typing import TYPE_CHECKING

from sb3_tgrpo.lazy import lazy_attributes

if __name__ != "sb3_tgrpo.envs":
    raise ImportError(f"Import this package as sb3_tgrpo.envs, not as {__name__}: two copies of a class are not equal.")

if TYPE_CHECKING:  # what type checkers and editors see
    from sb3_tgrpo.envs.demos.collection import CollectionSettings, collect_demos
    from sb3_tgrpo.envs.demos.files import Demo, Demos, load_demos
    from sb3_tgrpo.envs.demos.key_poses import KeyPoses, key_poses
    from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
    from sb3_tgrpo.envs.groups.normalize import GroupVecNormalize
    from sb3_tgrpo.envs.groups.sync_vector_env import SyncGroupVectorEnv
    from sb3_tgrpo.envs.groups.vec_env import GroupVecEnv, make_group_env
    from sb3_tgrpo.envs.libero.env import LiberoEnv
    from sb3_tgrpo.envs.registration import register_envs

# Imported on first use: nothing here pulls in a simulator, torch or SB3 before it is needed.
_LAZY = {
    "CollectionSettings": "sb3_tgrpo.envs.demos.collection",
    "Demo": "sb3_tgrpo.envs.demos.files",
    "Demos": "sb3_tgrpo.envs.demos.files",
    "GroupVecEnv": "sb3_tgrpo.envs.groups.vec_env",
    "GroupVecNormalize": "sb3_tgrpo.envs.groups.normalize",
    "KeyPoses": "sb3_tgrpo.envs.demos.key_poses",
    "LiberoEnv": "sb3_tgrpo.envs.libero.env",
    "ScriptedExpert": "sb3_tgrpo.envs.experts.scripted",
    "SyncGroupVectorEnv": "sb3_tgrpo.envs.groups.sync_vector_env",
    "collect_demos": "sb3_tgrpo.envs.demos.collection",
    "key_poses": "sb3_tgrpo.envs.demos.key_poses",
    "load_demos": "sb3_tgrpo.envs.demos.files",
    "make_group_env": "sb3_tgrpo.envs.groups.vec_env",
    "register_envs": "sb3_tgrpo.envs.registration",
}

__all__ = list(_LAZY)
__getattr__ = lazy_attributes(__name__, _LAZY)
