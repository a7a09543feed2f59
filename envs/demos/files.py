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
          agentview_rgb  (T, H, W, 3) uint8, as the simulator gives it (upside down); eye_in_hand_rgb likewise
          ee_states      (T, 6): ee_pos (T, 3) and ee_ori (T, 3, axis-angle)
          gripper_states (T, 2), joint_states (T, 7)
        facts            ours: the task's facts by name, (T,) or (T, k), before each action; other readers pass it over

In LIBERO's own files the observation of row t was taken *after* action t; in those made by OpenVLA's preparation, and in ours,
before it. :class:`Demo` pairs each action with the observation that precedes it, whatever the file.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import h5py

NOOP_NORM = 1e-4
"""A motion smaller than this is none (facts: OpenVLA's LIBERO preparation)."""
OWN = "sb3_tgrpo"
"""Attribute with what LIBERO's layout has no place for, as JSON."""
_IMAGES = {"image": "agentview_rgb", "wrist_image": "eye_in_hand_rgb"}
_LOW_DIM = {"ee_pos": 3, "ee_ori": 3, "gripper_states": 2, "joint_states": 7}


@dataclass(frozen=True)
class RecordedDemo:
    """
    An episode as it is written.

    :param actions: (T, 7) in [-1, 1].
    :param states: (T, n), before each action.
    :param robot_states: (T, 9).
    :param observations: by the layout's names below ``obs``, each with T rows.
    :param success: whether it ended in success.
    :param model_file: MJCF document of the scene.
    :param facts: the task's facts by name, each with T rows; may be empty.
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


def is_noop(action: np.ndarray, previous: np.ndarray | None) -> bool:
    """
    Whether OpenVLA's LIBERO preparation leaves a step out: no motion, and the gripper's command unchanged.

    :param action: (7,).
    :param previous: the last action that was kept, None at the start.
    """
    still = float(np.linalg.norm(action[:-1])) < NOOP_NORM
    return still and (previous is None or action[-1] == previous[-1])


def moving_steps(actions: np.ndarray) -> np.ndarray:
    """
    :param actions: (T, 7).
    :return: indices of the steps that are no no-ops.
    """
    kept: list[int] = []
    for step, action in enumerate(actions):
        if not is_noop(action, actions[kept[-1]] if kept else None):
            kept.append(step)
    return np.array(kept, dtype=np.int64)


# ---------------------------------------------------------------------- writing


def _import_h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError('Demonstration files need h5py: pip install "sb3-tgrpo[libero]".') from error
    return h5py


def write_demo(group: "h5py.Group", demo: RecordedDemo) -> None:
    """
    Write one episode into a group such as ``data/demo_0``.

    :raises ValueError: if the arrays' lengths differ.
    """
    n_steps = len(demo.actions)
    arrays = {"actions": demo.actions, "states": demo.states, "robot_states": demo.robot_states}
    arrays |= {f"obs/{name}": values for name, values in demo.observations.items()}
    arrays |= {f"facts/{name}": values for name, values in demo.facts.items()}
    if wrong := {name: len(values) for name, values in arrays.items() if len(values) != n_steps}:
        raise ValueError(f"demo has {n_steps} actions, but other lengths of {wrong}.")
    ends = np.zeros(n_steps, np.uint8)
    ends[-1] = demo.success
    for name, values in {**arrays, "rewards": ends, "dones": ends}.items():
        group.create_dataset(name, data=values)
    group.attrs["num_samples"] = n_steps
    group.attrs["init_state"] = demo.states[0]
    group.attrs["model_file"] = demo.model_file
    group.attrs[OWN] = json.dumps({"success": demo.success, **demo.record})


def write_demos(path: str | os.PathLike[str], attributes: Mapping[str, Any], demos: Iterator[RecordedDemo]) -> None:
    """
    Write a file, atomically: it is there complete, or not at all.

    :param path: it is replaced if it exists; its folder must exist.
    :param attributes: of the group ``data``; ``num_demos`` and ``total`` are added.
    :raises ValueError: if there are no demonstrations.
    """
    h5py = _import_h5py()
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        with h5py.File(name, "w") as file:
            data = file.create_group("data")
            count = total = 0
            for demo in demos:
                write_demo(data.create_group(f"demo_{count}"), demo)
                count, total = count + 1, total + len(demo.actions)
            if count == 0:
                raise ValueError("demos is empty: there is nothing to write.")
            for key, value in {**attributes, "num_demos": count, "total": total}.items():
                data.attrs[key] = value
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Demo:
    """
    A demonstration in a file: each row pairs an action with the observation before it.

    :param path: the file.
    :param name: ``demo_0``.
    :param actions: (T, 7).
    :param states: (T, n), simulator states before the actions; None if the file has none.
    :param ee_pos: (T, 3), end effector, metres, world frame.
    :param ee_ori: (T, 3), axis-angle.
    :param gripper_states: (T, 2), finger positions.
    :param joint_states: (T, 7), the arm's joints.
    :param success: whether it ended in success; files that do not say hold successes only.
    :param init_state: (n,), the simulator's state at the start, None if the file has none.
    :param facts: the task's facts by name, (T,) or (T, k); empty in files that are not ours.
    :param record: what our own files add: seed, start, noise and so on.
    :param lag: 1 if the file's observations follow its actions (LIBERO's own), so that the first action is left out; else 0.
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
        :param steps: which rows; None = all.
        :return: uint8 (T, H, W, 3), as stored: upside down.
        :raises ValueError: if the file has none of this camera.
        """
        if camera not in _IMAGES:
            raise ValueError(f"camera={camera!r}. Available: {', '.join(_IMAGES)}.")
        with _open(self.path) as file:
            group = file[f"data/{self.name}/obs"]
            if _IMAGES[camera] not in group:
                raise ValueError(f"{self.path}: {self.name} lacks obs/{_IMAGES[camera]}; it has {', '.join(group)}.")
            first, last, stride = (steps or slice(None)).indices(len(self))
            try:
                return np.asarray(group[_IMAGES[camera]][first:last:stride])
            except OSError as error:
                raise _damaged(f"{self.path}: {self.name}", f"obs/{_IMAGES[camera]}", error) from error


@dataclass(frozen=True)
class Demos(Sequence[Demo]):
    """
    The demonstrations of one file.

    :param path: the file.
    :param task: ``"libero_object-3"``, ``""`` if it belongs to no known task.
    :param instruction: the sentence.
    :param assets: ``"full"`` or ``"light"``; LIBERO's own files are full.
    :param image_shape: (H, W, 3), None without images.
    :param record: what our own files add: command, seed, noise, versions and so on.
    :param demos: in the file's order.
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


