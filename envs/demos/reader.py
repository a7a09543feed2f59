"""
The one reader of demonstration files, for :func:`~sb3_tgrpo.envs.demos.files.load_demos` and for fine-tuning.

What a file states about itself (task, success, alignment, robot, controller, split) is believed, and checked where two
statements or two arrays can contradict each other.
"""

import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from sb3_tgrpo.envs.libero.target_variants import target_variant
from sb3_tgrpo.envs.libero.tasks import LiberoTask, bddl_language, find_task, get_task, instruction_of, same_words
from sb3_tgrpo.rewards.facts.task_name import TaskName

logger = logging.getLogger(__name__)

OWN = "sb3_tgrpo"
"""Attribute with what LIBERO's layout has no place for, as JSON."""
NOOP_NORM = 1e-4
"""A motion smaller than this is none, as in OpenVLA's preparation of LIBERO's data."""
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError)
"""What h5py raises on bytes that are not as they should be, by where they are."""
_IN_USE = (11, 35, 37)
"""Error numbers of a file that another process has locked, on Linux and macOS, and of a file system without locks."""
_CONVENTION: dict[str, Any] = {
    "control_freq": 20, "type": "OSC_POSE", "control_delta": True, "input_type": "delta", "input_max": 1, "input_min": -1,
    "output_max": [0.05] * 3 + [0.5] * 3, "output_min": [-0.05] * 3 + [-0.5] * 3, "kp": 150, "damping_ratio": 1,
    "impedance_mode": "fixed",
}  # fmt: skip
"""LIBERO's control frequency and controller, by robosuite's names in the attribute ``env_args``."""
_SETTLED = 10
"""Control steps after which the fingers have followed a command."""
_WIDE = 0.075
"""Fingers further apart than this, metres, hold nothing of LIBERO's."""


class DemoFileError(ValueError):
    """A file that does not hold what it should, with the remedy."""


def import_h5py() -> Any:
    """The module h5py, or an ``ImportError`` with the remedy."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError('Demonstration files need h5py: pip install "sb3-tgrpo[libero]".') from error
    return h5py


@contextmanager
def open_demos(path: str | os.PathLike[str]) -> Iterator["DemoFile"]:
    """
    Open a demonstration file for reading.

    :param path: HDF5 file in LIBERO's layout.
    :raises FileNotFoundError: If there is no such file.
    :raises OSError: If the system refuses to read it: another process writes it, or permission is missing.
    :raises ValueError: If it is empty, truncated, damaged or of another layout, on opening or on reading inside the block.
    """
    path, h5py = Path(path), import_h5py()
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of demonstrations.")
    try:
        with h5py.File(path, "r") as file:
            yield DemoFile(path, file)
    except DemoFileError:
        raise
    except _DAMAGE as error:
        number = getattr(error, "errno", None)
        if number is None:
            raise DemoFileError(
                f"{path} can't be read ({path.stat().st_size} bytes; {error}): it is empty, truncated, damaged or no HDF5 "
                "file. Copy or collect it again."
            ) from error
        if number in _IN_USE:
            remedy = "wait until the process that writes it has ended; where the file system has no locks, set "
            remedy += "HDF5_USE_FILE_LOCKING=FALSE"
        else:
            remedy = "change its permissions" if number == 13 else "try again"
        raise OSError(number, f"{path} can't be opened now ({os.strerror(number)}), and may be sound: {remedy}.") from error


def moving_steps(actions: np.ndarray) -> np.ndarray:
    """Indices of the steps that OpenVLA's preparation of LIBERO's data keeps: they move, or change the gripper's command."""
    moves = np.linalg.norm(actions[:, :-1], axis=1) >= NOOP_NORM
    changes = np.diff(actions[:, -1], prepend=actions[:1, -1]) != 0  # what is left out commands what the last kept step does
    return np.flatnonzero(moves | (changes & np.logical_or.accumulate(moves)))


def libero_task(name: str) -> LiberoTask:
    """
    The task of a demonstration file.

    :param name: ``libero_object-8``, its Gymnasium id, or ``libero_object-8:ketchup`` for another target.
    :raises ValueError: If there is no such task or target.
    """
    plain, _, target = name.partition(":")
    task = get_task(*TaskName.parse(plain))
    return target_variant(task, target) if target else task


