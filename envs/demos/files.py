"""
Demonstration files: LIBERO's own HDF5 layout, read and written.

::

    data                 attributes: env_args, env_name, problem_info, bddl_file_name, bddl_file_content,
                         macros_image_convention, num_demos, total, tag; ours: suite, task, assets, sb3_tgrpo
      demo_0             attributes: num_samples, init_state, model_file; ours: sb3_tgrpo
        actions          (T, 7) float64
        states           (T, n) float64, the simulator's state before each action: time, qpos, qvel
        robot_states     (T, 9) float64: finger positions, end-effector position and quaternion (x, y, z, w)
        rewards, dones   (T,) uint8, 1 at the last step of a success
        obs
          agentview_rgb  (T, H, W, 3) uint8, as the simulator gives it (upside down); and eye_in_hand_rgb
          ee_states      (T, 6): ee_pos (T, 3) and ee_ori (T, 3, axis-angle)
          gripper_states (T, 2), joint_states (T, 7)
        facts            ours: the task's facts by name, (T,) or (T, k), before each action; other readers ignore it

In LIBERO's own files the observation of row t was taken *after* action t; in those made by OpenVLA's preparation, and in ours,
before it. :class:`Demo` pairs each action with the observation that precedes it, whatever the file.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sb3_tgrpo.envs.demos.reader import OWN, DemoFile, import_h5py, open_demos
from sb3_tgrpo.files import atomic_path
from sb3_tgrpo.rewards.facts.task_name import TaskName
from sb3_tgrpo.settings import check_number, typed

_IMAGES = {"image": "agentview_rgb", "wrist_image": "eye_in_hand_rgb"}
_LOW_DIM = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}


@dataclass(frozen=True)
class RecordedDemo:
    """
    An episode as it is written.

    :param actions: (T, 7) in [-1, 1].
    :param states: (T, n), simulator states before the actions.
    :param robot_states: (T, 9).
    :param observations: Arrays of T rows by the layout's names below ``obs``.
    :param success: Whether the episode succeeded.
    :param model_file: MJCF document of the scene.
    :param facts: The task's facts by name, each with T rows; may be empty.
    :param record: JSON values for the attribute ``sb3_tgrpo``.
    """

    actions: np.ndarray
    states: np.ndarray
    robot_states: np.ndarray
    observations: Mapping[str, np.ndarray]
    success: bool
    facts: Mapping[str, np.ndarray] = field(default_factory=dict)
    model_file: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)


# ---------------------------------------------------------------------- writing


def _write_demo(group: Any, demo: RecordedDemo) -> int:
    """Write one episode into a group such as ``data/demo_0``; its number of steps."""
    n_steps = len(demo.actions)
    arrays = {"actions": demo.actions, "states": demo.states, "robot_states": demo.robot_states}
    arrays |= {f"obs/{name}": values for name, values in demo.observations.items()}
    arrays |= {f"facts/{name}": values for name, values in demo.facts.items()}
    assert all(len(values) == n_steps for values in arrays.values()), {name: len(v) for name, v in arrays.items()}
    ends = np.zeros(n_steps, np.uint8)
    ends[-1] = demo.success
    for name, values in {**arrays, "rewards": ends, "dones": ends}.items():
        group.create_dataset(name, data=values)
    group.attrs["num_samples"] = n_steps
    group.attrs["init_state"] = demo.states[0]
    group.attrs["model_file"] = demo.model_file
    group.attrs[OWN] = json.dumps({"success": demo.success, **demo.record})
    return n_steps


def write_demos(path: str | os.PathLike[str], attributes: Mapping[str, Any], demos: Iterable[RecordedDemo | Path]) -> None:
    """
    Write a file, atomically: it is there complete, or not at all.

    :param path: File to write, replaced if it exists.
    :param attributes: Attributes of the group ``data``; ``num_demos`` and ``total`` are added.
    :param demos: At least one episode, or files of one episode each, which are copied.
    """
    with atomic_path(path) as unfinished, import_h5py().File(unfinished, "w") as file:
        data, lengths = file.create_group("data"), list[int]()
        for demo in demos:
            name = f"demo_{len(lengths)}"
            if isinstance(demo, Path):
                with open_demos(demo) as source:
                    data.copy(source.group("demo_0"), name)
                lengths.append(len(data[name]["actions"]))
            else:
                lengths.append(_write_demo(data.create_group(name), demo))
        assert lengths, "there is nothing to write"
        for key, value in {**attributes, "num_demos": len(lengths), "total": sum(lengths)}.items():
            data.attrs[key] = value


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Demo:
    """
    A demonstration in a file: each row pairs an action with the observation before it.

    :param path: The file.
    :param name: Name of the group, such as ``demo_0``.
    :param actions: (T, 7).
    :param states: (T, n), simulator states before the actions; None if the file has none.
    :param ee_pos: (T, 3), end effector, metres, world frame.
    :param ee_ori: (T, 3), axis-angle.
    :param gripper_states: (T, 2), finger positions.
    :param joint_states: (T, 7), the arm's joints.
    :param success: Whether it succeeded by all that the file states; files that state nothing hold successes only.
    :param init_state: (n,), the simulator's initial state; None if the file has none.
    :param facts: The task's facts by name, (T,) or (T, k); empty in files that are not ours.
    :param record: What our own files add: seed, initial state, noise and so on.
    :param lag: 1 if the observations follow the actions (LIBERO's own files), so that the first action is left out; else 0.
    """

    path: Path
    name: str
    actions: np.ndarray
    states: np.ndarray | None
    ee_pos: np.ndarray
    ee_ori: np.ndarray
    gripper_states: np.ndarray
    joint_states: np.ndarray
    success: bool
    init_state: np.ndarray | None
    facts: Mapping[str, np.ndarray]
    record: Mapping[str, Any]
    lag: int

    def __len__(self) -> int:
        return len(self.actions)

    @property
    def gripper_opening(self) -> np.ndarray:
        """(T,), distance between the fingers, metres."""
        return self.gripper_states[:, 0] - self.gripper_states[:, 1]

    def images(self, camera: str = "image", steps: slice | None = None) -> np.ndarray:
        """
        Read pictures from the file.

        :param camera: ``"image"`` (agentview) or ``"wrist_image"``.
        :param steps: Rows to read; None for all.
        :return: Pictures, uint8 (T, H, W, 3), as stored: upside down.
        :raises ValueError: If the file has none of this camera.
        """
        typed(Literal["image", "wrist_image"], camera, "camera")
        with open_demos(self.path) as file:
            pictures = file.images(self.name, f"obs/{_IMAGES[camera]}", len(self) + self.lag)
            first, last, stride = (steps or slice(None)).indices(len(self))
            return file.read(self.name, pictures, slice(first, last, stride))


@dataclass(frozen=True)
class Demos(Sequence[Demo]):
    """
    The demonstrations of one file.

    :param path: The file.
    :param task: ``"libero_object-3"``, ``""`` if it belongs to no known task.
    :param instruction: The task's sentence; for an unknown task the file's, ``""`` if it has none.
    :param assets: ``"full"`` or ``"light"``; LIBERO's own files are full.
    :param image_shape: (H, W, 3); None without images.
    :param record: What our own files add: command, seed, noise, versions and so on.
    :param demos: Demonstrations in the file's order.
    """

    path: Path
    task: str
    instruction: str
    assets: str
    image_shape: tuple[int, ...] | None
    record: Mapping[str, Any]
    demos: tuple[Demo, ...]

    def __len__(self) -> int:
        return len(self.demos)

    def __getitem__(self, index: Any) -> Any:
        return self.demos[index]


def load_demos(
    path: str | os.PathLike[str], *, task: str | None = None, image_size: int | None = None, max_demos: int | None = None
) -> Demos:
    """
    Read a demonstration file: LIBERO's, OpenVLA's regenerated ones, or ours. Images stay in the file until asked for.

    :param path: The HDF5 file.
    :param task: Task that the file must be of: ``"libero_object-3"``, ``"libero_object-8:ketchup"`` for another target, or a
        Gymnasium id; None for any.
    :param image_size: Height and width that its pictures must have; None for any.
    :param max_demos: Largest number of demonstrations to read.
    :raises FileNotFoundError: If there is no such file.
    :raises OSError: If another process writes the file, or it may not be read.
    :raises ValueError: If the file is empty or truncated, lacks a key, or holds another task, pictures of another size,
        actions of another convention, or arrays whose lengths differ; if ``max_demos`` is less than 1.
    """
    check_number("max_demos", max_demos, int, optional=True)
    wanted = ""
    if task is not None:
        name, colon, target = task.partition(":")
        wanted = f"{TaskName.parse(name)}{colon}{target}"
    with open_demos(path) as file:
        if wanted and file.task != wanted:
            raise file.error(f"it holds demonstrations of {file.task or 'an unknown task'}, not of {wanted}.")
        file.check_convention()
        demos = tuple(_read_demo(file, name) for name in file.names[:max_demos])
        shape = _image_shape(file, demos)
        if image_size is not None and shape is None:
            raise file.error(
                f"it holds no pictures (obs/{_IMAGES['image']}), and image_size={image_size} asks for some: choose another "
                "file, or leave image_size out."
            )
        if image_size is not None and shape is not None and shape[:2] != (image_size, image_size):
            raise file.error(
                f"it holds pictures of {shape[0]} x {shape[1]} pixels, not {image_size} x {image_size}: choose image_size "
                f"accordingly or collect with --image-size {image_size}."
            )
        return Demos(file.path, file.task, file.instruction, file.assets, shape, file.record, demos)


def _image_shape(file: DemoFile, demos: Sequence[Demo]) -> tuple[int, ...] | None:
    """(H, W, 3) of all demonstrations' pictures, None without any."""
    key = f"obs/{_IMAGES['image']}"
    if not any(key in file.group(demo.name) for demo in demos):
        return None
    shapes = {demo.name: tuple(map(int, file.images(demo.name, key, len(demo) + demo.lag).shape[1:])) for demo in demos}
    shape = shapes[demos[0].name]
    for name, other in shapes.items():
        if other != shape:
            raise file.error(f"{name} has pictures of shape {other}, not {shape}: use one size.")
    return shape


def _read_demo(file: DemoFile, name: str) -> Demo:
    actions = file.rows(name, "actions")
    n_steps, lag, group = len(actions), file.lag(name), file.group(name)
    file.check_length(name, n_steps)
    if n_steps <= lag:
        raise file.error(f"{name} has {n_steps} steps: there is nothing to learn from it.")
    file.check_actions(name, actions)
    low = {key: file.rows(name, f"obs/{key}", width, n_steps)[: n_steps - lag] for key, width in _LOW_DIM.items()}
    states = file.rows(name, "states", None, n_steps)[lag:] if "states" in group else None
    facts = {key: file.read(name, file.array(name, f"facts/{key}")) for key in group.get("facts", {})}
    if wrong := {key: len(values) for key, values in facts.items() if len(values) != n_steps}:
        raise file.error(f"{name}: the facts {wrong} have other numbers of rows than the {n_steps} actions.")
    init_state = np.asarray(group.attrs["init_state"]) if "init_state" in group.attrs else None
    return Demo(
        path=file.path,
        name=name,
        actions=actions[lag:],
        states=states,
        success=file.succeeded(name),
        init_state=states[0] if init_state is None and states is not None else init_state,
        facts={key: values[: n_steps - lag] for key, values in facts.items()},
        record=file.record_of(name),
        lag=lag,
        **low,
    )
