"""TGRPO for Stable-Baselines3: post-train vision-language-action policies with groups instead of a critic."""

import os
from typing import TYPE_CHECKING

from sb3_tgrpo.envs.registration import register_envs
from sb3_tgrpo.lazy import lazy_attributes
from sb3_tgrpo.version import __version__

if TYPE_CHECKING:
    from sb3_tgrpo.baselines.preferences import DPO, TPO
    from sb3_tgrpo.buffers import GroupedRolloutBuffer
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy
    from sb3_tgrpo.sft.trainer import SFT
    from sb3_tgrpo.tgrpo import TGRPO

# Attributes are imported on first use: `import sb3_tgrpo` stays light in environment workers, and
# `sb3_tgrpo.rewards` loads without torch.
_LAZY = {
    "DPO": "sb3_tgrpo.baselines.preferences",
    "TPO": "sb3_tgrpo.baselines.preferences",
    "SFT": "sb3_tgrpo.sft.trainer",
    "TGRPO": "sb3_tgrpo.tgrpo",
    "GroupedRolloutBuffer": "sb3_tgrpo.buffers",
    "OpenVLAPolicy": "sb3_tgrpo.openvla.policy",
}

__all__ = ["DPO", "SFT", "TGRPO", "TPO", "GroupedRolloutBuffer", "OpenVLAPolicy", "__version__"]


# Threads of GNU OpenMP, torch's, that wait for one another give up their core sooner. With the default, an update with two
# threads took thirteen times as long as with one where another run had the second core (docs/train.md). It is read when torch
# is imported: scripts that import torch first have to set it themselves.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

register_envs()

__getattr__ = lazy_attributes(__name__, _LAZY)
