"""Demonstration files: the layout, LIBERO's own, collection in parallel and after interruptions, bad files, the command."""

import dataclasses
import json
import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from demonstration_files import BBQ_SAUCE as NAME
from demonstration_files import libero_file
from libero_reference import libero_env, start

from sb3_tgrpo.cli import main
from sb3_tgrpo.envs import CollectionSettings, Demos, LiberoEnv, collect_demos, key_poses, load_demos
from sb3_tgrpo.envs.demos import collection
from sb3_tgrpo.envs.demos.pictures import contact_sheet
from sb3_tgrpo.envs.demos.reader import moving_steps
from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
from sb3_tgrpo.rewards.facts.task_facts import load_task_facts
from sb3_tgrpo.run_folder import RunFolder

TASK = "libero_object-3"
SETTINGS = CollectionSettings(TASK, 2, seed=5, assets="light", image_size=32)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two demonstrations, by one process."""
    return collect_demos(SETTINGS, tmp_path_factory.mktemp("demos") / "demos.hdf5", command="test")


def contents(path: Path) -> dict[str, Any]:
    """Every array and attribute of a file."""
    found: dict[str, Any] = {}
    with h5py.File(path, "r") as opened:

        def visit(name: str, item: Any) -> None:
            found.update({f"{name}@{key}": np.asarray(value).tolist() for key, value in item.attrs.items()})
            if isinstance(item, h5py.Dataset):
                found[name] = (str(item.dtype), item[()].tobytes())

        opened.visititems(visit)
    return found


# ---------------------------------------------------------------------- what we write


def test_layout_is_liberos(file: Path) -> None:
    with h5py.File(file, "r") as opened:
        data = opened["data"]
        assert data.attrs["num_demos"] == 2
        assert data.attrs["total"] == sum(data[name].attrs["num_samples"] for name in ("demo_0", "demo_1"))
        assert data.attrs["macros_image_convention"] == "opengl"
        assert data.attrs["bddl_file_name"] == f"bddl_files/libero_object/{NAME}.bddl"
        assert "(define (problem" in data.attrs["bddl_file_content"]
        problem = json.loads(data.attrs["problem_info"])
        assert problem["language_instruction"] == "pick up the bbq sauce and place it in the basket"
        env_args = json.loads(data.attrs["env_args"])
        assert env_args["env_name"] == data.attrs["env_name"] == "Libero_Floor_Manipulation"
        assert env_args["env_kwargs"]["camera_heights"] == 32
        demo = data["demo_1"]
        n = demo.attrs["num_samples"]
        shapes = {"actions": (n, 7), "states": (n, 110), "robot_states": (n, 9), "rewards": (n,), "dones": (n,)}
        shapes |= {f"obs/{name}": (n, width) for name, width in (("ee_states", 6), ("gripper_states", 2), ("joint_states", 7))}
        shapes |= {"obs/ee_pos": (n, 3), "obs/ee_ori": (n, 3), "obs/agentview_rgb": (n, 32, 32, 3)}
        assert {name: demo[name].shape for name in shapes} == shapes
        assert demo["obs/agentview_rgb"].dtype == demo["dones"].dtype == np.uint8
        assert demo["dones"][()].tolist() == demo["rewards"][()].tolist() == [0] * (n - 1) + [1]
        np.testing.assert_array_equal(demo["obs/ee_states"][:, :3], demo["obs/ee_pos"])
        np.testing.assert_array_equal(demo["robot_states"][:, 2:5], demo["obs/ee_pos"])
        np.testing.assert_array_equal(demo.attrs["init_state"], demo["states"][0])
        assert demo.attrs["model_file"].startswith("<mujoco") and "bbq_sauce_1" in demo.attrs["model_file"]


def test_recorded_states_and_actions_replay_to_success(file: Path) -> None:
    demos = load_demos(file, task="LIBERO/libero_object-3-v0", image_size=32)
    assert demos.task == TASK and demos.assets == "light" and demos[0].lag == 0
    env = LiberoEnv("libero_object", 3, observations=("image", "state"), image_size=32, assets="light")
    for demo in demos:
        observation, _ = env.reset(seed=demo.record["seed"])
        images = demo.images()
        for step, action in enumerate(demo.actions):
            np.testing.assert_array_equal(env.flat_state(), demo.states[step])
            np.testing.assert_array_equal(observation["image"], images[step])
            np.testing.assert_array_equal(observation["state"][:3], demo.ee_pos[step])
            np.testing.assert_array_equal(env.facts()["bbq_sauce_1_pos"], demo.facts["bbq_sauce_1_pos"][step])
            observation, _, success, _, _ = env.step(action)
        assert success
    env.close()


def test_file_does_not_depend_on_the_number_of_processes(file: Path, tmp_path: Path) -> None:
    other = collect_demos(SETTINGS, tmp_path / "two.hdf5", workers=2, command="test")
    assert contents(other) == contents(file)


def test_interrupted_collection_continues(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "demos.hdf5"

    def interrupt(outcomes: dict[int, dict[str, Any]]) -> None:
        if outcomes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_demos(SETTINGS, out, command="test", progress=interrupt)
    partial = tmp_path / "demos.hdf5.partial"
    done = {path.name: path.stat().st_mtime_ns for path in partial.glob("episode_*.hdf5")}
    assert not out.exists() and "episode_00000.hdf5" in done

    with pytest.raises(ValueError, match=r"other settings \(dart was 0.0, is 0.1; image_size was 32, is 16\)"):
        collect_demos(dataclasses.replace(SETTINGS, dart=0.1, image_size=16), out)

    kept: list[dict[str, int]] = []

    def look(_: dict[int, dict[str, Any]]) -> None:
        kept.append({path.name: path.stat().st_mtime_ns for path in partial.glob("episode_*.hdf5")})

    collect_demos(SETTINGS, out, command="test", progress=look)
    assert kept[-1].items() >= done.items() and len(kept[-1]) == 2
    assert not partial.exists() and contents(out) == contents(file)


def test_no_process_outlives_a_collection_that_is_killed(file: Path, tmp_path: Path) -> None:
    """The same command then continues."""
    out = tmp_path / "demos.hdf5"
    settings = ["--demos", "2", "--seed", "5", "--assets", "light", "--image-size", "32"]
    command = [sys.executable, "-m", "sb3_tgrpo", "demos", "collect", "--env", TASK, *settings, "--out", str(out), "--quiet"]
    # Its processes hold the other end of the pipe: it ends when the last of them has ended.
    killed = subprocess.Popen([*command, "--workers", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while killed.poll() is None and not list(tmp_path.glob("demos.hdf5.partial/episode_*.json")):
        time.sleep(0.05)
    assert killed.poll() is None, killed.communicate()[0].decode()
    killed.kill()
    killed.communicate(timeout=60)
    assert not out.exists()
    assert main(command[3:]) == 0
    found, expected = contents(out), contents(file)
    assert {name for name in expected if found[name] != expected[name]} <= {"data@sb3_tgrpo"}, "the command differs"


@pytest.fixture(scope="module")
def env() -> Any:
    env = LiberoEnv("libero_object", 3, observations=("image", "state"), image_size=16, assets="light")
    yield env
    env.close()


def test_dart_executes_noise_and_records_what_the_expert_wanted(env: LiberoEnv) -> None:
    settings = CollectionSettings(TASK, 1, assets="light", dart=0.15, image_size=16)
    demo = collection.record_episode(env, settings, 0)
    assert demo.success
    expert = ScriptedExpert(TASK, detour=settings.detour, seed=int(np.random.SeedSequence([0, 0]).generate_state(3)[1]))
    wanted = []
    for step in range(len(demo.actions)):
        row = {key: values[step] for key, values in demo.facts.items()}
        wanted.append(expert.act({key: tuple(v) if v.ndim else v.item() for key, v in row.items()}))
    np.testing.assert_array_equal(demo.actions, wanted)  # clean labels ...
    env.reset(seed=int(np.random.SeedSequence([0, 0]).generate_state(3)[0]))
    for action in demo.actions[:10]:
        env.step(action)
    assert np.abs(env.flat_state() - demo.states[10]).max() > 1e-3  # ... of motions that were not


def test_failures_are_kept_only_if_asked_for(env: LiberoEnv, tmp_path: Path) -> None:
    settings = CollectionSettings(TASK, 1, assets="light", noise=1.0, keep_failures=True, image_size=16)
    demo = collection.record_episode(env, settings, 0)
    assert not demo.success and len(demo.actions) == 280
    from sb3_tgrpo.envs.demos.files import write_demos

    write_demos(tmp_path / "f.hdf5", {"task": TASK, "sb3_tgrpo": "{}"}, iter([demo]))
    with h5py.File(tmp_path / "f.hdf5") as opened:
        assert not opened["data/demo_0/dones"][()].any()
    assert not load_demos(tmp_path / "f.hdf5")[0].success
    failed = {index: {"success": False, "steps": 280} for index in range(24)}
    with pytest.raises(collection.CollectionError, match="the expert failed in 24 of 24 episodes"):
        collection._chosen(dataclasses.replace(settings, keep_failures=False), failed)
    assert collection._chosen(settings, failed) == [0]


def test_the_first_successes_in_order_are_chosen() -> None:
    settings = CollectionSettings(TASK, 2)
    outcomes = {index: {"success": index != 1, "steps": 1} for index in (0, 1, 3)}
    assert collection._chosen(settings, outcomes) is None  # attempt 2 is still under way
    outcomes[2] = {"success": True, "steps": 1}
    assert collection._chosen(settings, outcomes) == [0, 2]


def test_noops() -> None:
    actions = np.zeros((7, 7))
    actions[:, 6] = [-1, -1, -1, 1, 1, 1, -1]
    actions[2, 0], actions[5, 3] = 0.5, 2e-4
    # The first step counts as no motion; 3 closes, 6 opens, 2 and 5 move; 5e-5 does not.
    actions[4, 1] = 5e-5
    assert moving_steps(actions).tolist() == [2, 3, 5, 6]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A demonstration from a stored initial state, with both cameras."""
    settings = CollectionSettings(TASK, 1, assets="light", image_size=16, stored_starts=True, wrist_image=True)
    return collect_demos(settings, tmp_path_factory.mktemp("stored") / "demos.hdf5", command="test")


