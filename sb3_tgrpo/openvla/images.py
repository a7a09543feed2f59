"""
From a LIBERO frame to OpenVLA's ``pixel_values``: rotation, JPEG round trip, Lanczos resize, centre crop, normalisation.

Each stage equals the TensorFlow pipeline the upstream LIBERO checkpoints were trained and evaluated with in every value,
on CPU and GPU. All functions take one image or a batch, numpy or torch, and return the same kind.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch as th
from torch.nn import functional as F

from sb3_tgrpo.openvla.jpeg import jpeg_round_trip

Images = TypeVar("Images", np.ndarray, th.Tensor)

LIBERO_SIZE = 256
MODEL_SIZE = 224
CROP_AREA = 0.9


@dataclass(frozen=True)
class Normalization:
    """
    Per-tower channel statistics, in the order the towers read the channels.

    :param means: One RGB mean per vision tower.
    :param stds: One RGB standard deviation per vision tower.
    """

    # The checkpoints store ImageNet's numbers rounded to bfloat16, and those are what the models were trained with.
    means: tuple[tuple[float, ...], ...] = ((0.484375, 0.455078125, 0.40625), (0.5, 0.5, 0.5))
    stds: tuple[tuple[float, ...], ...] = ((0.228515625, 0.2236328125, 0.224609375), (0.5, 0.5, 0.5))

    @classmethod
    def from_preprocessor_config(cls, config: dict[str, Any]) -> "Normalization":
        """``tvf_normalize_params`` of ``preprocessor_config.json`` (its rounded numbers win over ``means``, as upstream)."""
        if "tvf_normalize_params" not in config:
            return cls()
        params = config["tvf_normalize_params"]
        return cls(tuple(tuple(p["mean"]) for p in params), tuple(tuple(p["std"]) for p in params))


def _batched(images: Images, stage: Callable[[th.Tensor], th.Tensor], size: int | None, name: str) -> Images:
    """Check, convert to a torch batch, run ``stage``, convert back."""
    is_numpy = isinstance(images, np.ndarray)
    tensor = th.from_numpy(np.ascontiguousarray(images)) if is_numpy else images
    if not isinstance(tensor, th.Tensor):
        raise TypeError(f"{name} takes a numpy array or a torch tensor, got {type(images).__name__}.")
    if tensor.dtype != th.uint8 or tensor.ndim not in (3, 4) or tensor.shape[-1] != 3:
        raise ValueError(
            f"{name} takes uint8 images of shape (height, width, 3) or a batch of them, "
            f"got {tensor.dtype} of shape {tuple(tensor.shape)}."
        )
    if size is not None and tensor.shape[-3:-1] != (size, size):
        raise ValueError(
            f"{name} takes {size}x{size} images, got {tensor.shape[-3]}x{tensor.shape[-2]}. "
            f"OpenVLA's LIBERO checkpoints were trained on {LIBERO_SIZE}x{LIBERO_SIZE} frames: render at that size."
        )
    result = stage(tensor) if tensor.ndim == 4 else stage(tensor.unsqueeze(0)).squeeze(0)
    return result.numpy() if is_numpy else result  # type: ignore[return-value]


def rotate_and_jpeg(image: Images) -> Images:
    """
    Rotate a simulator frame by 180 degrees and pass it through JPEG (quality 95).

    :param image: ``(..., height, width, 3)`` uint8 as LIBERO renders it (upside down), sides multiples of 16.
    :return: Upright image of the same shape.
    """
    return _batched(image, lambda x: jpeg_round_trip(x.flip(1, 2)), None, "rotate_and_jpeg")


def _sinf(x: np.float32) -> np.float32:
    """
    float32 sine for 0 <= x < 10, as the C library TensorFlow calls rounds it: quadrant reduction and a polynomial of
    degree 7 or 8 in double precision. A correctly rounded sine differs in 1 of 70 values here, and then a pixel may.
    """
    quadrant = round(float(x) * 2 / math.pi)
    r = float(x) - quadrant * (math.pi / 2)
    z = r * r
    if quadrant % 2 == 0:
        y = r + r * z * float.fromhex("-0x1.555545995a603p-3")
        y += r * z * z * (float.fromhex("0x1.1107605230bc4p-7") + z * float.fromhex("-0x1.994eb3774cf24p-13"))
    else:
        y = 1 + z * float.fromhex("-0x1.ffffffd0c621cp-2") + z * z * float.fromhex("0x1.55553e1068f19p-5")
        y += z * z * z * (float.fromhex("-0x1.6c087e89a359dp-10") + z * float.fromhex("0x1.99343027bf8c3p-16"))
    return np.float32(-y if quadrant % 4 >= 2 else y)


@lru_cache(maxsize=8)
def _lanczos_taps(source: int, target: int, device: th.device) -> tuple[th.Tensor, th.Tensor]:
    """Source indices and float32 weights ``(taps, target)`` of an antialiased Lanczos-3 resize."""
    # float32 at every step, sums and products in TensorFlow's order: one rounding more moves a pixel now and then.
    f32 = np.float32
    pi, scale = f32(math.pi), f32(source) / f32(target)
    inverse_scale = f32(1) / scale
    radius = f32(3) * scale
    rows: list[tuple[int, list[np.floating]]] = []
    for output in range(target):
        centre = (f32(output) + f32(0.5)) * scale
        first = max(math.ceil(centre - radius - f32(0.5)), 0)
        last = min(math.floor(centre + radius - f32(0.5)), source - 1)
        weights_of_pixel = []
        for pixel in range(first, last + 1):
            x = abs((f32(pixel) + f32(0.5) - centre) * inverse_scale)
            if x > 3:
                weights_of_pixel.append(f32(0))
            elif x <= f32(1e-3):
                weights_of_pixel.append(f32(1))
            else:
                sines = f32(3) * _sinf(pi * x) * _sinf(pi * x / f32(3))
                weights_of_pixel.append(sines / (pi * pi * x * x))
        total = f32(0)
        for weight in weights_of_pixel:
            total = total + weight
        inverse = f32(1) / total
        rows.append((first, [weight * inverse for weight in weights_of_pixel]))
    taps = max(len(column) for _, column in rows)
    index = np.zeros((taps, target), dtype=np.int64)
    weights = np.zeros((taps, target), dtype=np.float32)
    for output, (first, column) in enumerate(rows):
        index[: len(column), output] = np.arange(first, first + len(column))
        weights[: len(column), output] = column
    return th.from_numpy(index).to(device), th.from_numpy(weights).to(device)


def _resize_lanczos3(images: th.Tensor) -> th.Tensor:
    source, target = images.shape[1], MODEL_SIZE
    index, weights = _lanczos_taps(source, target, images.device)

    def resize_rows(x: th.Tensor) -> th.Tensor:
        # Products and sums stay separate operations: TensorFlow adds tap after tap in float32, a fused multiply-add or a
        # matrix product rounds differently.
        total = x.index_select(1, index[0]).mul_(weights[0].view(1, -1, 1, 1))
        for k in range(1, len(index)):
            total.add_(x.index_select(1, index[k]).mul_(weights[k].view(1, -1, 1, 1)))
        return total

    tall = resize_rows(images.to(th.float32))
    wide = resize_rows(tall.transpose(1, 2).contiguous()).transpose(1, 2)  # whole rows are cheaper to gather than pixels
    return wide.round_().clamp_(0, 255).to(th.uint8).contiguous()


def resize_lanczos3(image: Images) -> Images:
    """
    Antialiased Lanczos-3 resize to 224x224, as ``tf.image.resize(..., "lanczos3", antialias=True)``, rounded to uint8.

    :param image: ``(..., 256, 256, 3)`` uint8.
    :return: ``(..., 224, 224, 3)`` uint8.
    """
    return _batched(image, _resize_lanczos3, LIBERO_SIZE, "resize_lanczos3")


@lru_cache(maxsize=8)
def _crop_grid(size: int, device: th.device) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Lower and upper source index and weight of the upper one, for each output pixel of the centre crop."""
    one = np.float32(1)
    side = np.sqrt(np.float32(CROP_AREA))
    begin = (one - side) / np.float32(2)
    end = begin + side
    step = (end - begin) * np.float32(size - 1) / np.float32(size - 1)
    position = begin * np.float32(size - 1) + np.arange(size, dtype=np.float32) * step
    low = np.floor(position)
    high = np.ceil(position)
    return (
        th.from_numpy(low.astype(np.int64)).to(device),
        th.from_numpy(high.astype(np.int64)).to(device),
        th.from_numpy((position - low).astype(np.float32)).to(device),
    )


