"""OpenVLA in plain PyTorch and transformers: model, image pipeline, tokens, and the Stable-Baselines3 policy."""

from typing import TYPE_CHECKING

from sb3_tgrpo.lazy import lazy_attributes

if TYPE_CHECKING:
    from sb3_tgrpo.openvla.checkpoint import Checkpoint as Checkpoint
    from sb3_tgrpo.openvla.checkpoint import load_openvla as load_openvla
    from sb3_tgrpo.openvla.conventions import Conventions as Conventions
    from sb3_tgrpo.openvla.images import center_crop as center_crop
    from sb3_tgrpo.openvla.images import preprocess_libero_image as preprocess_libero_image
    from sb3_tgrpo.openvla.images import resize_lanczos3 as resize_lanczos3
    from sb3_tgrpo.openvla.images import rotate_and_jpeg as rotate_and_jpeg
    from sb3_tgrpo.openvla.images import to_pixel_values as to_pixel_values
    from sb3_tgrpo.openvla.loading import save_openvla as save_openvla
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy as OpenVLAPolicy
    from sb3_tgrpo.openvla.prompt import prompt_token_ids as prompt_token_ids

# Loaded on first use: transformers takes seconds to import, and environment workers never need it.
_LAZY = {
    "Checkpoint": "sb3_tgrpo.openvla.checkpoint",
    "Conventions": "sb3_tgrpo.openvla.conventions",
    "OpenVLAPolicy": "sb3_tgrpo.openvla.policy",
    "center_crop": "sb3_tgrpo.openvla.images",
    "load_openvla": "sb3_tgrpo.openvla.checkpoint",
    "preprocess_libero_image": "sb3_tgrpo.openvla.images",
    "prompt_token_ids": "sb3_tgrpo.openvla.prompt",
    "resize_lanczos3": "sb3_tgrpo.openvla.images",
    "rotate_and_jpeg": "sb3_tgrpo.openvla.images",
    "save_openvla": "sb3_tgrpo.openvla.loading",
    "to_pixel_values": "sb3_tgrpo.openvla.images",
}

__all__ = list(_LAZY)
__getattr__ = lazy_attributes(__name__, _LAZY)