def test_every_number_of_a_row_is_from_liberos_moment(stored: Path) -> None:
    """From a stored initial state LIBERO observes a few milliseconds before the step's end; ``states`` are from the end."""
    with h5py.File(stored) as file, libero_env("libero_object", 3, "light") as reference:
        demo = file["data/demo_0"]
        state_id = json.loads(demo.attrs["sb3_tgrpo"])["init_state_id"]
        observation = start(reference, "libero_object", 3, 0, state_id)
        for step, action in enumerate(demo["actions"][:40]):
            np.testing.assert_array_equal(demo["states"][step], reference.get_sim_state())
            wanted = [observation[f"robot0_{name}"] for name in ("gripper_qpos", "eef_pos", "eef_quat")]
            np.testing.assert_array_equal(demo["robot_states"][step], np.concatenate(wanted))
            np.testing.assert_array_equal(demo["obs/joint_states"][step], observation["robot0_joint_pos"])
            np.testing.assert_array_equal(demo["obs/gripper_states"][step], wanted[0])
            np.testing.assert_array_equal(demo["obs/ee_pos"][step], wanted[1])
            observation, *_ = reference.step(action)
    assert load_demos(stored)[0].lag == 0


def test_liberos_and_robomimics_loaders_read_the_file(file: Path, stored: Path) -> None:
    """What they take: all keys of ``data`` by their numbers, ``num_samples``, ``env_args``, LIBERO's default observations."""
    images, numbers = ["agentview_rgb", "eye_in_hand_rgb"], {"gripper_states": 2, "joint_states": 7}
    with h5py.File(stored, "r", swmr=False, libver="latest") as opened:
        assert json.loads(opened["data"].attrs["env_args"])["type"] == 1
        for name in sorted(opened["data"], key=lambda name: int(name[5:])):
            demo, n = opened["data"][name], opened[f"data/{name}"].attrs["num_samples"]
            assert demo["actions"][()].astype("float32").shape == (n, 7)
            assert all(demo[f"obs/{key}"].shape == (n, 16, 16, 3) for key in images)
            assert all(demo[f"obs/{key}"][()].shape == (n, width) for key, width in numbers.items())
    with h5py.File(file) as opened:
        assert "eye_in_hand_rgb" not in opened["data/demo_0/obs"], "docs/demos.md: LIBERO's loader needs --wrist-image"


