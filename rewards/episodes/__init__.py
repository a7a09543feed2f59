"""Recorded and computed episodes that rewards are verified on."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "Trace": "sb3_tgrpo.rewards.episodes.traces",
    "load_traces": "sb3_tgrpo.rewards.episodes.traces",
    "save_traces": "sb3_tgrpo.rewards.episodes.traces",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
