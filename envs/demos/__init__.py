"""Demonstrations in LIBERO's HDF5 format: collection, files, key poses, pictures."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "CollectionSettings": "sb3_tgrpo.envs.demos.collection",
    "Demo": "sb3_tgrpo.envs.demos.files",
    "Demos": "sb3_tgrpo.envs.demos.files",
    "KeyPoses": "sb3_tgrpo.envs.demos.key_poses",
    "collect_demos": "sb3_tgrpo.envs.demos.collection",
    "load_demos": "sb3_tgrpo.envs.demos.files",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