# ---------------------------------------------------------------------- what we read


def test_liberos_observations_follow_the_action(tmp_path: Path) -> None:
    demos = load_demos(libero_file(tmp_path / "any.hdf5"))
    demo = demos[0]
    assert demos.task == TASK and demos.assets == "full" and demos.image_shape == (8, 8, 3)
    assert demos.instruction == "pick up the bbq sauce and place it in the basket"
    assert demo.lag == 1 and len(demo) == 11
    with h5py.File(demos.path) as opened:
        np.testing.assert_array_equal(demo.actions, opened["data/demo_0/actions"][1:])
        np.testing.assert_array_equal(demo.ee_pos, opened["data/demo_0/obs/ee_pos"][:-1])
        np.testing.assert_array_equal(demo.states, opened["data/demo_0/states"][1:])
    np.testing.assert_array_equal(demo.images()[:, 0, 0, 0], np.arange(11))
    np.testing.assert_array_equal(demo.images(steps=slice(2, 6, 2))[:, 0, 0, 0], [2, 4])


def test_openvlas_observations_precede_the_action(tmp_path: Path) -> None:
    folder = tmp_path / "libero_object_no_noops"
    folder.mkdir()
    demos = load_demos(libero_file(folder / f"{NAME}_demo.hdf5", like_libero=False), task=TASK)
    assert demos[0].lag == 0 and len(demos[0]) == 12
    assert demos.instruction == "pick up the bbq sauce and place it in the basket"


