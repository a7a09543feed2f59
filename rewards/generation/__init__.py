"""Rewards written by a language model."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "generate_reward": "sb3_tgrpo.rewards.generation.generate",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
