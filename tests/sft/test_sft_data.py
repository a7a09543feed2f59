"""Demonstration files, their statistics and the image augmentation."""

import colorsys
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch as th
from demonstration_files import colour_actions, write_demos

from sb3_tgrpo.envs.demos.reader import moving_steps
from sb3_tgrpo.openvla.actions import bin_tokens, bin_values, normalise, unnormalise
from sb3_tgrpo.openvla.augment import Augmentation, augment, finish, hsv_to_rgb, prepare, rgb_to_hsv
from sb3_tgrpo.openvla.images import preprocess_libero_image
from sb3_tgrpo.sft.dataset import DemonstrationDataset
from sb3_tgrpo.sft.statistics import action_statistics, check_range


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demos(tmp_path_factory.mktemp("demos") / "demos.hdf5")


def edit(source: Path, target: Path, change) -> Path:
    target.write_bytes(source.read_bytes())
    with h5py.File(target, "r+") as file:
        change(file["data"])
    return target


# ---------------------------------------------------------------------- statistics


def test_statistics_by_hand():
    # 101 values 0, 1, ..., 100: the 1 % quantile is 1, the 99 % quantile 99.
    actions = np.zeros((101, 3))
    actions[:, 0] = np.arange(101)
    actions[:, 1] = 0.3
    actions[:, 2] = np.where(np.arange(101) < 50, -1.0, 1.0)  # open, then closed
    statistics = action_statistics(actions, "libero", n_trajectories=2)
    bounds = statistics["action"]
    assert bounds["q01"] == pytest.approx([1.0, 0.3, 0.0]) and bounds["q99"] == pytest.approx([99.0, 0.3, 1.0])
    assert bounds["min"] == [0.0, 0.3, 0.0] and bounds["max"] == [100.0, 0.3, 1.0]
    assert bounds["mean"] == pytest.approx([50.0, 0.3, 50 / 101])  # open is 1
    assert bounds["std"][:2] == pytest.approx([np.sqrt((101**2 - 1) / 12), 0.0])
    assert bounds["mask"] == [True, True, False]
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (101, 2)
    assert action_statistics(actions, "none")["action"]["mask"] == [True, True, True]


def test_constant_dimensions_decode_exactly():
    actions = np.tile(np.array([[0.1, -0.25, 0.0, 1 / 3, 0.0, 0.0, -1.0]]), (50, 1))
    actions[:, 1] = np.linspace(-1, 1, 50)
    statistics = action_statistics(actions)
    encoded = bin_tokens(normalise(actions, statistics), 1024, 256)
    for tokens in (encoded, np.full_like(encoded, 900)):  # whatever token is chosen
        decoded = unnormalise(bin_values(tokens, 1024, 256), statistics)
        for k in (0, 2, 3, 4, 5):
            assert np.array_equal(decoded[:, k], actions[:, k])


def test_rarely_changing_dimension_is_not_frozen():
    actions = np.zeros((1000, 7))
    actions[:, 0] = np.linspace(-1, 1, 1000)
    actions[3, 4] = 0.5
    bounds = action_statistics(actions)["action"]
    assert (bounds["q01"][4], bounds["q99"][4]) == (0.0, 0.5)


def test_min_range_makes_narrow_dimensions_constant():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (500, 7))
    actions[:, 3] = rng.uniform(-0.01, 0.03, 500)
    actions[:, 5] = rng.uniform(0.01, 0.03, 500)
    actions[:, 6] = np.where(actions[:, 0] > 0, 1.0, -1.0)
    bounds = action_statistics(actions, min_range=0.1)["action"]
    assert bounds["q01"][3] == bounds["q99"][3] == 0.0  # the controller holds still at a rotation of exactly zero
    assert bounds["q01"][5] == bounds["q99"][5] == pytest.approx(np.median(actions[:, 5]))
    assert all(bounds["q01"][k] < bounds["q99"][k] for k in (0, 1, 2, 4, 6))


def test_statistics_without_any_range():
    with pytest.raises(ValueError, match="never change in any dimension"):
        action_statistics(np.zeros((10, 7)))
    with pytest.raises(ValueError, match="min_range=-1: it must be at least 0"):
        action_statistics(np.eye(7), min_range=-1)