def delete(name: str) -> Callable[[h5py.File], None]:
    def change(opened: h5py.File) -> None:
        del opened[name]

    return change


def put(name: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.File], None]:
    def change(opened: h5py.File) -> None:
        values = value(opened[name][()])
        del opened[name]
        opened[name] = values

    return change


def in_place_of_a_group(name: str) -> Callable[[h5py.File], None]:
    def change(opened: h5py.File) -> None:
        del opened[name]
        opened[name] = np.zeros(3)

    return change


def damage(path: Path, name: str) -> Path:
    """Store an array compressed, and turn a byte in the middle of it."""
    with h5py.File(path, "a") as opened:
        values = opened[name][()]
        del opened[name]
        opened.create_dataset(name, data=values, compression="gzip", fletcher32=True, chunks=values.shape)
        opened.flush()
        chunk = opened[name].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 255
    path.write_bytes(content)
    return path


def with_value(row: int, column: int, number: float) -> Callable[[np.ndarray], np.ndarray]:
    def value(values: np.ndarray) -> np.ndarray:
        values[row, column] = number
        return values

    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (delete("data/demo_1/actions"), r"demo_1 lacks actions; it has .*states"),
        (delete("data/demo_0/obs/ee_ori"), r"demo_0 lacks obs/ee_ori; it has .*obs/ee_pos"),
        (delete("data/demo_0/obs"), r"demo_0 lacks obs/ee_pos"),
        (delete("data"), r"lacks the group 'data'; it holds nothing"),
        (put("data/demo_1/actions", with_value(3, 2, -7.0)), r"demo_1 has actions outside .*row 3.*-7\.0"),
        (put("data/demo_1/actions", with_value(3, 2, np.nan)), r"demo_1: actions holds values that are not finite.*row 3"),
        (put("data/demo_0/actions", lambda a: a[:, :6]), r"demo_0 has actions of 6 dimensions, LIBERO's have 7"),
        (put("data/demo_0/obs/ee_pos", lambda a: a[:5]), r"demo_0: obs/ee_pos has shape \(5, 3\), expected \(12, 3\)"),
        (put("data/demo_1/obs/agentview_rgb", lambda a: a[:, :4]), r"demo_1 has pictures of shape \(4, 8, 3\), not \(8, 8"),
        (put("data/demo_1/obs/agentview_rgb", lambda a: a[:5]), r"demo_1: obs/agentview_rgb is uint8 \(5, 8, 8, 3\)"),
        (put("data/demo_1/obs/agentview_rgb", lambda a: a / 255), r"agentview_rgb is float64 .*expected uint8 \(12, height"),
        (delete("data/demo_1/obs/agentview_rgb"), r"demo_1 lacks obs/agentview_rgb; it has"),
        (put("data/demo_0/actions", lambda a: np.array([b"a"] * 12)), r"demo_0: actions is of type \|S1, expected numbers"),
        (in_place_of_a_group("data"), r"lacks the group 'data'; it holds data\. It is not in LIBERO's layout"),
        (in_place_of_a_group("data/demo_1"), r"demo_1 is no group with actions.*not in LIBERO's layout"),
        (in_place_of_a_group("data/demo_1/obs"), r"demo_1 lacks obs/ee_pos; it has actions.*states\.$"),
    ],
)
def test_bad_files(tmp_path: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_demos(libero_file(tmp_path / "bad.hdf5", change))


def test_missing_empty_truncated_and_other_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_demos(tmp_path / "none.hdf5")
    good = libero_file(tmp_path / "good.hdf5")
    for name, cut in (("empty", 0), ("truncated", good.stat().st_size // 2)):
        (tmp_path / name).write_bytes(good.read_bytes()[:cut])
        with pytest.raises(ValueError, match=rf"{name} can't be read \({cut} bytes"):
            load_demos(tmp_path / name)
    with h5py.File(tmp_path / "nothing.hdf5", "w") as opened:
        opened.create_group("data")
    with pytest.raises(ValueError, match="holds no demonstrations"):
        load_demos(tmp_path / "nothing.hdf5")
    with pytest.raises(ValueError, match=r"it holds pictures of 8 x 8 pixels, not 256 x 256"):
        load_demos(good, image_size=256)
    with pytest.raises(ValueError, match="holds demonstrations of libero_object-3, not of libero_object-4"):
        load_demos(good, task="libero_object-4")
    with pytest.raises(ValueError, match="lacks obs/eye_in_hand_rgb"):
        load_demos(good)[0].images("wrist_image")
    with pytest.raises(ValueError, match="camera='front'"):
        load_demos(good)[0].images("front")
    with pytest.raises(ValueError, match="max_demos=0: it must be at least 1"):
        load_demos(good, max_demos=0)
    blind = libero_file(tmp_path / "blind.hdf5")
    with h5py.File(blind, "a") as opened:
        del opened["data/demo_0/obs/agentview_rgb"], opened["data/demo_1/obs/agentview_rgb"]
    assert load_demos(blind).image_shape is None
    with pytest.raises(ValueError, match=r"holds no pictures .*image_size=8 asks for some"):
        load_demos(blind, image_size=8)


@pytest.mark.parametrize("name", ["actions", "states", "obs/ee_pos"])
def test_damaged_arrays_are_named(tmp_path: Path, name: str) -> None:
    path = damage(libero_file(tmp_path / "damaged.hdf5"), f"data/demo_1/{name}")
    with pytest.raises(ValueError, match=rf"demo_1: {name} can't be read .*the file is damaged"):
        load_demos(path)


def test_damaged_pictures_are_named_when_they_are_read(tmp_path: Path) -> None:
    demos = load_demos(damage(libero_file(tmp_path / "damaged.hdf5"), "data/demo_1/obs/agentview_rgb"))
    assert len(demos[0].images()) == 11
    with pytest.raises(ValueError, match=r"demo_1: obs/agentview_rgb can't be read .*the file is damaged"):
        demos[1].images()


def test_what_is_not_asked_for_need_not_be_sound(tmp_path: Path) -> None:
    """Other groups than demonstrations are passed over, and those past ``max_demos``."""
    path = libero_file(tmp_path / "more.hdf5")
    with h5py.File(path, "a") as opened:
        opened.create_group("data/demo_extra")
        opened.create_group("data/demo_2")
    assert len(load_demos(path, max_demos=2)) == 2
    with pytest.raises(ValueError, match="demo_2 lacks actions; it has nothing"):
        load_demos(path)


def test_the_instruction_of_a_file_without_attributes(tmp_path: Path) -> None:
    """OpenVLA's regenerated files: the task's name holds its scene, the instruction does not."""
    name = "KITCHEN_SCENE3_turn_on_the_stove_and_put_the_moka_pot_on_it_demo.hdf5"
    demos = load_demos(libero_file(tmp_path / name, like_libero=False))
    assert (demos.task, demos.instruction) == ("libero_10-2", "turn on the stove and put the moka pot on it")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"demos": 0}, "demos=0: it must be at least 1"),
        ({"seed": -1}, "seed=-1: it must be at least 0"),
        ({"noise": 2.0}, r"noise=2\.0: it must be at least 0 and at most 1"),
        ({"start_noise": 0.1, "stored_starts": True}, "stored_starts=True: start_noise=0.1"),
    ],
)
def test_bad_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SETTINGS, **changes)


