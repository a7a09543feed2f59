"""What OpenVLAPolicy accepts: spaces and arguments."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_tgrpo.openvla.config import OpenVLAConfig
from sb3_tgrpo.openvla.images import LIBERO_SIZE


def image_space(space: spaces.Space, key: str | None, instruction: str | None) -> spaces.Box:
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    image = space if key is None else parts.get(key)
    if not isinstance(image, spaces.Box) or image.dtype != np.uint8 or len(image.shape) != 3 or 3 not in image.shape:
        raise ValueError(f"OpenVLAPolicy needs uint8 RGB images (an 'image' entry, or the observation itself), got {space}.")
    if instruction is None and "instruction" not in parts:
        raise ValueError("The observation has no 'instruction': pass policy_kwargs=dict(instruction='...').")
    return image


def check_image_size(height: int, width: int, config: OpenVLAConfig) -> None:
    """The checkpoint's image recipe starts from frames of a given size."""
    area = config.pipeline == "area"
    side = config.image_size if area else LIBERO_SIZE
    if min(height, width) < side if area else (height, width) != (side, side):
        read, size = (f"frames of at least {side}x{side}", f"{side} or more") if area else (f"{side}x{side} frames", f"{side}")
        raise ValueError(
            f"The checkpoint reads {read}, not {height}x{width}: make the environment, or collect the demonstrations, with "
            f"image_size={size}."
        )


def check_arguments(
    action_space: spaces.Space,
    temperature: float | None,
    gripper: str | None,
    use_sde: bool,
    vision_cache_mb: float,
    lora: str | Mapping[str, Any] | None,
    quantization: str | None,
) -> None:
    if not isinstance(action_space, spaces.Box):
        raise ValueError(f"OpenVLAPolicy needs a Box action space, got {action_space}.")
    if use_sde:
        raise ValueError("use_sde=True has no meaning for token policies.")
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; predict(deterministic=True) is greedy.")
    if gripper not in (None, "libero", "none"):
        raise ValueError(f"gripper must be 'libero', 'none' or None, got {gripper!r}.")
    if vision_cache_mb < 0:
        raise ValueError(f"vision_cache_mb must be at least 0, got {vision_cache_mb}.")
    if lora is None and quantization is not None:
        raise ValueError("lora=None trains the base, which can't be quantised: pass quantization=None or an adapter.")


def box_statistics(space: spaces.Box, libero: bool) -> dict[str, Any]:
    low, high = space.low.flatten().astype(float), space.high.flatten().astype(float)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError(f"A checkpoint without action statistics needs a bounded action space, got {space}.")
    mask = np.ones(len(low), dtype=bool)
    if libero:
        low[-1], high[-1], mask[-1] = 0.0, 1.0, False
    return {"action": {"q01": low.tolist(), "q99": high.tolist(), "mask": mask.tolist()}}
