"""LIBERO tasks as Gymnasium environments."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "LiberoEnv": "sb3_tgrpo.envs.libero.env",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
