"""Reward specifications and programs: parsing, checking, compiling, printing."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "RewardMemory": "sb3_tgrpo.rewards.program.program",
    "RewardProgram": "sb3_tgrpo.rewards.program.program",
    "RewardSpec": "sb3_tgrpo.rewards.program.spec",
    "RewardStep": "sb3_tgrpo.rewards.program.program",
    "load_reward": "sb3_tgrpo.rewards.program.program",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