def _open(path: Path) -> Any:
    h5py = _import_h5py()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of demonstrations.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        size = path.stat().st_size
        raise ValueError(
            f"{path} is no readable HDF5 file ({size} bytes; {error}): it is empty, truncated or something else. "
            "Copy or collect it again."
        ) from error


def load_demos(
    path: str | os.PathLike[str], *, task: str | None = None, image_size: int | None = None, max_demos: int | None = None
) -> Demos:
    """
    Read a demonstration file: LIBERO's, OpenVLA's regenerated ones, or ours. Images stay in the file until asked for.

    :param path: the HDF5 file.
    :param task: the task it has to be of: ``"libero_object-3"``, ``"libero_object-8:ketchup"`` for another target, or a gym
        id; None = any.
    :param image_size: height and width that its pictures have to have; None = any.
    :param max_demos: read so many only.
    :raises FileNotFoundError: if there is no such file.
    :raises ValueError: if it is empty or truncated, lacks a key, holds another task, pictures of another size, actions outside
        the action space, or arrays whose lengths differ; if ``max_demos`` is less than 1.
    """
    if max_demos is not None and max_demos < 1:
        raise ValueError(f"max_demos must be at least 1, got {max_demos}.")
    path = Path(path)
    with _open(path) as file:
        data = file.get("data")
        if not _is_group(data):
            raise ValueError(
                f"{path} lacks the group 'data'; it holds {', '.join(file) or 'nothing'}. It is no file of demonstrations in "
                "LIBERO's layout."
            )
        names = [name for name in data if name.startswith("demo_") and name[5:].isdigit()]
        names = sorted(names, key=lambda name: int(name[5:]))[:max_demos]
        if not names:
            raise ValueError(f"{path} holds no demonstrations: there is no group data/demo_0.")
        record = _json(data.attrs.get(OWN))
        # LIBERO's own script writes this attribute and observes after the action; OpenVLA's script writes none.
        lag = 1 if not record and "macros_image_convention" in data.attrs else 0
        found = str(data.attrs.get("task", "")) or _task_from_names(path, str(data.attrs.get("bddl_file_name", "")))
        if task is not None:
            _check_task(path, found, task)
        demos = tuple(_read_demo(path, name, data[name], lag) for name in names)
        shape = _image_shape(path, data, {name: len(demo) + lag for name, demo in zip(names, demos, strict=True)})
        if image_size is not None and shape is None:
            raise ValueError(
                f"{path} holds no pictures (obs/{_IMAGES['image']}), and image_size={image_size} asks for some: choose "
                "another file, or leave image_size out."
            )
        if image_size is not None and shape is not None and shape[:2] != (image_size, image_size):
            raise ValueError(
                f"{path} holds pictures of {shape[0]} x {shape[1]} pixels, not {image_size} x {image_size}: choose image_size "
                f"accordingly or collect with --image-size {image_size}."
            )
        return Demos(path, found, _instruction(data, path, found), str(data.attrs.get("assets", "full")), shape, record, demos)