def test_range_check_of_foreign_constants():
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 7))
    actions[:, 3] = 0.1
    statistics = action_statistics(actions)
    check_range(statistics, actions.astype(np.float32).astype(np.float64), "libero", "x")
    actions[:, 3] = 0.5
    with pytest.raises(ValueError, match=r"x has .* hold dimension.s. \[3\] at \[0.1\], the demonstrations have \[0.5\]"):
        check_range(statistics, actions, "libero", "x")


def test_range_check_of_foreign_statistics():
    actions = np.random.default_rng(0).uniform(-1, 1, (100, 7))
    statistics = action_statistics(actions)
    check_range(statistics, actions, "libero", "x")
    statistics["action"]["q99"][2] = statistics["action"]["q01"][2]
    with pytest.raises(ValueError, match=r"zero range.*\[2\]"):
        check_range(statistics, actions, "libero", "x")
    with pytest.raises(ValueError, match="statistics for 7 dimensions, the actions have 6"):
        check_range(statistics, actions[:, :6], "none", "x")


# ---------------------------------------------------------------------- reading


def test_dataset_content(file: Path):
    dataset = DemonstrationDataset(file)
    assert len(dataset) == 160 and len(dataset.demonstrations) == 8
    assert (dataset.name, dataset.assets) == ("libero_object", "light")
    assert dataset.instructions == ["pick up the milk and place it in the basket"]
    frames = np.array([150, 17, 3, 3, 27])
    images = dataset.images(frames)
    with h5py.File(file) as handle:
        for image, frame in zip(images, frames, strict=True):
            demo, row = divmod(int(frame), 20)
            assert np.array_equal(image, handle[f"data/demo_{demo}/obs/agentview_rgb"][row])
            assert np.array_equal(dataset.actions[frame], handle[f"data/demo_{demo}/actions"][row])
    assert dataset.describe()["files"] == {"demos.hdf5": 8}
    assert dataset.observation_space["image"].shape == (64, 64, 3) and dataset.action_space.shape == (7,)
    assert len(DemonstrationDataset(file, max_demonstrations=3)) == 60


def test_fingerprint_follows_content(file: Path, tmp_path: Path):
    same = edit(file, tmp_path / "same.hdf5", lambda data: None)

    def change(data):
        data["demo_5/actions"][7, 0] += 1e-9

    other = edit(file, tmp_path / "other.hdf5", change)
    assert DemonstrationDataset(file).fingerprint == DemonstrationDataset(same).fingerprint
    assert DemonstrationDataset(file).fingerprint != DemonstrationDataset(other).fingerprint


def test_liberos_own_files_observe_after_the_action(tmp_path: Path):
    path = write_demos(tmp_path / "libero.hdf5", n_demos=2)
    with h5py.File(path, "r+") as handle:
        del handle["data"].attrs["sb3_tgrpo"], handle["data"].attrs["assets"], handle["data"].attrs["suite"]
        handle["data"].attrs["macros_image_convention"] = "opengl"
        handle["data"].attrs["bddl_file_name"] = "x/bddl_files/libero_goal/open_the_drawer.bddl"
        actions, images = handle["data/demo_1/actions"][:], handle["data/demo_1/obs/agentview_rgb"][:]
    dataset = DemonstrationDataset(path)
    assert (dataset.name, dataset.assets, len(dataset)) == ("libero_goal", "full", 38)
    assert np.array_equal(dataset.actions[19:], actions[1:])
    assert np.array_equal(dataset.images(np.arange(19, 38)), images[:-1])


def test_noops_are_dropped(tmp_path: Path):
    path = write_demos(tmp_path / "noops.hdf5", n_demos=1, n_steps=5)
    with h5py.File(path, "r+") as handle:
        actions = colour_actions()[[0, 0, 0, 0, 0]]
        actions[1:4, :6] = 0
        actions[2:, 6] = 1  # step 2 changes the gripper, steps 1 and 3 do nothing
        handle["data/demo_0/actions"][...] = actions
    dataset = DemonstrationDataset(path, drop_noops=True)
    assert dataset.demonstrations[0].rows.tolist() == [0, 2, 4]
    with h5py.File(path) as handle:
        assert np.array_equal(dataset.images(np.array([1])), handle["data/demo_0/obs/agentview_rgb"][2:3])