class DemoFile:
    """
    An open file. Every method raises :class:`DemoFileError` where the file is not as it should be. In all of them ``name`` is
    a demonstration's name, such as ``demo_0``, and ``key`` a path below it, such as ``obs/ee_pos``.

    :param path: Path, for messages.
    :param file: Open ``h5py.File``.
    """

    def __init__(self, path: Path, file: Any) -> None:
        self.path, self._h5py = path, import_h5py()
        self.data = file.get("data")
        if not self._is_group(self.data):
            held = ", ".join(sorted(file)) or "nothing"
            raise DemoFileError(f"{path} lacks the group 'data'; it holds {held}. It is not in LIBERO's layout.")
        self._mask = file.get("mask")
        self.record = json_object(self.data.attrs.get(OWN))

    def error(self, text: str) -> DemoFileError:
        """An error that names the file; ``text`` is the problem and its remedy."""
        return DemoFileError(f"{self.path}: {text}")

    def text(self, name: str, default: str = "") -> str:
        """An attribute of ``data`` that is text, of fixed length (bytes) or not."""
        value = self.data.attrs.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    # ------------------------------------------------------------------ the whole file

    @cached_property
    def names(self) -> list[str]:
        """Names of the demonstrations, in their own order."""
        found = [name for name in self.data if name.startswith("demo_") and name[5:].isdecimal()]
        if not found:
            raise DemoFileError(f"{self.path} holds no demonstrations: there is no group data/demo_0.")
        stated = self.data.attrs.get("num_demos", len(found))
        if stated != len(found):
            logger.warning("%s: num_demos=%s, but it holds %d demonstrations.", self.path, stated, len(found))
        return sorted(found, key=lambda name: int(name[5:]))

    @cached_property
    def held_out(self) -> set[str]:
        """Demonstrations that the file keeps for validation or testing (robomimic's ``mask/valid`` and ``mask/test``)."""
        masks = [self._mask[key] for key in ("valid", "test") if key in self._mask] if self._is_group(self._mask) else []
        return {name.decode() if isinstance(name, bytes) else str(name) for mask in masks for name in mask[()]}

    @property
    def assets(self) -> Literal["full", "light"]:
        """``"full"`` or ``"light"``; files that do not state it, such as LIBERO's own, are full."""
        shown = self.text("assets", "full")
        if shown not in ("full", "light"):
            raise self.error(f"attribute assets of 'data' is {shown!r}, not 'full' or 'light': pass assets= (--assets).")
        return cast(Literal["full", "light"], shown)

    @property
    def suite(self) -> str | None:
        """The suite, from our own attribute, the task, or the folder of the BDDL file that LIBERO's files name."""
        folder = Path(self.text("bddl_file_name")).parent.name
        known = self.text("suite") or (folder if folder.startswith("libero_") else "")
        return known or self.task.partition("-")[0] or None

    @cached_property
    def task(self) -> str:
        """``libero_object-3``, or ``libero_object-3:ketchup``; empty if the file is of no known task."""
        if stated := self.text("task"):
            return stated
        bddl, content = Path(self.text("bddl_file_name")), self.text("bddl_file_content")
        own = self.path.stem.removesuffix("_demo")
        try:
            task = find_task(bddl.stem, content, bddl.parent.name) or find_task(own, content, self.path.parent.name)
        except ImportError:
            logger.warning("%s: LIBERO is not installed: the instruction is not compared with the task's own.", self.path)
            return ""
        return "" if task is None else f"{task.suite}-{task.index}"

    @cached_property
    def instruction(self) -> str:
        """
        What the robot was told. For a known task this is the sentence that its environment shows, which differs from what
        LIBERO's collector writes ("pick the ..." for "pick up the ..."). Empty if the file states none.
        """
        stated, told = self._stated_instruction(), bddl_language(self.text("bddl_file_content"))
        if self.task and (sentence := self._sentence_of_task()):
            task = libero_task(self.task)
            if stated and not same_words(stated, sentence) and not same_words(stated, bddl_language(task.read_bddl())):
                logger.warning("%s states %r; %s is %r, which is used.", self.path, stated, self.task, sentence)
            return sentence
        # OpenVLA's regenerated files hold no attributes, but are named after the task, as LIBERO's own are.
        named = instruction_of(self.path.stem.removesuffix("_demo")) if self.path.stem.endswith("_demo") else ""
        found = [text for text in (stated, told, named) if text]
        if any(not same_words(text, found[0]) for text in found[1:]):
            logger.warning("%s states several instructions, %s; the first is used.", self.path, " and ".join(map(repr, found)))
        return found[0] if found else ""

    def _sentence_of_task(self) -> str:
        try:
            return libero_task(self.task).instruction
        except (ImportError, ValueError):  # without LIBERO, or a task of the user's own
            return ""

    def _stated_instruction(self) -> str:
        words = json_object(self.data.attrs.get("problem_info")).get("language_instruction")
        parts = words if isinstance(words, list) else [words if words is not None else ""]
        if not all(isinstance(part, str) for part in parts):
            raise self.error(
                f"attribute problem_info of 'data' has language_instruction={words!r}: it must be a string. Fix the attribute."
            )
        # LIBERO's own files hold it as a list of characters in some releases, and quoted in others.
        return "".join(parts).strip().strip('"')

    def check_convention(self) -> None:
        """Refuse another robot, controller, control frequency or picture order than LIBERO's, as far as the file states it."""
        kwargs = _mapping(json_object(self.data.attrs.get("env_args")).get("env_kwargs"))
        controller = _mapping(kwargs.get("controller_configs"))
        controller = _mapping(_mapping(controller.get("body_parts")).get("right")) or controller  # robosuite 1.5
        stated = {**kwargs, **controller}
        wrong = {name for name, own in _CONVENTION.items() if stated.get(name) is not None and not _equal(stated[name], own)}
        stated |= {"macros_image_convention": self.text("macros_image_convention", "opengl")}
        robots = stated.get("robots") or []
        if not all("Panda" in str(robot) for robot in ([robots] if isinstance(robots, str) else robots)):
            wrong.add("robots")
        if stated["macros_image_convention"] != "opengl":
            wrong.add("macros_image_convention")
        if wrong:
            own = {**_CONVENTION, "robots": ["Panda"], "macros_image_convention": "opengl"}
            pairs = ", ".join(f"{name}={stated[name]!r} (LIBERO: {own[name]!r})" for name in sorted(wrong))
            raise self.error(f"recorded with {pairs}. Its actions or pictures mean something else: replay it in LIBERO.")

    # ------------------------------------------------------------------ one demonstration

    def group(self, name: str) -> Any:
        """The HDF5 group of a demonstration."""
        item = self.data.get(name)
        if item is None:
            raise self.error(f"{name} can't be opened: it is a link to something that is not there, or damaged. Leave it out.")
        if not self._is_group(item):
            raise self.error(f"{name} is no group with actions and obs: the file is not in LIBERO's layout.")
        return item

    def array(self, name: str, key: str) -> Any:
        """An HDF5 data set of a demonstration, not yet read."""
        group = self.group(name)
        if key not in group:
            obs = group.get("obs")
            here = [*(k for k in group if k != "obs"), *(f"obs/{k}" for k in (obs if self._is_group(obs) else ()))]
            raise self.error(f"{name} lacks {key}; it has {', '.join(here) or 'nothing'}.")
        item = group[key]
        if not isinstance(item, self._h5py.Dataset):
            raise self.error(f"{name}: {key} is no array, but {item}.")
        return item

    def rows(self, name: str, key: str, width: int | None = None, n_steps: int | None = None) -> np.ndarray:
        """
        Numbers of a demonstration, one row a step.

        :param width: Number of columns; None for any.
        :param n_steps: Number of rows; None for any but 0.
        :return: (T, width) float64, finite.
        """
        array, expected = self.array(name, key), f"({n_steps or 'T'}, {width or 'n'})"
        if array.dtype.kind not in "biuf":
            raise self.error(f"{name}: {key} is of type {array.dtype}, expected numbers of shape {expected}.")
        values = np.asarray(self.read(name, array), np.float64)
        wrong = values.ndim != 2 or not len(values) or (n_steps is not None and len(values) != n_steps)
        if wrong or (width is not None and values.shape[1] != width):
            raise self.error(f"{name}: {key} has shape {values.shape}, expected {expected}.")
        if not np.isfinite(values).all():
            raise self.error(f"{name}: {key} holds values that are not finite, first in row {_first(~np.isfinite(values))}.")
        return values

    def read(self, name: str, array: Any, rows: Any = ()) -> np.ndarray:
        """Content of a data set of the demonstration, all of it or the rows of an index."""
        try:
            return np.asarray(array[rows])
        except OSError as error:
            key = array.name.partition(f"{name}/")[2]
            raise self.error(
                f"{name}: {key} can't be read ({error}): the file is damaged. Copy or collect it again."
            ) from error

    def images(self, name: str, key: str, n_steps: int) -> Any:
        """The data set of a camera's pictures, one a step, not yet read."""
        images = self.array(name, key)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or len(images) != n_steps:
            expected = f"expected uint8 ({n_steps}, height, width, 3)"
            raise self.error(f"{name}: {key} is {images.dtype} {images.shape}, {expected}.")
        return images

    def check_length(self, name: str, n_steps: int) -> None:
        """Compare the number of actions with the length that the demonstration states."""
        stated = self.group(name).attrs.get("num_samples", n_steps)
        if stated != n_steps:
            raise self.error(f"{name} has {n_steps} actions, but num_samples={stated}: the file is damaged. Copy it again.")

    def check_actions(self, name: str, actions: np.ndarray) -> None:
        """Refuse actions of another space or gripper convention than LIBERO's."""
        if actions.shape[1] != 7:
            raise self.error(
                f"{name} has actions of {actions.shape[1]} dimensions, LIBERO's have 7: this is a dataset for another action "
                "space. Pass gripper='none' (--gripper none) for it."
            )
        outside = np.abs(actions) > 1 + 1e-6
        if outside.any():
            step = _first(outside)
            raise self.error(
                f"{name} has actions outside LIBERO's [-1, 1], first in row {step}: {actions[step].tolist()}. This is a "
                "dataset for another action space: pass gripper='none' (--gripper none), or undo a scaling."
            )
        command = actions[:, 6]
        if command.min() >= 0 and command.min() < 0.5:
            raise self.error(
                f"{name} has gripper commands from {command.min():g} to {command.max():g}; LIBERO's are -1 (open) and 1 "
                "(close). Convert them: 1 - 2 * command, where 1 is open and 0 is closed."
            )
        self._check_fingers(name, command)

    def _check_fingers(self, name: str, command: np.ndarray) -> None:
        """The fingers follow the commands: they are closer together where a command to close has had its time."""
        if "obs/gripper_states" not in self.group(name):
            return
        fingers = self.rows(name, "obs/gripper_states", 2, len(command))
        opening = fingers[:, 0] - fingers[:, 1]
        if opening.min() < -0.01 or opening.max() > 0.1:  # not the distance of a Panda's fingers
            return
        since = np.arange(len(command)) - np.maximum.accumulate(
            np.where(np.diff(np.sign(command), prepend=0) != 0, np.arange(len(command)), 0)
        )
        closed, opened = (opening[(since >= _SETTLED) & (command * sign > 0)] for sign in (1, -1))
        limit = np.median(opened) + 0.01 if len(opened) else _WIDE
        if len(closed) and np.median(closed) > limit:
            raise self.error(
                f"{name}: the fingers are {np.median(closed):.3f} m apart where the gripper's command is positive, which "
                "closes it in LIBERO: the commands are of another convention. Change their sign (-1 open, 1 close)."
            )

    def succeeded(self, name: str) -> bool:
        """Whether a demonstration succeeds by everything that it states: our attribute, and ``rewards`` or ``dones``."""
        group = self.group(name)
        ends = [np.asarray(self.read(name, self.array(name, key))) for key in ("rewards", "dones") if key in group]
        return bool(self.record_of(name).get("success", True)) and (not ends or any(array.any() for array in ends))

    def record_of(self, name: str) -> dict[str, Any]:
        """What our own files add to a demonstration."""
        return json_object(self.group(name).attrs.get(OWN))

    def lag(self, name: str) -> int:
        """
        1 if row t of the observations was taken after action t, as in LIBERO's own files; 0 if before.

        The arm's joints in the observations and in ``states``, which are from before the action, decide where both are
        there; else LIBERO's attribute ``macros_image_convention``, which OpenVLA's preparation does not write.
        """
        own = OWN in self.data.attrs
        stated = int("macros_image_convention" in self.data.attrs and not own)
        if own and "observation" in self.record:
            stated = int(str(self.record["observation"]).startswith("after"))
        seen = self._lag_of_arrays(name)
        if seen is not None and seen != stated:
            words = ("before", "after")
            logger.warning(
                "%s: %s seems observed %s each action by the file's attributes, and %s it by its arrays, which are believed.",
                self.path, name, words[stated], words[seen],
            )  # fmt: skip
        return stated if seen is None else seen

    def _lag_of_arrays(self, name: str) -> int | None:
        group = self.group(name)
        if "states" not in group or "obs/joint_states" not in group:
            return None
        joints, states = self.rows(name, "obs/joint_states", 7), self.rows(name, "states")
        if len(states) != len(joints) or len(states) < 3 or states.shape[1] < 8:
            return None
        arm = states[:, 1:8]  # after the time, the simulator's positions begin with the arm's
        off = [float(np.abs(joints[:-1] - arm[:-1]).mean()), float(np.abs(joints[:-1] - arm[1:]).mean())]
        return int(np.argmin(off)) if min(off) < min(0.01, 0.3 * max(off)) else None

    def _is_group(self, item: Any) -> bool:
        return isinstance(item, self._h5py.Group)


def json_object(text: Any) -> dict[str, Any]:
    """The JSON object in a text, such as an attribute of a file; empty if there is none."""
    try:
        return _mapping(json.loads(text))
    except (TypeError, ValueError):
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _equal(first: Any, second: Any) -> bool:
    try:
        return bool(np.allclose(first, second))
    except (TypeError, ValueError):  # text, or another number of values
        return bool(first == second)


def _first(bad: np.ndarray) -> int:
    return int(np.flatnonzero(bad.any(axis=1))[0])
