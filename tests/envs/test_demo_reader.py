"""What demonstration files state about themselves is believed, and checked against their arrays, by both readers alike."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from demonstration_files import BBQ_SAUCE, libero_file

from sb3_tgrpo.envs import load_demos
from sb3_tgrpo.envs.libero.tasks import bddl_language, get_task
from sb3_tgrpo.sft.dataset import DemonstrationDataset

SENTENCE = "pick up the bbq sauce and place it in the basket"


def sft_instruction(path: Path) -> str:
    return DemonstrationDataset(path).instructions[0]


def sft_names(path: Path) -> list[str]:
    return [demo.name for demo in DemonstrationDataset(path).demonstrations]


READERS: list[Callable[[Path], Any]] = [load_demos, DemonstrationDataset]


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file["data"].attrs.__setitem__(name, value if isinstance(value, str) else json.dumps(value))


def each_demo(change: Callable[[h5py.Group], None]) -> Callable[[h5py.File], None]:
    def changes(file: h5py.File) -> None:
        for demo in file["data"].values():
            change(demo)

    return changes


def controller(**settings: Any) -> Callable[[h5py.File], None]:
    return attribute("env_args", {"env_kwargs": {"controller_configs": settings}})


def put(key: str, value: Callable[[np.ndarray], np.ndarray]) -> Callable[[h5py.Group], None]:
    def change(demo: h5py.Group) -> None:
        new = value(demo[key][()])
        del demo[key]
        demo[key] = new

    return change


# ---------------------------------------------------------------------- the sentence


def test_the_instruction_of_a_known_task_is_what_its_environment_shows(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """LIBERO's collector writes the sentence of the BDDL file, which 25 of 30 tasks word otherwise than their environment."""
    collected = bddl_language(get_task("libero_object", 3).read_bddl())
    assert collected.lower() != SENTENCE
    path = libero_file(tmp_path / "any.hdf5", attribute("problem_info", {"language_instruction": collected}))
    assert (load_demos(path).instruction, sft_instruction(path)) == (SENTENCE, SENTENCE)
    assert not caplog.text
    path = libero_file(tmp_path / "other.hdf5", attribute("problem_info", {"language_instruction": "fetch it"}))
    assert (load_demos(path).instruction, sft_instruction(path)) == (SENTENCE, SENTENCE)
    assert "states 'fetch it'" in caplog.text and repr(SENTENCE) in caplog.text
    assert DemonstrationDataset(path, instruction="fetch it").instructions == ["fetch it"]


def test_a_task_that_only_shares_its_name_with_liberos_is_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def change(file: h5py.File) -> None:
        text = get_task("libero_object", 3).read_bddl().replace("bbq sauce", "milk")
        file["data"].attrs["bddl_file_content"] = text
        file["data"].attrs["problem_info"] = json.dumps({"language_instruction": "pick the milk"})

    path = libero_file(tmp_path / "any.hdf5", change)
    assert (load_demos(path).task, load_demos(path).instruction, sft_instruction(path)) == ("", *["pick the milk"] * 2)
    assert "is the name of libero_object-3, but the file is about" in caplog.text
    assert "several instructions, 'pick the milk' and 'Pick the milk and place it in the basket'" in caplog.text


def test_scene_prefixes_are_no_part_of_the_sentence(tmp_path: Path) -> None:
    path = libero_file(tmp_path / "KITCHEN_SCENE99_open_it_demo.hdf5", like_libero=False)
    assert load_demos(path).instruction == sft_instruction(path) == "open it"


# ---------------------------------------------------------------------- gripper, robot, controller, pictures


def fingers(command: np.ndarray) -> np.ndarray:
    """Positions of the fingers (T, 2) that follow commands of -1 (open) and 1 (close)."""
    opening = np.convolve(np.where(command > 0, 0.02, 0.08), np.ones(5) / 5)[: len(command)]
    opening[:5] = 0.08
    return np.stack([opening / 2, -opening / 2], axis=1)