def _json(text: Any) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (TypeError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_group(item: Any) -> bool:
    return isinstance(item, _import_h5py().Group)


def _damaged(where: str, key: str, error: OSError) -> ValueError:
    return ValueError(f"{where}: {key} can't be read ({error}): the file is damaged. Copy or collect it again.")


def _instruction(data: "h5py.Group", path: Path, task: str) -> str:
    words = _json(data.attrs.get("problem_info")).get("language_instruction", "")
    text = "".join(words).strip().strip('"')  # some LIBERO releases hold a list, or quotes
    if not text and task:
        from sb3_tgrpo.envs.libero.tasks import get_task
        from sb3_tgrpo.rewards.facts.task_facts import parse_task_id

        return get_task(*parse_task_id(task)).instruction
    return text or path.stem.removesuffix("_demo").replace("_", " ")


def _task_from_names(path: Path, bddl_file: str) -> str:
    """Task id from the BDDL file's name or, failing that, the file's own (``<task name>_demo.hdf5``)."""
    own = path.stem.removesuffix("_demo")
    for name, folder in ((Path(bddl_file).stem, Path(bddl_file).parent.name), (own, path.parent.name)):
        if name and (task := _find_task(name, folder)):
            return task
    return ""


def _find_task(name: str, folder: str) -> str:
    """Task id of a BDDL file's name; the suite that ``folder`` names is looked through first."""
    from sb3_tgrpo.envs.libero.tasks import get_task
    from sb3_tgrpo.envs.registration import SUITES

    for suite in sorted(SUITES, key=lambda suite: not folder.startswith(suite)):
        for index in range(SUITES[suite]):
            try:
                if get_task(suite, index).name == name:
                    return f"{suite}-{index}"
            except ImportError:  # LIBERO, which knows the names, is not installed
                return ""
    return ""


def _check_task(path: Path, found: str, wanted: str) -> None:
    from sb3_tgrpo.rewards.facts.task_facts import parse_task_id

    name, colon, target = wanted.partition(":")
    suite, index = parse_task_id(name)
    task = f"{suite}-{index}{colon}{target}"
    if found != task:
        raise ValueError(f"{path} holds demonstrations of {found or 'an unknown task'}, not of {task}.")


def _image_shape(path: Path, data: "h5py.Group", lengths: Mapping[str, int]) -> tuple[int, ...] | None:
    """(H, W, 3) of all demonstrations' pictures, None without any; ``lengths``: steps by name."""
    key = f"obs/{_IMAGES['image']}"
    if not any(key in data[name] for name in lengths):
        return None
    shape: tuple[int, ...] = ()
    for name, n_steps in lengths.items():
        where = f"{path}: {name}"
        if key not in data[name]:
            raise ValueError(f"{where} lacks {key}, which other demonstrations of the file have.")
        images = data[name][key]
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != n_steps:
            raise ValueError(f"{where}: {key} is {images.dtype} {images.shape}, expected uint8 ({n_steps}, height, width, 3).")
        if shape and images.shape[1:] != shape:
            raise ValueError(f"{where} has pictures of shape {images.shape[1:]}, not {shape}.")
        shape = tuple(int(size) for size in images.shape[1:])
    return shape


def _rows(path: Path, name: str, group: "h5py.Group", key: str, width: int | None, n_steps: int | None) -> np.ndarray:
    where = f"{path}: {name}"
    if key not in group:
        obs = group.get("obs")
        here = [*(k for k in group if k != "obs"), *(f"obs/{k}" for k in (obs if _is_group(obs) else ()))]
        raise ValueError(f"{where} lacks {key}; it has {', '.join(here) or 'nothing'}.")
    expected = f"({n_steps or 'T'}, {width or 'n'})"
    if _is_group(group[key]) or group[key].dtype.kind not in "biuf":
        kind = "a group" if _is_group(group[key]) else f"of type {group[key].dtype}"
        raise ValueError(f"{where}: {key} is {kind}, expected numbers of shape {expected}.")
    try:
        rows = np.asarray(group[key][()], np.float64)
    except OSError as error:
        raise _damaged(where, key, error) from error
    if rows.ndim != 2 or (width is not None and rows.shape[1] != width) or (n_steps is not None and len(rows) != n_steps):
        raise ValueError(f"{where}: {key} has shape {rows.shape}, expected {expected}.")
    if not np.isfinite(rows).all():
        row = int(np.argmin(np.isfinite(rows).all(axis=1)))
        raise ValueError(f"{where}: {key} holds values that are not finite, first in row {row}.")
    return rows


def _read_facts(where: str, group: "h5py.Group", n_steps: int) -> dict[str, np.ndarray]:
    facts: dict[str, np.ndarray] = {}
    for key, values in group.get("facts", {}).items():
        if values.shape[:1] != (n_steps,):
            raise ValueError(f"{where}: facts/{key} has shape {values.shape}, expected {n_steps} rows.")
        try:
            facts[key] = np.asarray(values[()])
        except OSError as error:
            raise _damaged(where, f"facts/{key}", error) from error
    return facts


def _read_demo(path: Path, name: str, group: "h5py.Group", lag: int) -> Demo:
    if not _is_group(group):
        raise ValueError(f"{path}: {name} is no group with actions and obs/ee_pos: the file is not in LIBERO's layout.")
    actions = _rows(path, name, group, "actions", 7, None)
    n_steps = len(actions)
    if n_steps <= lag:
        raise ValueError(f"{path}: {name} has {n_steps} steps: there is nothing to learn from it.")
    outside = np.abs(actions).max(axis=1) > 1.0 + 1e-6
    if outside.any():
        step = int(np.argmax(outside))
        raise ValueError(
            f"{path}: {name} has actions outside the action space [-1, 1], first in row {step}: {actions[step].tolist()}. "
            "LIBERO's actions are normalised; undo a scaling or drop the demonstration."
        )
    low = {key: _rows(path, name, group, f"obs/{key}", width, n_steps)[: n_steps - lag] for key, width in _LOW_DIM.items()}
    states = _rows(path, name, group, "states", None, n_steps)[lag:] if "states" in group else None
    init_state = np.asarray(group.attrs["init_state"]) if "init_state" in group.attrs else None
    record = _json(group.attrs.get(OWN))
    facts = {key: values[: n_steps - lag] for key, values in _read_facts(f"{path}: {name}", group, n_steps).items()}
    return Demo(
        path=path,
        name=name,
        actions=actions[lag:],
        states=states,
        success=bool(record.get("success", True)),
        init_state=states[0] if init_state is None and states is not None else init_state,
        facts=facts,
        record=record,
        lag=lag,
        **low,
    )
