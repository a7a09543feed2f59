"""
OpenVLA's training augmentation: a random crop of 90 % of the area, then brightness, contrast, saturation and hue
(openvla/openvla ``prismatic/vla/datasets``), each image with its own draw.
"""

import math
from dataclasses import dataclass

import torch as th
from torch.nn import functional as F

from sb3_tgrpo.openvla.images import CROP_AREA, center_crop, resize_lanczos3, rotate_and_area_resize, rotate_and_jpeg

BRIGHTNESS = 0.2
CONTRAST = (0.8, 1.2)
SATURATION = (0.8, 1.2)
HUE = 0.05


def prepare(images: th.Tensor, pipeline: str, size: int) -> th.Tensor:
    """
    The part of a checkpoint's image recipe that is the same with and without augmentation, to be computed once per frame.

    :param images: ``(batch, height, width, 3)`` uint8 simulator frames.
    :return: ``(batch, size, size, 3)`` uint8, not yet cropped.
    """
    if pipeline == "libero":
        return resize_lanczos3(rotate_and_jpeg(images))
    return rotate_and_area_resize(images, size)


def finish(prepared: th.Tensor, pipeline: str) -> th.Tensor:
    """From :func:`prepare`'s result to what the policy sees when it acts: the same as ``OpenVLA.preprocess``."""
    return center_crop(prepared) if pipeline == "libero" else prepared


@dataclass(frozen=True)
class Augmentation:
    """
    One draw for each image of a batch.

    :param shift: ``(batch, 2)``: position of the crop, down and right, 0 to 1.
    :param brightness: ``(batch,)`` added to all channels.
    :param contrast: ``(batch,)`` factor about each channel's mean.
    :param saturation: ``(batch,)`` factor.
    :param hue: ``(batch,)`` added, in turns.
    """

    shift: th.Tensor
    brightness: th.Tensor
    contrast: th.Tensor
    saturation: th.Tensor
    hue: th.Tensor

    @classmethod
    def draw(cls, batch: int, generator: th.Generator) -> "Augmentation":
        unit = th.rand(batch, 6, generator=generator)
        return cls(
            shift=unit[:, :2],
            brightness=(2 * unit[:, 2] - 1) * BRIGHTNESS,
            contrast=CONTRAST[0] + unit[:, 3] * (CONTRAST[1] - CONTRAST[0]),
            saturation=SATURATION[0] + unit[:, 4] * (SATURATION[1] - SATURATION[0]),
            hue=(2 * unit[:, 5] - 1) * HUE,
        )

    def __getitem__(self, rows: slice) -> "Augmentation":
        """The draws of some of the images."""
        return Augmentation(*(value[rows] for value in vars(self).values()))


def augment(prepared: th.Tensor, draw: Augmentation, pipeline: str) -> th.Tensor:
    """
    :param prepared: ``(batch, size, size, 3)`` uint8 from :func:`prepare`.
    :param draw: What to do to each image.
    :param pipeline: ``"libero"``: the crop is resized back, the counterpart of the centre crop the policy acts with.
        ``"area"`` has no centre crop: the picture moves by the same distances and keeps its scale, its border repeated.
    :return: Augmented images, same shape and type.
    """
    x = prepared.permute(0, 3, 1, 2).to(th.float32) / 255
    factors = [value.to(x.device).view(-1, 1, 1, 1) for value in (draw.brightness, draw.contrast, draw.saturation)]
    x = _crop(x, draw.shift.to(x.device), zoom=pipeline == "libero").clamp_(0, 1)
    x = (x + factors[0]).clamp_(0, 1)
    mean = x.mean(dim=(2, 3), keepdim=True)
    x = ((x - mean) * factors[1] + mean).clamp_(0, 1)
    hue, saturation, value = rgb_to_hsv(x)
    saturation = (saturation * factors[2][:, 0]).clamp_(0, 1)
    hue = (hue + draw.hue.to(x.device).view(-1, 1, 1)) % 1.0
    x = hsv_to_rgb(hue, saturation, value).clamp_(0, 1)
    return (x * 255.5).floor_().clamp_(0, 255).to(th.uint8).permute(0, 2, 3, 1)


def _crop(x: th.Tensor, shift: th.Tensor, zoom: bool) -> th.Tensor:
    """Bilinear samples at the corners-aligned grid of ``tf.image.crop_and_resize``."""
    side = math.sqrt(CROP_AREA)
    size = x.shape[-1]
    begin = shift * (1 - side)  # (batch, 2): y, x
    if not zoom:
        begin, side = begin - (1 - side) / 2, 1.0
    # crop_and_resize: pixel i of the result is at begin * (size - 1) + i * side, which on grid_sample's aligned corners is:
    steps = th.linspace(0, 1, size, device=x.device) * side
    at = 2 * (begin.unsqueeze(2) + steps) - 1  # (batch, 2, size)
    rows = at[:, 0, :, None].expand(-1, size, size)
    columns = at[:, 1, None, :].expand(-1, size, size)
    return F.grid_sample(x, th.stack([columns, rows], dim=-1), mode="bilinear", padding_mode="border", align_corners=True)


def rgb_to_hsv(x: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Hue (turns), saturation and value, each ``(batch, height, width)``, of RGB in [0, 1]."""
    value, largest = x.max(dim=1)
    spread = value - x.min(dim=1).values
    r, g, b = x.unbind(1)
    safe = spread.clamp_min(1e-12)
    sectors = th.stack([((g - b) / safe) % 6, (b - r) / safe + 2, (r - g) / safe + 4], dim=1)
    hue = sectors.gather(1, largest.unsqueeze(1)).squeeze(1) / 6
    zero = th.zeros_like(value)
    return th.where(spread > 0, hue, zero), th.where(value > 0, spread / value.clamp_min(1e-12), zero), value


def hsv_to_rgb(hue: th.Tensor, saturation: th.Tensor, value: th.Tensor) -> th.Tensor:
    """The inverse of :func:`rgb_to_hsv`."""
    offsets = hue.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (offsets + 6 * hue.unsqueeze(1)) % 6
    ramp = th.minimum(k, 4 - k).clamp(0, 1)
    return value.unsqueeze(1) * (1 - saturation.unsqueeze(1) * ramp)