def _center_crop(images: th.Tensor) -> th.Tensor:
    low, high, weight = _crop_grid(images.shape[1], images.device)
    x = images.to(th.float32) * float(np.float32(1.0 / 255.0))

    def interpolate_rows(x: th.Tensor) -> th.Tensor:
        lower = x.index_select(1, low)
        return x.index_select(1, high).sub_(lower).mul_(weight.view(1, -1, 1, 1)).add_(lower)

    # Along the width first, as TensorFlow; whole rows are cheaper to gather than pixels.
    cropped = interpolate_rows(interpolate_rows(x.transpose(1, 2).contiguous()).transpose(1, 2).contiguous())
    return (cropped.clamp_(0, 1) * 255.5).floor_().clamp_(0, 255).to(th.uint8)


def center_crop(image: Images) -> Images:
    """
    Keep the central 90 % of the area and resize it bilinearly back to 224x224, as ``tf.image.crop_and_resize`` does.

    :param image: ``(..., 224, 224, 3)`` uint8.
    :return: ``(..., 224, 224, 3)`` uint8.
    """
    return _batched(image, _center_crop, MODEL_SIZE, "center_crop")


def preprocess_libero_image(image: Images) -> Images:
    """
    What upstream's LIBERO evaluation does to a frame before the processor sees it.

    :param image: ``(..., 256, 256, 3)`` uint8, LIBERO's raw agentview (upside down).
    :return: ``(..., 224, 224, 3)`` uint8: rotated, through JPEG, resized, centre-cropped.
    :raises ValueError: If the image has another size or dtype.
    """
    return _batched(
        image, lambda x: _center_crop(_resize_lanczos3(jpeg_round_trip(x.flip(1, 2)))), LIBERO_SIZE, "preprocess_libero_image"
    )


