"""TGRPO for Stable-Baselines3: post-train vision-language-action policies with groups instead of a critic."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sb3_tgrpo.envs.registration import register_envs
from sb3_tgrpo.version import __version__

if TYPE_CHECKING:
    from sb3_tgrpo.buffers import GroupedRolloutBuffer
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy
    from sb3_tgrpo.preferences import DPO, TPO
    from sb3_tgrpo.sft import SFT
    from sb3_tgrpo.tgrpo import TGRPO

# Attributes are imported on first use: `import sb3_tgrpo` stays light in environment workers, and
# `sb3_tgrpo.rewards` loads without torch.
_LAZY = {
    "DPO": "sb3_tgrpo.preferences",
    "TPO": "sb3_tgrpo.preferences",
    "SFT": "sb3_tgrpo.sft",
    "TGRPO": "sb3_tgrpo.tgrpo",
    "GroupedRolloutBuffer": "sb3_tgrpo.buffers",
    "OpenVLAPolicy": "sb3_tgrpo.openvla.policy",
}

__all__ = ["DPO", "SFT", "TGRPO", "TPO", "GroupedRolloutBuffer", "OpenVLAPolicy", "__version__"]


register_envs()


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
