"""Supervised fine-tuning on demonstrations: files, batches, the training loop."""

from sb3_tgrpo.lazy import lazy_attributes

_MODULES = {
    "DemonstrationDataset": "sb3_tgrpo.sft.dataset",
    "SFT": "sb3_tgrpo.sft.trainer",
}

__all__ = list(_MODULES)
__getattr__ = lazy_attributes(__name__, _MODULES)