def test_at_the_start_the_gripper_is_compared_with_nothing(tmp_path: Path):
    """As in OpenVLA's preparation: the last action that was kept, of which there is none yet."""
    path = write_demos(tmp_path / "noops.hdf5", n_demos=1, n_steps=5)
    with h5py.File(path, "r+") as handle:
        actions = colour_actions()[[0, 1, 1, 2, 3]]
        actions[:2, :6] = 0
        handle["data/demo_0/actions"][...] = actions
    assert DemonstrationDataset(path, drop_noops=True).demonstrations[0].rows.tolist() == [2, 3, 4]


def test_steps_are_compared_with_the_last_one_that_was_kept():
    """OpenVLA's loop, spelled out."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        actions = np.zeros((int(rng.integers(1, 12)), 7))
        actions[:, 0] = rng.random(len(actions)) < 0.4
        actions[:, 6] = rng.choice([-1, 1], len(actions))
        kept: list[int] = []
        for step, action in enumerate(actions):
            if action[0] or (kept and action[6] != actions[kept[-1], 6]):
                kept.append(step)
        assert moving_steps(actions).tolist() == kept


def test_split_by_demonstration_and_instruction(file: Path, tmp_path: Path):
    second = write_demos(tmp_path / "b.hdf5", n_demos=4, instruction="pick up the butter", seed=1)
    dataset = DemonstrationDataset([file, second])
    train, held_out = dataset.split(0.25, seed=3)
    assert sorted([*train, *held_out]) == list(range(12)) and not set(train) & set(held_out)
    assert [dataset.demonstrations[k].instruction.split()[-1] for k in held_out] == ["basket", "basket", "butter"]
    assert np.array_equal(held_out, dataset.split(0.25, seed=3)[1])
    assert any(not np.array_equal(held_out, dataset.split(0.25, seed=s)[1]) for s in range(4, 8))
    assert len(dataset.split(0.0, seed=3)[1]) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["demo_3"].pop("actions"), "demo_3 lacks actions; it has obs/agentview_rgb"),
        (lambda d: d["demo_3/obs"].pop("agentview_rgb"), "demo_3 lacks obs/agentview_rgb; it has actions"),
        (lambda d: [d.pop(name) for name in list(d)], "holds no demonstrations"),
        (lambda d: d["demo_2/actions"].__setitem__((4, 1), np.nan), "not finite, first in row 4"),
        (lambda d: d["demo_2/actions"].__setitem__((4, 1), 3.0), "outside LIBERO's .* another action space"),
        (lambda d: d.attrs.pop("problem_info"), "pass instruction="),
        (lambda d: replace(d, "demo_1", np.zeros(3)), "demo_1 is no group with actions and obs"),
        (lambda d: replace(d, "demo_1/obs", np.zeros(3)), "demo_1 lacks obs/agentview_rgb; it has actions"),
        (lambda d: replace(d, "demo_1/actions", np.array([b"a"] * 20)), "demo_1: actions is of type .*expected numbers"),
        (lambda d: replace(d.file, "data", np.zeros(3)), "lacks the group 'data'; it holds data"),
        (lambda d: replace(d, "demo_1", h5py.SoftLink("/absent")), "demo_1 can't be opened: it is a link to something"),
        (lambda d: replace(d, "demo_1", h5py.ExternalLink("absent.hdf5", "/x")), "demo_1 can't be opened"),
        (lambda d: replace(d, "demo_1/obs", h5py.SoftLink("/absent")), "demo_1 lacks obs/agentview_rgb"),
        (lambda d: replace(d, "demo_1/actions", h5py.ExternalLink("absent.hdf5", "/x")), "bad.hdf5 can't be read .*damaged"),
        (lambda d: replace_by_group(d, "demo_1/obs/agentview_rgb"), "agentview_rgb is no array, but <HDF5 group"),
        (lambda d: replace(d, "demo_1/obs/agentview_rgb", np.dtype("u1")), "agentview_rgb is no array, but <HDF5 named"),
        (lambda d: replace(d, "demo_1/actions", h5py.Empty("f8")), "bad.hdf5"),
        (lambda d: d.create_group(b"demo_\xff"), "bad.hdf5 can't be read .*damaged"),
        (lambda d: instruct(d, 5), "language_instruction=5: it must be a string"),
        (lambda d: instruct(d, {"open": "it"}), "language_instruction={'open': 'it'}: it must be a string"),
        (lambda d: instruct(d, ["open", 1]), "language_instruction=.'open', 1.: it must be a string"),
        (lambda d: instruct(d, "\ud800"), "bad.hdf5 can't be read .*damaged"),
        (lambda d: d.attrs.__setitem__("assets", "shiny"), "assets of 'data' is 'shiny', not 'full' or 'light': pass assets="),
    ],
)
def test_damaged_files(file: Path, tmp_path: Path, change, message: str):
    with pytest.raises(ValueError, match=message) as caught:
        DemonstrationDataset(edit(file, tmp_path / "bad.hdf5", change))
    assert "bad.hdf5" in str(caught.value)


def test_damaged_metadata(file: Path, tmp_path: Path):
    content = file.read_bytes()
    for mark in (b"TREE", b"HEAP", b"SNOD"):  # HDF5's indices of groups
        path = tmp_path / f"{mark.decode()}.hdf5"
        path.write_bytes(content.replace(mark, bytes(len(mark))))
        with pytest.raises(ValueError, match=f"{path.name} .*(damaged|truncated)"):
            DemonstrationDataset(path)


def test_what_files_say_in_other_ways(file: Path, tmp_path: Path):
    def change(data: h5py.Group) -> None:
        data.create_group("demo_²")  # a digit for Python, no number
        data.attrs["assets"] = np.bytes_("light")  # text of fixed length
        data.attrs["suite"] = np.bytes_("libero_goal")

    dataset = DemonstrationDataset(edit(file, tmp_path / "other.hdf5", change))
    assert (dataset.assets, dataset.suite, len(dataset.demonstrations)) == ("light", "libero_goal", 8)
    path = edit(file, tmp_path / "shiny.hdf5", lambda data: data.attrs.__setitem__("assets", "shiny"))
    assert DemonstrationDataset(path, assets="full").assets == "full"


def replace(data: h5py.Group, key: str, value: Any) -> None:
    del data[key]
    data[key] = value


def replace_by_group(data: h5py.Group, key: str) -> None:
    del data[key]
    data.create_group(key)


def instruct(data: h5py.Group, words: Any) -> None:
    data.attrs["problem_info"] = json.dumps({"language_instruction": words})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("demo_0/actions", np.zeros((20, 8)), "8 dimensions, LIBERO's have 7: .* another action space"),
        ("demo_0/actions", np.zeros((0, 7)), "actions has shape .0, 7., expected .T, n."),
        ("demo_0/actions", np.zeros((19, 7)), "is uint8 .20, 64, 64, 3., expected uint8 .19, height"),
        (
            "demo_0/obs/agentview_rgb",
            np.zeros((20, 64, 64, 3), np.float32),
            "is float32 .*, expected uint8 .20, height, width, 3.",
        ),
        ("demo_4/obs/agentview_rgb", np.zeros((20, 32, 32, 3), np.uint8), "use one size"),
    ],
)
def test_wrong_arrays(file: Path, tmp_path: Path, key: str, value: np.ndarray, message: str):
    with pytest.raises(ValueError, match=message):
        DemonstrationDataset(edit(file, tmp_path / "bad.hdf5", lambda data: replace(data, key, value)))


@pytest.mark.parametrize("key", ["actions", "obs/agentview_rgb"])
def test_an_array_that_cannot_be_read(file: Path, tmp_path: Path, key: str):
    def compress(data: h5py.Group) -> None:
        values = data[f"demo_1/{key}"][()]
        del data[f"demo_1/{key}"]
        data.create_dataset(f"demo_1/{key}", data=values, compression="gzip", fletcher32=True, chunks=values.shape)

    path = edit(file, tmp_path / "bad.hdf5", compress)
    with h5py.File(path) as handle:
        chunk = handle[f"data/demo_1/{key}"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.hdf5.* can't be read .*damaged"):
        DemonstrationDataset(path)


def test_no_such_hdf5_files(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty.hdf5").write_bytes(b"")
    (tmp_path / "cut.hdf5").write_bytes(file.read_bytes()[:5000])
    with h5py.File(tmp_path / "other.hdf5", "w") as handle:
        handle["x"] = 1
    for name in ("empty.hdf5", "cut.hdf5"):
        with pytest.raises(ValueError, match=rf"{name} can't be read .*empty, truncated, damaged or no HDF5 file"):
            DemonstrationDataset(tmp_path / name)
    with pytest.raises(ValueError, match=r"lacks the group .data.; it holds x"):
        DemonstrationDataset(tmp_path / "other.hdf5")
    with pytest.raises(FileNotFoundError, match="no such file"):
        DemonstrationDataset(tmp_path / "absent.hdf5")
    with pytest.raises(ValueError, match="at least one HDF5 file"):
        DemonstrationDataset([])
    with pytest.raises(ValueError, match="twice"):
        DemonstrationDataset([file, file])
    monkeypatch.chdir(file.parent)
    with pytest.raises(ValueError, match="twice"):
        DemonstrationDataset([file, file.name])


def test_unsuccessful_demonstrations_are_left_out(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def fail(data: h5py.Group, names: list[str]) -> None:
        for name in names:
            data[name].attrs["sb3_tgrpo"] = json.dumps({"success": False})

    dataset = DemonstrationDataset(
        edit(file, tmp_path / "some.hdf5", lambda data: fail(data, ["demo_0", "demo_2"])), max_demonstrations=3
    )
    assert [demonstration.name for demonstration in dataset.demonstrations] == ["demo_1", "demo_3", "demo_4"]
    assert "2 of 8 demonstrations were unsuccessful and are left out" in caplog.text
    with pytest.raises(ValueError, match="none of its 8 demonstrations was successful"):
        DemonstrationDataset(edit(file, tmp_path / "all.hdf5", lambda data: fail(data, list(data))))


def test_files_of_different_assets(file: Path, tmp_path: Path):
    full = write_demos(tmp_path / "full.hdf5", attributes={"assets": "full"})
    with pytest.raises(ValueError, match="differ in their assets"):
        DemonstrationDataset([file, full])


@pytest.mark.parametrize("fraction", [0.95, 0.999])
def test_empty_training_split(file: Path, fraction: float):
    with pytest.raises(ValueError, match="empty split"):
        DemonstrationDataset(file).split(fraction, seed=0)


def test_empty_validation_split(tmp_path: Path):
    dataset = DemonstrationDataset(write_demos(tmp_path / "one.hdf5", n_demos=1))
    with pytest.raises(ValueError, match=r"of 1 demonstration.* leaves an empty split"):
        dataset.split(0.1, seed=0)
    with pytest.raises(ValueError, match=r"validation_fraction=1\.0: it must be at least 0 and below 1"):
        dataset.split(1.0, seed=0)


def test_other_action_space(file: Path, tmp_path: Path):
    path = edit(
        file, tmp_path / "joints.hdf5", lambda data: [replace(data, f"{n}/actions", 5.0 * np.ones((20, 3))) for n in data]
    )
    with h5py.File(path, "r+") as handle:
        handle["data/demo_0/actions"][:, 0] = np.linspace(-3, 4, 20)
    dataset = DemonstrationDataset(path, gripper="none")
    assert dataset.action_space.shape == (3,) and dataset.action_space.contains(np.array([4.0, 5.0, 5.0], np.float32))
    assert dataset.statistics["action"]["mask"] == [True] * 3


def test_instruction_in_liberos_forms(tmp_path: Path):
    for name, form in {"list": list("open it"), "quoted": '"open it"'}.items():
        info = json.dumps({"language_instruction": form})
        path = write_demos(tmp_path / f"{name}.hdf5", 1, instruction=None, attributes={"problem_info": info})
        assert DemonstrationDataset(path).instructions == ["open it"]
    # OpenVLA's regenerated files have no attributes: the task is in their name, the scene before it.
    path = write_demos(tmp_path / "KITCHEN_SCENE10_open_it_demo.hdf5", 1, instruction=None)
    assert DemonstrationDataset(path).instructions == ["open it"]


# ---------------------------------------------------------------------- augmentation


def neutral(batch: int) -> Augmentation:
    zero, one = th.zeros(batch), th.ones(batch)
    return Augmentation(th.full((batch, 2), 0.5), zero, one, one, zero)


def test_prepare_and_finish_are_what_the_policy_does():
    images = th.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 256, 256, 3)).astype(np.uint8))
    assert th.equal(finish(prepare(images, "libero", 224), "libero"), preprocess_libero_image(images))


def test_neutral_augmentation_is_the_centre_crop():
    rng = np.random.default_rng(0)
    smooth = th.nn.functional.interpolate(th.from_numpy(rng.random((2, 3, 9, 9))), size=224, mode="bicubic").clamp(0, 1)
    images = (smooth * 255).to(th.uint8).permute(0, 2, 3, 1).contiguous()
    difference = augment(images, neutral(2), "libero").int() - finish(images, "libero").int()
    assert difference.abs().max() <= 1
    small = images[:, :64, :64].contiguous()
    assert (augment(small, neutral(2), "area").int() - small.int()).abs().max() <= 1


def test_colours_by_hand():
    image = th.full((1, 8, 8, 3), 100, dtype=th.uint8)
    image[:, :4] = 200
    draw = neutral(1)
    object.__setattr__(draw, "brightness", th.tensor([0.1]))
    assert augment(image, draw, "area")[0, [0, 7], 0, 0].tolist() == [225, 125]  # 255.5 * (v / 255 + 0.1), rounded down
    draw = neutral(1)
    object.__setattr__(draw, "contrast", th.tensor([0.8]))
    assert augment(image, draw, "area")[0, [0, 7], 0, 0].tolist() == [190, 110]  # 150 +- 40
    red = th.zeros(1, 4, 4, 3, dtype=th.uint8)
    red[..., 0] = 200
    draw = neutral(1)
    object.__setattr__(draw, "hue", th.tensor([1 / 3]))
    assert augment(red, draw, "area")[0, 0, 0].tolist() == [0, 200, 0]
    draw = neutral(1)
    object.__setattr__(draw, "saturation", th.tensor([0.5]))
    assert augment(red, draw, "area")[0, 0, 0].tolist() == [200, 100, 100]


def test_hsv_is_that_of_colorsys():
    x = th.from_numpy(np.random.default_rng(0).random((1, 3, 5, 5)))
    hue, saturation, value = rgb_to_hsv(x)
    for i in range(5):
        for j in range(5):
            expected = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
            assert [float(v[0, i, j]) for v in (hue, saturation, value)] == pytest.approx(expected, abs=1e-6)
    assert th.allclose(hsv_to_rgb(hue, saturation, value), x, atol=1e-6)


def test_crop_moves_the_picture():
    image = th.zeros(2, 64, 64, 3, dtype=th.uint8)
    image[:, 30:34, 30:34] = 255
    for pipeline, spread in (("libero", 1.054), ("area", 1.0)):
        draw = neutral(2)
        object.__setattr__(draw, "shift", th.tensor([[0.0, 0.5], [1.0, 0.5]]))
        out = augment(image, draw, pipeline)[..., 0].float()
        rows = (out.sum(2) * th.arange(64)).sum(1) / out.sum((1, 2))
        # The crop's corner moves by (1 - sqrt(0.9)) of the side between the two.
        assert float(rows[0] - rows[1]) == pytest.approx(63 * (1 - 0.9**0.5) * spread, rel=0.05)


def test_draws_are_within_upstreams_ranges():
    draw = Augmentation.draw(4000, th.Generator().manual_seed(0))
    for values, low, high in (
        (draw.brightness, -0.2, 0.2), (draw.contrast, 0.8, 1.2), (draw.saturation, 0.8, 1.2), (draw.hue, -0.05, 0.05),
        (draw.shift, 0.0, 1.0),
    ):  # fmt: skip
        assert low <= float(values.min()) < low + 0.01 * (high - low) + 1e-3
        assert high - 0.01 * (high - low) - 1e-3 < float(values.max()) <= high


def test_symmetric_ranges_have_a_bin_that_is_exactly_zero():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.6, 1.0, (500, 7))
    actions[:, 3] = 0.25  # constant: still decodes to exactly this
    actions[:, 6] = rng.choice([-1.0, 1.0], 500)
    bounds = action_statistics(actions, "libero", symmetric=True)["action"]
    plain = action_statistics(actions, "libero")["action"]
    assert bounds["q01"][0] == -bounds["q99"][0] == -plain["q99"][0]
    assert bounds["q01"][3] == bounds["q99"][3] == 0.25
    assert (bounds["q01"][6], bounds["q99"][6]) == (plain["q01"][6], plain["q99"][6])
    for n_bins in (32, 256):
        edges = np.linspace(-1, 1, n_bins)
        middle = ((edges[:-1] + edges[1:]) / 2)[(n_bins - 1) // 2]
        assert abs(0.5 * (middle + 1) * (bounds["q99"][0] - bounds["q01"][0]) + bounds["q01"][0]) < 1e-12