def test_unknown_task_and_workers(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Unknown task 99 of libero_object"):
        collect_demos(dataclasses.replace(SETTINGS, task="libero_object-99"), tmp_path / "x.hdf5")
    with pytest.raises(ValueError, match="workers=0: it must be at least 1"):
        collect_demos(SETTINGS, tmp_path / "x.hdf5", workers=0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"is a folder: name a file in it, such as .*demos\.hdf5"):
        collect_demos(SETTINGS, tmp_path)


def test_what_cannot_be_collected_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for size in (0, -1, 32.0, True):
        with pytest.raises(ValueError, match=f"image_size={size}: it must be"):
            dataclasses.replace(SETTINGS, image_size=size)
    with pytest.raises(ValueError, match=r"task='libero_goal-1': the smooth expert .*use the scripted expert"):
        collect_demos(dataclasses.replace(SETTINGS, task="libero_goal-1", expert="smooth"), tmp_path / "new/x.hdf5")
    assert not list(tmp_path.iterdir())


def test_settings_without_an_episode_bind_nobody(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert collection._claim(folder, SETTINGS) == {}
    other = dataclasses.replace(SETTINGS, image_size=16)
    assert collection._claim(folder, other) == {}
    (tmp_path / "episode_00000.json").write_text('{"success": false, "steps": 9}')
    assert list(collection._claim(folder, dataclasses.replace(other, demos=5))) == [0], (
        "the number of demonstrations may change"
    )
    with pytest.raises(ValueError, match=r"other settings \(image_size was 16, is 32"):
        collection._claim(folder, SETTINGS)


def test_a_damaged_episode_is_played_again(file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """However it is damaged, and however the file or its outcome reads: what is not as it was written was not played."""
    out, partial = tmp_path / "demos.hdf5", tmp_path / "demos.hdf5.partial"

    def stop(outcomes: dict[int, dict[str, Any]]) -> None:
        if len(outcomes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect_demos(SETTINGS, out, command="test", progress=stop)
    (partial / "episode_00000.hdf5").write_bytes((partial / "episode_00000.hdf5").read_bytes()[:5000])  # truncated
    content = bytearray((partial / "episode_00001.hdf5").read_bytes())
    content[len(content) // 2] ^= 255  # HDF5 reads it, and does not notice
    (partial / "episode_00001.hdf5").write_bytes(content)
    (partial / "episode_00002.json").write_text('{"success": tr')
    (partial / "episode_00003.json").write_text('{"success": true, "steps": 9, "sha256": "0"}')  # its file is gone
    collect_demos(SETTINGS, out, command="test")
    assert [f"episode {index} is damaged" in caplog.text for index in range(5)] == [True] * 4 + [False]
    assert contents(out) == contents(file)


class Refused(Exception):
    """Takes other arguments than its message."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"joint {code}: {reason}")


class RefusedByTheWorker(CollectionSettings):
    """Settings that a worker, which is a process started by another, can't read."""

    def __getattribute__(self, name: str) -> Any:
        if name == "wrist_image" and multiprocessing.parent_process() is not None:
            raise Refused(4, "out of range")
        return super().__getattribute__(name)


def test_the_text_and_traceback_of_any_exception_of_an_episode_arrive(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="Refused: joint 4: out of range") as raised:
        collection._fill(RefusedByTheWorker(TASK, 1, assets="light"), tmp_path, {}, 1, None)
    assert "__getattribute__" in "".join(raised.value.__notes__)


def test_one_process_at_a_time_collects_into_a_file(tmp_path: Path) -> None:
    def second(_: dict[int, dict[str, Any]]) -> None:
        with pytest.raises(OSError, match=r"x\.hdf5\.partial is in use by another process: wait for it"):
            collect_demos(SETTINGS, tmp_path / "x.hdf5")
        raise KeyboardInterrupt

    for _ in range(2):  # the lock ends with its process
        with pytest.raises(KeyboardInterrupt):
            collect_demos(SETTINGS, tmp_path / "x.hdf5", progress=second)
    assert [path.name for path in tmp_path.iterdir()] == ["x.hdf5.partial"]


# ---------------------------------------------------------------------- key poses of files


def test_key_poses_of_a_file_with_and_without_facts(file: Path, tmp_path: Path) -> None:
    poses = key_poses(file)
    assert [pose.frame for pose in poses] == ["bbq_sauce_1"] * 2 + ["basket_1_contain_region"] * 2
    assert poses.n_demos == 2

    plain = tmp_path / "plain.hdf5"
    plain.write_bytes(file.read_bytes())
    with h5py.File(plain, "a") as opened:
        for name in opened["data"]:
            del opened[f"data/{name}/facts"]
    restored = key_poses(plain)  # where things are comes from the simulator
    assert restored.names == poses.names
    assert [pose.frame for pose in restored] == [pose.frame for pose in poses]
    # MuJoCo's positions after a step are those before its last 2 ms; a restored state's are current.
    np.testing.assert_allclose(restored, poses, atol=0.002)


# ---------------------------------------------------------------------- the command


def test_command(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet, video = tmp_path / "pictures/sheet.png", tmp_path / "video.mp4"
    arguments = ["--task", TASK, "--key-poses", "--sheet", str(sheet), "--video", str(video), "--demo", "1", "--rows", "1"]
    assert main(["demos", "show", str(file), *arguments]) == 0
    output = capsys.readouterr().out
    for part in ("2, 2 successful", "light assets", "demo_0", "and 1 more", "above_goal", "seed 5", "pictures 32 x 32"):
        assert part in output
    assert sheet.stat().st_size > 1000 and video.stat().st_size > 1000

    assert main(["demos", "show", str(file), "--task", "libero_goal-1"]) == 1
    assert "not of libero_goal-1" in capsys.readouterr().err
    assert main(["demos", "show", str(file), "--video", str(video), "--demo", "2"]) == 1
    assert "demonstrations 0 to 1" in capsys.readouterr().err
    for option, what in (("--video", "a video of this suffix; name it with .mp4"), ("--sheet", "a picture of this suffix")):
        assert main(["demos", "show", str(file), option, str(tmp_path / "film.xyz")]) == 1
        assert what in capsys.readouterr().err
    assert not list(tmp_path.glob("*film*"))
    assert main(["demos", "collect", "--env", TASK, "--episodes", "0", "--out", str(tmp_path / "x.hdf5")]) == 1
    error = capsys.readouterr().err
    assert "--episodes is now --demos" in error and "demos=0: it must be at least 1" in error


def test_contact_sheet_is_upright_and_ordered(tmp_path: Path) -> None:
    def gradient(opened: h5py.File) -> None:
        images = opened["data/demo_0/obs/agentview_rgb"]
        images[:, 0] = 200  # the bottom row as stored

    demos: Demos = load_demos(libero_file(tmp_path / "a.hdf5", gradient))
    sheet = contact_sheet(demos, rows=1, columns=3)
    assert sheet.shape == (8 + 2, 3 * (8 + 2), 3)
    assert (sheet[7, :8] == 200).all() and (sheet[0, :8] == 0).all()
    assert sheet[0, [0, 10, 20], 0].tolist() == [0, 5, 10]
    with pytest.raises(ValueError, match="demos is empty"):
        contact_sheet([])


def test_facts_of_a_file_are_the_tasks(file: Path) -> None:
    assert set(load_demos(file)[0].facts) == set(load_task_facts(TASK).state_types)
