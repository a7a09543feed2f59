"""Groups of environments that start alike and step together."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "GroupVecEnv": "sb3_tgrpo.envs.groups.vec_env",
    "GroupVecNormalize": "sb3_tgrpo.envs.groups.normalize",
    "StopOn": "sb3_tgrpo.envs.groups.sync_vector_env",
    "SyncGroupVectorEnv": "sb3_tgrpo.envs.groups.sync_vector_env",
    "make_group_env": "sb3_tgrpo.envs.groups.vec_env",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
