"""Scripted experts for LIBERO tasks."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "ScriptedExpert": "sb3_tgrpo.envs.experts.scripted",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
