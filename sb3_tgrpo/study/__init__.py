"""Grids of training runs under one protocol, and their tables."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "GRIDS": "sb3_tgrpo.study.methods",
    "Study": "sb3_tgrpo.study.design",
    "run_study": "sb3_tgrpo.study.runner",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
