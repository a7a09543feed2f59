"""Checks of an installation, a simulator and a checkpoint."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "examine": "sb3_tgrpo.doctor.checks",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