def rotate_and_area_resize(image: Images, size: int) -> Images:
    """The cheap pipeline of the tiny checkpoint: rotate by 180 degrees and average-pool to ``size`` x ``size``."""

    def stage(x: th.Tensor) -> th.Tensor:
        if min(x.shape[1:3]) < size:
            raise ValueError(f"The model reads {size}x{size} images, got a frame of {x.shape[1]}x{x.shape[2]}: render larger.")
        channels_first = x.flip(1, 2).permute(0, 3, 1, 2)
        pooled = channels_first
        if x.shape[1:3] != (size, size):
            pooled = F.adaptive_avg_pool2d(channels_first.to(th.float32), size).round_().to(th.uint8)
        return pooled.permute(0, 2, 3, 1).contiguous()

    return _batched(image, stage, None, "rotate_and_area_resize")


def to_pixel_values(image: np.ndarray | th.Tensor, normalization: Normalization | None = None) -> th.Tensor:
    """
    Normalise a preprocessed image once per vision tower and stack the results, DINOv2's three channels first.

    :param image: ``(..., size, size, 3)`` uint8, what :func:`preprocess_libero_image` returns.
    :param normalization: Channel statistics; None = upstream's.
    :return: Pixel values, float32 ``(..., 6, size, size)``.
    """
    normalization = normalization or Normalization()
    tensor = th.from_numpy(np.ascontiguousarray(image)) if isinstance(image, np.ndarray) else image
    if tensor.dtype != th.uint8 or tensor.shape[-1] != 3:
        raise ValueError(f"to_pixel_values takes uint8 (..., size, size, 3), got {tensor.dtype} {tuple(tensor.shape)}.")
    scaled = tensor.movedim(-1, -3).to(th.float32) / 255
    towers = [
        (scaled - scaled.new_tensor(mean).view(3, 1, 1)) / scaled.new_tensor(std).view(3, 1, 1)
        for mean, std in zip(normalization.means, normalization.stds, strict=True)
    ]
    return th.cat(towers, dim=-3)
