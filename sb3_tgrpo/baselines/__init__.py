"""Methods that TGRPO is compared with: preferences (DPO, TPO) and algorithms on single environments (PPO)."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "DPO": "sb3_tgrpo.baselines.preferences",
    "TPO": "sb3_tgrpo.baselines.preferences",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
