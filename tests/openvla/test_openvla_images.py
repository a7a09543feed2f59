"""The image pipeline against TensorFlow's output, value by value."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch as th

from sb3_tgrpo.openvla import images, jpeg
from sb3_tgrpo.openvla.images import (
    Normalization,
    center_crop,
    preprocess_libero_image,
    resize_lanczos3,
    rotate_and_area_resize,
    rotate_and_jpeg,
    to_pixel_values,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "libero_preprocess.npz"


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as data:
        return dict(data)


def pattern():
    y, x = np.mgrid[0:256, 0:256]
    return np.stack([(x + y) // 2, (x * y) >> 8, x ^ y], axis=-1).astype(np.uint8)


def digest(array):
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]


def test_each_stage_equals_tensorflow_in_every_value(golden):
    assert np.array_equal(rotate_and_jpeg(golden["raw_agentview"]), golden["after_jpeg"])
    assert np.array_equal(resize_lanczos3(golden["after_jpeg"]), golden["after_resize"])
    assert np.array_equal(center_crop(golden["after_resize"]), golden["after_center_crop"])
    assert np.array_equal(preprocess_libero_image(golden["raw_agentview"]), golden["after_center_crop"])


def test_recorded_hashes_of_a_synthetic_image():
    encoded = rotate_and_jpeg(pattern())
    resized = resize_lanczos3(encoded)
    cropped = center_crop(resized)
    assert [digest(pattern()), digest(encoded), digest(resized), digest(cropped)] == [
        "7883b6b2c097c766",
        "6c71ad45fce739fc",
        "e888eb9398eb19d4",
        "744973ee31f2e7bb",
    ]
    pixels = to_pixel_values(cropped)
    assert pixels.shape == (6, 224, 224) and pixels.dtype == th.float32
    assert pixels.double().sum().item() == pytest.approx(-51987.69, abs=0.01)
    np.testing.assert_allclose(pixels[:, 0, 0], [2.0848, 2.173645, -1.756317, 0.921569, 0.882353, -0.976471], atol=1e-6)
    np.testing.assert_allclose(pixels[:, 17, 201], [0.094118, -1.561469, 2.399045, 0.011765, -0.788235, 0.890196], atol=1e-6)


@pytest.mark.parametrize(
    ("target", "replacement"),
    [
        ("_tables", lambda original: lambda quality, device: original(94, device)),  # another quality
        ("_halve", lambda original: lambda chroma: original(chroma.flip(2)).flip(2)),  # the bias the other way round
        ("_fast_inverse_dct", lambda original: lambda x: [value + 1 for value in original(x)]),
    ],
)
def test_a_wrong_jpeg_is_noticed(golden, monkeypatch, target, replacement):
    monkeypatch.setattr(jpeg, target, replacement(getattr(jpeg, target)))
    assert not np.array_equal(rotate_and_jpeg(golden["raw_agentview"]), golden["after_jpeg"])


def test_pillows_decoder_is_not_the_same(golden):
    """The reason for our own decoder: Pillow's accurate inverse DCT is about a level brighter."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(golden["raw_agentview"][0, ::-1, ::-1]).save(buffer, "JPEG", quality=95)
    pillow = np.asarray(Image.open(buffer)).astype(int)
    assert (pillow - golden["after_jpeg"][0]).mean() > 0.3


def test_one_image_numpy_torch_and_batch_agree(golden):
    raw, expected = golden["raw_agentview"], golden["after_center_crop"]
    assert np.array_equal(preprocess_libero_image(raw[1]), expected[1])
    tensor = preprocess_libero_image(th.from_numpy(raw))
    assert isinstance(tensor, th.Tensor) and np.array_equal(tensor.numpy(), expected)
    assert th.equal(to_pixel_values(expected[0]), to_pixel_values(th.from_numpy(expected))[0])


def test_flipping_instead_of_rotating_is_noticed(golden):
    flipped = jpeg.jpeg_round_trip(th.from_numpy(golden["raw_agentview"]).flip(1)).numpy()
    assert not np.array_equal(flipped, golden["after_jpeg"])


def test_rounded_normalisation_is_read_from_the_checkpoint():
    config = {
        "means": [[0.485, 0.456, 0.406], [0.5, 0.5, 0.5]],
        "stds": [[0.229, 0.224, 0.225], [0.5, 0.5, 0.5]],
        "tvf_normalize_params": [
            {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
            {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
        ],
    }
    normalization = Normalization.from_preprocessor_config(config)
    assert normalization.means[0] == (0.1, 0.2, 0.3) and normalization.stds[0] == (0.4, 0.5, 0.6)
    default = Normalization.from_preprocessor_config({})
    exact = th.tensor([0.485, 0.456, 0.406])
    assert th.equal(th.tensor(default.means[0]), exact.to(th.bfloat16).float())
    image = np.full((224, 224, 3), 51, dtype=np.uint8)
    assert to_pixel_values(image, normalization)[0, 0, 0].item() == pytest.approx((0.2 - 0.1) / 0.4)


@pytest.mark.parametrize("function", [rotate_and_jpeg, resize_lanczos3, center_crop, preprocess_libero_image])
def test_bad_images_are_refused(function):
    with pytest.raises(ValueError, match="uint8"):
        function(np.zeros((256, 256, 3), dtype=np.float32))
    with pytest.raises(ValueError, match="3"):
        function(np.zeros((3, 256, 256), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"100x100|multiples of 16"):
        function(np.zeros((100, 100, 3), dtype=np.uint8))
    with pytest.raises(TypeError, match="list"):
        function([[0]])


def test_area_resize_rotates_and_averages():
    image = np.zeros((8, 8, 3), dtype=np.uint8)
    image[0:2, 0:2] = 100
    image[0, 0] = 0
    small = rotate_and_area_resize(image, 4)
    assert small.shape == (4, 4, 3) and small[3, 3].tolist() == [75, 75, 75] and small.sum() == 225
    assert np.array_equal(rotate_and_area_resize(small, 4), small[::-1, ::-1])
    with pytest.raises(ValueError, match="render larger"):
        rotate_and_area_resize(image, 16)


def test_sine_of_the_c_library():
    """Rounded like the C library's float32 sine; the nearest float32 to the true value would differ now and then."""
    for value, expected in [(0.19634704291820526, 0.19508787989616394), (3.337965965270996, -0.1951136440038681)]:
        assert float(images._sinf(np.float32(value))) == pytest.approx(expected, abs=1e-12)
        assert np.float32(np.sin(value)) != np.float32(expected)


def test_images_and_policy_import_without_transformers():
    import subprocess
    import sys

    code = (
        "import sys, sb3_tgrpo.openvla.policy; from sb3_tgrpo.openvla import preprocess_libero_image; "
        "print([m for m in ('transformers', 'peft', 'tokenizers', 'tensorflow', 'timm') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