@pytest.mark.parametrize("read", READERS)
def test_gripper_commands_of_another_convention_are_refused(read: Callable[[Path], Any], tmp_path: Path) -> None:
    command = np.where(np.arange(60) < 30, -1.0, 1.0)  # open, then close

    def written(convention: Callable[[np.ndarray], np.ndarray]) -> Path:
        def change(file: h5py.File) -> None:
            demo = file["data/demo_0"]
            for name in ("actions", "states", "robot_states", "rewards", "dones"):
                put(name, lambda old: np.resize(old, (60, *old.shape[1:])))(demo)
            for name in list(demo["obs"]):
                put(f"obs/{name}", lambda old: np.resize(old, (60, *old.shape[1:])))(demo)
            actions = demo["actions"][()]
            actions[:, 6] = convention(command)
            demo["actions"][...], demo["obs/gripper_states"][...], demo["rewards"][-1] = actions, fingers(command), 1
            demo.attrs["num_samples"] = 60

        return libero_file(tmp_path / "file.hdf5", change)

    read(written(lambda c: c))
    with pytest.raises(ValueError, match=r"demo_0 has gripper commands from 0 to 1; LIBERO's are -1 .*1 - 2 \* command"):
        read(written(lambda c: (1 - c) / 2))  # RLDS: 1 open, 0 closed
    with pytest.raises(ValueError, match=r"the fingers are 0\.080 m apart where the gripper's command is positive"):
        read(written(lambda c: -c))
    with pytest.raises(ValueError, match="the fingers are"):
        read(written(lambda c: np.ones_like(c) * 0.9 - (c > 0) * 1.8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (attribute("env_args", {"env_kwargs": {"control_freq": 10}}), "control_freq=10 .LIBERO: 20."),
        (attribute("env_args", {"env_kwargs": {"robots": ["Sawyer"]}}), "robots=.'Sawyer'."),
        (controller(type="JOINT_POSITION"), "type='JOINT_POSITION' .LIBERO: 'OSC_POSE'."),
        (controller(control_delta=False), "control_delta=False"),
        (controller(output_max=[0.1] * 6), "output_max="),
        (controller(body_parts={"right": {"type": "OSC_POSE", "input_type": "absolute"}}), "input_type='absolute'"),
        (attribute("macros_image_convention", "opencv"), "macros_image_convention='opencv' .LIBERO: 'opengl'."),
        (each_demo(lambda demo: demo.attrs.__setitem__("num_samples", 13)), "12 actions, but num_samples=13"),
    ],
)
@pytest.mark.parametrize("read", READERS)
def test_a_file_that_states_another_convention_is_refused(
    read: Callable[[Path], Any], tmp_path: Path, change: Callable[[h5py.File], None], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read(libero_file(tmp_path / "file.hdf5", change))


def test_liberos_own_statement_is_accepted(tmp_path: Path) -> None:
    own = {
        "type": "OSC_POSE", "input_max": 1, "input_min": -1, "output_max": [0.05, 0.05, 0.05, 0.5, 0.5, 0.5],
        "output_min": [-0.05, -0.05, -0.05, -0.5, -0.5, -0.5], "kp": 150, "damping_ratio": 1, "impedance_mode": "fixed",
        "kp_limits": [0, 300], "position_limits": None, "uncouple_pos_ori": True, "control_delta": True, "ramp_ratio": 0.2,
    }  # fmt: skip
    kwargs = {"robots": ["Panda"], "controller_configs": own, "control_freq": 20, "camera_heights": 128}
    path = libero_file(tmp_path / "file.hdf5", attribute("env_args", {"type": 1, "env_kwargs": kwargs}))
    assert len(load_demos(path)) == len(DemonstrationDataset(path).demonstrations) == 2


# ---------------------------------------------------------------------- success, split, alignment


@pytest.mark.parametrize("statement", ["rewards and dones", "our attribute"])
def test_failed_demonstrations_are_left_out_whatever_states_it(
    statement: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(demo: h5py.Group) -> None:
        if statement == "our attribute":
            demo.attrs["sb3_tgrpo"] = json.dumps({"success": False})
        else:
            demo["rewards"][...] = demo["dones"][...] = 0

    path = libero_file(tmp_path / "one.hdf5", lambda file: fail(file["data/demo_0"]))
    assert sft_names(path) == ["demo_1"] and "1 of 2 demonstrations were unsuccessful and are left out" in caplog.text
    assert [demo.success for demo in load_demos(path)] == [False, True]
    with pytest.raises(ValueError, match="none of its 2 demonstrations was successful"):
        DemonstrationDataset(libero_file(tmp_path / "all.hdf5", each_demo(fail)))


def test_a_split_that_a_file_holds_is_kept(tmp_path: Path) -> None:
    """robomimic's filter keys."""

    def split(file: h5py.File) -> None:
        for k in range(2, 8):
            file.copy("data/demo_0", file["data"], f"demo_{k}")
        file["data"].attrs["num_demos"] = 8
        file["mask/train"], file["mask/valid"] = np.array([b"demo_0", b"demo_2"]), np.array([b"demo_5", b"demo_1"])

    dataset = DemonstrationDataset(libero_file(tmp_path / "file.hdf5", split))
    for fraction in (0.5, 0.0):
        train, validation = dataset.split(fraction, seed=0)
        assert (train.tolist(), validation.tolist()) == ([0, 2, 3, 4, 6, 7], [1, 5])


@pytest.mark.parametrize("like_libero", [True, False])
@pytest.mark.parametrize("lag", [0, 1])
def test_joints_and_states_settle_which_row_an_observation_belongs_to(
    like_libero: bool, lag: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def align(file: h5py.File) -> None:
        joints = np.cumsum(np.full((13, 7), 0.02), axis=0)
        for demo in file["data"].values():
            demo["states"][:, 1:8] = joints[:-1]
            demo["obs/joint_states"][...] = joints[lag : 12 + lag] + 1e-3  # LIBERO observes a few milliseconds earlier

    path = libero_file(tmp_path / f"{BBQ_SAUCE}_demo.hdf5", align, like_libero)
    assert [demo.lag for demo in load_demos(path)] == [lag, lag]
    assert len(DemonstrationDataset(path)) == 2 * (12 - lag)
    assert ("which are believed" in caplog.text) == (lag != like_libero)


def test_a_file_with_fewer_demonstrations_than_it_states_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    DemonstrationDataset(libero_file(tmp_path / "file.hdf5", lambda file: file.pop("data/demo_1")))
    assert "num_demos=2, but it holds 1 demonstrations" in caplog.text


# ---------------------------------------------------------------------- what the system refuses


@pytest.mark.parametrize("read", READERS)
def test_a_file_in_use_is_not_called_damaged(read: Callable[[Path], Any], tmp_path: Path) -> None:
    path = libero_file(tmp_path / "file.hdf5")
    script = f"import h5py; file = h5py.File({str(path)!r}, 'r+'); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        with pytest.raises(OSError, match=r"can't be opened now .*may be sound: wait until the process") as caught:
            read(path)
        writer.kill()
    assert not {"truncated", "damaged", "again"} & set(str(caught.value).replace(".", " ").split())


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    ("number", "remedy"), [(13, "change its permissions"), (35, "wait until"), (37, "LOCKING"), (5, "try")]
)
def test_what_the_system_refuses_may_be_sound(
    read: Callable[[Path], Any], number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = libero_file(tmp_path / "file.hdf5")

    def refuse(*_: Any) -> None:
        raise OSError(number, f"Unable to open file (errno = {number})")

    monkeypatch.setattr(h5py, "File", refuse)
    with pytest.raises(OSError, match=f"{os.strerror(number)}.*may be sound: .*{remedy}"):
        read(path)
