"""
The JPEG round trip of OpenVLA's LIBERO pipeline, in every bit as TensorFlow does it, without TensorFlow.

LIBERO frames were JPEG-encoded (quality 95, 4:2:0) and decoded in training and evaluation. The decoder was libjpeg's
*fast integer* inverse DCT, which truncates: Pillow's accurate decoder is about one level brighter and flips action tokens.
Everything here is integer arithmetic (integers below 2**53 held in float64 for the forward transform, which is a matrix
product), so CPU and GPU agree in every bit, and a batch costs little more than a frame.
"""

import math
from functools import lru_cache

import torch as th

# Annex K of the JPEG standard, row by row.
_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99), (18, 21, 26, 66, 99, 99, 99, 99), (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99), *(((99,) * 8,) * 4),
)  # fmt: skip


def _quantisation(table: tuple[tuple[int, ...], ...], quality: int) -> list[list[int]]:
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return [[min(max((value * scale + 50) // 100, 1), 255) for value in row] for row in table]


def _forward_dct_column(d: list[int]) -> list[int]:
    """libjpeg's accurate integer DCT of 8 samples before its rounding shift: linear, 13 fractional bits."""
    s0, s1, s2, s3 = d[0] + d[7], d[1] + d[6], d[2] + d[5], d[3] + d[4]
    d3, d2, d1, d0 = d[0] - d[7], d[1] - d[6], d[2] - d[5], d[3] - d[4]
    even = (s1 - s2 + s0 - s3) * 4433
    z1, z2, z3, z4 = -7373 * (d0 + d3), -20995 * (d1 + d2), d0 + d2, d1 + d3
    z5 = (z3 + z4) * 9633
    z3, z4 = z5 - 16069 * z3, z5 - 3196 * z4
    return [
        (s0 + s3 + s1 + s2) << 13,
        d3 * 12299 + z1 + z4,
        even + (s0 - s3) * 6270,
        d2 * 25172 + z2 + z3,
        (s0 + s3 - s1 - s2) << 13,
        d1 * 16819 + z2 + z4,
        even - (s1 - s2) * 15137,
        d0 * 2446 + z1 + z3,
    ]


@lru_cache(maxsize=8)
def _tables(quality: int, device: th.device) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """The forward DCT matrix, and quantisation steps and inverse-DCT multipliers ``(2, 8, 8, 1)`` (luma, chroma)."""
    columns = [_forward_dct_column([int(i == j) for i in range(8)]) for j in range(8)]
    dct = th.tensor(columns, dtype=th.float64, device=device).T.contiguous()
    steps = th.tensor([_quantisation(_LUMA, quality), _quantisation(_CHROMA, quality)], device=device)
    scale = [1.0] + [math.cos(k * math.pi / 16) * math.sqrt(2) for k in range(1, 8)]
    aan = th.tensor([[round(16384 * a * b) for b in scale] for a in scale], device=device)
    multipliers = (steps * aan + 2048) >> 12
    return dct, steps.to(th.float64).unsqueeze(-1), multipliers.to(th.int32).unsqueeze(-1)


def _fast_inverse_dct(x: list[th.Tensor]) -> list[th.Tensor]:
    """libjpeg's fast integer inverse DCT along one axis (8 fractional bits, products truncated by a plain shift)."""

    def times(value: th.Tensor, constant: int) -> th.Tensor:
        return (value * constant) >> 8

    even_sum, even_difference, s26 = x[0] + x[4], x[0] - x[4], x[2] + x[6]
    d26 = times(x[2] - x[6], 362) - s26
    e0, e3, e1, e2 = even_sum + s26, even_sum - s26, even_difference + d26, even_difference - d26
    z13, z10, z11, z12 = x[5] + x[3], x[5] - x[3], x[1] + x[7], x[1] - x[7]
    o7 = z11 + z13
    z5 = times(z10 + z12, 473)
    o6 = times(z10, -669) + z5 - o7
    o5 = times(z11 - z13, 362) - o6
    o4 = times(z12, 277) - z5 + o5
    return [e0 + o7, e1 + o6, e2 + o5, e3 - o4, e3 + o4, e2 - o5, e1 - o6, e0 - o7]


def _code_plane(plane: th.Tensor, which: int, quality: int) -> th.Tensor:
    """Encode and decode one int32 component plane ``(batch, height, width)``: transform, quantise, transform back."""
    dct, steps, multipliers = _tables(quality, plane.device)
    batch, height, width = plane.shape
    blocks = plane.view(batch, height // 8, 8, width // 8, 8).permute(2, 4, 0, 1, 3).reshape(8, 8, -1)
    samples = (blocks - 128).to(th.float64)
    rows = th.floor((th.matmul(dct, samples) + 2.0**10) * 2.0**-11)
    coefficients = th.floor((th.matmul(dct, rows.view(8, -1)) + 2.0**14) * 2.0**-15).view(8, 8, -1)
    magnitude = th.floor((coefficients.abs() + 4 * steps[which]) / (8 * steps[which]))
    quantised = th.copysign(magnitude, coefficients).to(th.int32)
    columns = th.stack(_fast_inverse_dct(list((quantised * multipliers[which]).unbind(0))))
    pixels = th.stack(_fast_inverse_dct(list(columns.unbind(1))), dim=1)
    pixels = ((pixels >> 5) + 128).clamp_(0, 255)
    return pixels.view(8, 8, batch, height // 8, width // 8).permute(2, 3, 0, 4, 1).reshape(batch, height, width)


def _halve(chroma: th.Tensor) -> th.Tensor:
    total = chroma[:, 0::2, 0::2] + chroma[:, 0::2, 1::2] + chroma[:, 1::2, 0::2] + chroma[:, 1::2, 1::2]
    total[:, :, 0::2] += 1  # libjpeg's rounding bias alternates along a row
    total[:, :, 1::2] += 2
    return total >> 2


def _double(chroma: th.Tensor) -> th.Tensor:
    """libjpeg's "fancy" upsampling: a 3:1 triangle filter, vertically, then horizontally, edges repeated."""
    batch, height, width = chroma.shape
    above = th.cat([chroma[:, :1], chroma[:, :-1]], dim=1)
    below = th.cat([chroma[:, 1:], chroma[:, -1:]], dim=1)
    tall = th.stack([3 * chroma + above, 3 * chroma + below], dim=2).view(batch, 2 * height, width)
    left = th.cat([tall[..., :1], tall[..., :-1]], dim=2)
    right = th.cat([tall[..., 1:], tall[..., -1:]], dim=2)
    return th.stack([(3 * tall + left + 8) >> 4, (3 * tall + right + 7) >> 4], dim=3).view(batch, 2 * height, 2 * width)


def jpeg_round_trip(images: th.Tensor, quality: int = 95) -> th.Tensor:
    """
    Encode images as baseline JPEG (4:2:0) and decode them with the fast integer inverse DCT.

    :param images: ``(batch, height, width, 3)`` uint8, height and width multiples of 16.
    :param quality: Quality as libjpeg counts it, 1 to 100.
    :return: Images of the same shape, equal to TensorFlow's ``decode_jpeg(encode_jpeg(image, quality=quality))``.
    :raises ValueError: If a side isn't a multiple of 16.
    """
    _, height, width, _ = images.shape
    if height % 16 or width % 16:
        raise ValueError(f"JPEG needs image sides that are multiples of 16, got {height}x{width}.")
    red, green, blue = images.to(th.int32).unbind(-1)
    luma = (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16
    cb = (-11059 * red - 21709 * green + 32768 * blue + (128 << 16) + 32767) >> 16
    cr = (32768 * red - 27439 * green - 5329 * blue + (128 << 16) + 32767) >> 16
    luma = _code_plane(luma, 0, quality)
    both = _double(_code_plane(th.cat([_halve(cb), _halve(cr)]), 1, quality)) - 128
    cb, cr = both.chunk(2)
    rgb = th.stack(
        [
            luma + ((91881 * cr + 32768) >> 16),
            luma + ((-22554 * cb - 46802 * cr + 32768) >> 16),
            luma + ((116130 * cb + 32768) >> 16),
        ],
        dim=-1,
    )
    return rgb.clamp_(0, 255).to(th.uint8)
