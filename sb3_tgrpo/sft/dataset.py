"""Demonstrations for supervised fine-tuning: HDF5 files in LIBERO's layout, and the action statistics computed from them."""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from sb3_tgrpo.openvla.actions import libero_gripper_inverse

logger = logging.getLogger(__name__)

Gripper = Literal["libero", "none"]

_INSTRUCTION_BYTES = 256
_NOOP_NORM = 1e-4
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, ValueError)
"""What h5py raises on bytes that are not as they should be, by where they are."""
_SAME_CONSTANT = 1e-6  # float32 files and float64 statistics round differently


@dataclass(frozen=True)
class Demonstration:
    """
    One recorded episode.

    :param file: The HDF5 file.
    :param name: Its group in the file, such as ``demo_0``.
    :param instruction: What the robot was told to do.
    :param rows: Rows of the images used, ascending.
    """

    file: Path
    name: str
    instruction: str
    rows: np.ndarray

    @property
    def n_frames(self) -> int:
        return len(self.rows)


class DemonstrationDataset:
    """
    Frames and actions of demonstrations in LIBERO's HDF5 layout: ``data/demo_i/actions`` and
    ``data/demo_i/obs/agentview_rgb``, the instruction in ``data``'s attribute ``problem_info`` or in the file's name
    (``open_it_demo.hdf5``). Actions are read at once, images when they are asked for. Demonstrations that the file says were
    unsuccessful are left out. Each action goes with the image before it: LIBERO's own files, which observe after the action,
    lose the first action of each demonstration and the last image.

    :param files: HDF5 files; several tasks are several files.
    :param name: Name of the action statistics in the checkpoint (``unnorm_key``). None: the suite, if the files tell, else
        the first file's stem.
    :param assets: LIBERO assets the images show, ``"full"`` or ``"light"``. None: what the files say; files that do not
        say, such as LIBERO's own, are ``"full"``.
    :param instruction: Use this instead of the files' instruction.
    :param image_key: Camera below ``obs``.
    :param action_key: Data set below ``demo_i`` with the actions to imitate.
    :param gripper: ``"libero"`` for LIBERO's action space: last dimension -1 open, +1 closed, all within [-1, 1].
        ``"none"`` leaves all dimensions alike.
    :param max_demonstrations: Use the first so many of each file, unsuccessful ones not counted.
    :param drop_noops: Leave out steps that neither move the arm (norm below 1e-4) nor change the gripper's command, as
        OpenVLA's LIBERO data do.
    :param min_range: See :func:`action_statistics`.
    :param symmetric: See :func:`action_statistics`.
    :raises ValueError: If a file is no such HDF5 file, is empty or damaged, lacks a key, holds actions of another space, or
        unsuccessful demonstrations only.
    """

    def __init__(
        self,
        files: str | Path | Sequence[str | Path],
        *,
        name: str | None = None,
        assets: Literal["full", "light"] | None = None,
        instruction: str | None = None,
        image_key: str = "agentview_rgb",
        action_key: str = "actions",
        gripper: Gripper = "libero",
        max_demonstrations: int | None = None,
        drop_noops: bool = False,
        min_range: float = 0.0,
        symmetric: bool = False,
    ) -> None:
        if gripper not in ("libero", "none"):
            raise ValueError(f"gripper must be 'libero' or 'none', got {gripper!r}.")
        if assets not in (None, "full", "light"):
            raise ValueError(f"assets must be 'full', 'light' or None, got {assets!r}.")
        if max_demonstrations is not None and max_demonstrations < 1:
            raise ValueError(f"max_demonstrations must be positive, got {max_demonstrations}.")
        paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
        if not paths:
            raise ValueError("files is empty: give at least one HDF5 file of demonstrations.")
        if len({path.resolve() for path in paths}) < len(paths):
            raise ValueError(f"files names a file twice: {', '.join(map(str, paths))}.")
        self.gripper: Gripper = gripper
        self.image_key, self.action_key = f"obs/{image_key}", action_key
        self.demonstrations: list[Demonstration] = []
        self.image_shape: tuple[int, int, int] = (0, 0, 0)
        actions: list[np.ndarray] = []
        digest = hashlib.sha256()
        said: set[tuple[str, str | None]] = set()
        for path in paths:
            with _open(path) as file:
                data = _group(file, "data", path)
                said.add((assets or _assets(data, path), _suite(data)))
                lag = _observation_lag(data)
                words = instruction if instruction is not None else _instruction(data, path)
                for demo in _successful(data, _demonstration_names(data, path), path)[:max_demonstrations]:
                    taken = self._read_actions(data, demo, path)
                    self._check_images(data, demo, path, len(taken))
                    taken = taken[lag:]
                    rows = _moving(taken) if drop_noops else np.arange(len(taken))
                    if not len(rows):
                        raise ValueError(f"{path}: data/{demo} holds no step to imitate: leave it out.")
                    self.demonstrations.append(Demonstration(path, demo, words, rows))
                    actions.append(taken[rows])
                    _update(digest, words, taken[rows], data[f"{demo}/{self.image_key}"], rows)
        widths = {array.shape[1] for array in actions}
        if len(widths) > 1:
            raise ValueError(f"The files hold actions of different lengths {sorted(widths)}: train on one robot at a time.")
        self.actions = np.concatenate(actions)
        self.fingerprint = digest.hexdigest()
        self.assets: str = _one({shown for shown, _ in said}, "assets")
        suites = {suite for _, suite in said}
        self.suite: str | None = suites.pop() if len(suites) == 1 else None
        self.name = name or self.suite or paths[0].stem
        lengths = [demonstration.n_frames for demonstration in self.demonstrations]
        self._begins = np.concatenate([[0], np.cumsum(lengths)])
        self.statistics = action_statistics(self.actions, self.gripper, len(lengths), min_range, symmetric)
        self._handle: tuple[Path, Any] | None = None

    def __len__(self) -> int:
        return len(self.actions)

    def __repr__(self) -> str:
        return (
            f"DemonstrationDataset({self.name!r}: {len(self.demonstrations)} demonstrations, {len(self)} frames of "
            f"{self.image_shape[0]}x{self.image_shape[1]}, {len(self.instructions)} instructions, {self.assets} assets)"
        )

    # ------------------------------------------------------------------ content

    @property
    def instructions(self) -> list[str]:
        """Distinct instructions, in order of appearance."""
        return list(dict.fromkeys(demonstration.instruction for demonstration in self.demonstrations))

    @property
    def observation_space(self) -> spaces.Dict:
        """Space of the observations a policy trained on this data reads."""
        return spaces.Dict(
            {
                "image": spaces.Box(0, 255, self.image_shape, np.uint8),
                "instruction": spaces.Box(0, 255, (_INSTRUCTION_BYTES,), np.uint8),
            }
        )

    @property
    def action_space(self) -> spaces.Box:
        """LIBERO's action space, or the range of the data where it is another robot's."""
        if self.gripper == "libero":
            return spaces.Box(-1.0, 1.0, (self.actions.shape[1],), np.float32)
        low, high = self.actions.min(axis=0), self.actions.max(axis=0)
        # Outwards to the next float32: rounding must not clip a recorded action, and a Box needs low < high.
        low, high = np.nextafter(low.astype(np.float32), -np.inf), np.nextafter(high.astype(np.float32), np.inf)
        return spaces.Box(low, high, dtype=np.float32)

    def frames_of(self, demonstration: int) -> np.ndarray:
        """Indices, within the dataset, of one demonstration's frames."""
        return np.arange(self._begins[demonstration], self._begins[demonstration + 1])

    def demonstration_of(self, frames: np.ndarray) -> np.ndarray:
        """Index of the demonstration each frame belongs to."""
        return np.searchsorted(self._begins, frames, side="right") - 1

    def instruction_of(self, frames: np.ndarray) -> list[str]:
        """The instruction of each frame."""
        return [self.demonstrations[k].instruction for k in self.demonstration_of(frames)]

    def images(self, frames: np.ndarray) -> np.ndarray:
        """
        Read images.

        :param frames: Indices within the dataset, any order, repeats allowed.
        :return: ``(len(frames), height, width, 3)`` uint8, the simulator's raw frames.
        """
        frames = np.asarray(frames)
        result = np.empty((len(frames), *self.image_shape), np.uint8)
        owners = self.demonstration_of(frames)
        for owner in np.unique(owners):
            demonstration = self.demonstrations[owner]
            where = np.flatnonzero(owners == owner)
            rows, inverse = np.unique(demonstration.rows[frames[where] - self._begins[owner]], return_inverse=True)
            stored = self._file(demonstration.file)[f"data/{demonstration.name}/{self.image_key}"]
            result[where] = stored[rows][inverse]
        return result

    def describe(self) -> dict[str, Any]:
        """What a checkpoint records about the data it was trained on."""
        files = {demonstration.file: 0 for demonstration in self.demonstrations}
        for demonstration in self.demonstrations:
            files[demonstration.file] += 1
        return {
            "files": {path.name: count for path, count in files.items()},
            "n_demonstrations": len(self.demonstrations),
            "n_frames": len(self),
            "image_size": list(self.image_shape[:2]),
            "instructions": self.instructions,
            "sha256": self.fingerprint,
        }

    def split(self, validation_fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """
        Divide the demonstrations, those of each instruction alike, so that no episode is in both parts.

        :param validation_fraction: Share for validation, 0 <= fraction < 1; 0 for none.
        :param seed: Of the choice.
        :return: Demonstration indices for training and for validation, ascending.
        :raises ValueError: If a part would be empty.
        """
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction must be at least 0 and less than 1, got {validation_fraction}.")
        rng = np.random.default_rng([seed, 0x5B117])
        held_out: list[int] = []
        for instruction in self.instructions:
            of_it = [k for k, demo in enumerate(self.demonstrations) if demo.instruction == instruction]
            count = round(validation_fraction * len(of_it))
            if validation_fraction > 0 and count == 0 and len(of_it) > 1:
                count = 1
            if validation_fraction > 0 and not 0 < count < len(of_it):
                raise ValueError(
                    f"validation_fraction={validation_fraction} of {len(of_it)} demonstration(s) of {instruction!r} leaves an "
                    "empty split: add demonstrations, change the fraction, or pass 0 for no validation."
                )
            held_out += rng.permutation(of_it)[:count].tolist()
        train = [k for k in range(len(self.demonstrations)) if k not in set(held_out)]
        return np.array(train), np.array(sorted(held_out), dtype=int)

    # ------------------------------------------------------------------ reading

    def _file(self, path: Path) -> Any:
        """An open handle, kept for the next call."""
        if self._handle is None or self._handle[0] != path:
            import h5py

            self.close()
            self._handle = (path, h5py.File(path, "r"))
        return self._handle[1]

    def close(self) -> None:
        """Close the file that is open, if any; reading opens it again."""
        if self._handle is not None:
            self._handle[1].close()
            self._handle = None

    def _read_actions(self, data: Any, demo: str, path: Path) -> np.ndarray:
        for key in (self.action_key, self.image_key):
            if key not in data[demo]:
                held = ", ".join(sorted(data[demo])) or "nothing"
                cameras = ", ".join(sorted(data[demo]["obs"])) if _is_group(data[demo].get("obs")) else "none"
                raise ValueError(f"{path}: data/{demo} lacks {key!r} (it holds {held}; observations: {cameras}).")
        where = f"{path}: data/{demo}/{self.action_key}"
        if not _is_array(data[demo][self.action_key]) or data[demo][self.action_key].dtype.kind not in "biuf":
            raise ValueError(f"{where} must be numbers, (steps, dimensions), got {data[demo][self.action_key]}.")
        actions = np.asarray(data[demo][self.action_key], dtype=np.float64)
        if actions.ndim != 2 or not len(actions):
            raise ValueError(f"{where} must be (steps, dimensions) with at least one step, got shape {actions.shape}.")
        if not np.isfinite(actions).all():
            raise ValueError(f"{where} holds values that are not finite, first at step {_first(~np.isfinite(actions))}.")
        if self.gripper == "libero":
            if actions.shape[1] != 7:
                raise ValueError(
                    f"{where} has {actions.shape[1]} dimensions, LIBERO's actions have 7: this is a dataset for another "
                    "action space. Pass gripper='none' (--gripper none) for it."
                )
            if np.abs(actions).max() > 1 + 1e-6:
                raise ValueError(
                    f"{where} has values outside LIBERO's [-1, 1], first at step {_first(np.abs(actions) > 1 + 1e-6)} "
                    f"(largest {np.abs(actions).max():.3g}): this is a dataset for another action space. Pass gripper='none' "
                    "(--gripper none), or undo a scaling."
                )
        return actions

    def _check_images(self, data: Any, demo: str, path: Path, n_steps: int) -> None:
        images = data[demo][self.image_key]
        where = f"{path}: data/{demo}/{self.image_key}"
        if not _is_array(images):
            raise ValueError(f"{where} must be uint8 (steps, height, width, 3), got {images}.")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"{where} must be uint8 (steps, height, width, 3), got {images.dtype} {images.shape}.")
        if len(images) != n_steps:
            raise ValueError(f"{where} has {len(images)} frames for {n_steps} actions: the file is damaged, collect it again.")
        if self.image_shape == (0, 0, 0):
            self.image_shape = tuple(images.shape[1:])
        elif self.image_shape != images.shape[1:]:
            raise ValueError(f"{where}: images of {images.shape[1:3]}, those before are {self.image_shape[:2]}: use one size.")


def action_statistics(
    actions: np.ndarray,
    gripper: Gripper = "libero",
    n_trajectories: int | None = None,
    min_range: float = 0.0,
    symmetric: bool = False,
) -> dict[str, Any]:
    """
    Statistics of a dataset as OpenVLA's ``dataset_statistics.json`` holds them.

    A dimension that never changes gets ``q01 == q99``, which decodes to exactly that value. One that changes in less than
    1 % of the steps has equal quantiles as well; its minimum and maximum stand in for them, lest it be frozen.

    :param actions: ``(steps, K)`` in the environment's convention.
    :param gripper: ``"libero"``: the last dimension is LIBERO's gripper, stored as 1 open, 0 closed, and not scaled.
    :param n_trajectories: Stored along.
    :param min_range: A dimension with ``q99 - q01`` below this counts as constant, at 0 if 0 is in between, else at its
        median: a scripted controller's corrections of thousandths of a radian are noise that 256 bins would be spent on. In
        action units.
    :param symmetric: Widen every range to be symmetric about 0, so that the middle bin decodes to exactly 0: where q01 and q99
        differ in size, a policy that wants to stand still drifts.
    :return: ``{"action": {mask, max, mean, min, q01, q99, std}, "num_transitions": ..., "num_trajectories": ...}``.
    :raises ValueError: If no dimension ever changes.
    """
    values = np.asarray(actions, dtype=np.float64)
    if gripper == "libero":
        values = libero_gripper_inverse(values)
    low, high = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    least, most = values.min(axis=0), values.max(axis=0)
    constant = least == most
    if min_range < 0:
        raise ValueError(f"min_range must be at least 0, got {min_range}.")
    if constant.all():
        raise ValueError("The actions never change in any dimension (all ranges are zero): there is nothing to imitate.")
    rare = (low == high) & ~constant
    low, high = np.where(rare | constant, least, low), np.where(rare | constant, most, high)
    narrow = ~constant & (high - low < min_range)
    if gripper == "libero":
        narrow[-1] = False
    # Exactly zero where that is possible: robosuite's controller holds the orientation only at a rotation of exactly zero.
    frozen = np.where((low <= 0) & (0 <= high), 0.0, np.median(values, axis=0))
    low, high = np.where(narrow, frozen, low), np.where(narrow, frozen, high)
    mask = np.ones(values.shape[1], dtype=bool)
    if gripper == "libero":
        mask[-1] = False
    if symmetric:
        widest = np.maximum(np.abs(low), np.abs(high))
        scaled = mask & (low < high)
        low, high = np.where(scaled, -widest, low), np.where(scaled, widest, high)
    mean = np.where(constant, least, values.mean(axis=0))
    std = np.where(constant, 0.0, values.std(axis=0))
    columns = {"mask": mask, "max": most, "mean": mean, "min": least, "q01": low, "q99": high, "std": std}
    statistics: dict[str, Any] = {"action": {key: column.tolist() for key, column in columns.items()}}
    statistics["num_transitions"] = len(values)
    if n_trajectories is not None:
        statistics["num_trajectories"] = n_trajectories
    return statistics


def check_range(statistics: dict[str, Any], actions: np.ndarray, gripper: Gripper, source: str) -> None:
    """
    :param statistics: One dataset's entry, not necessarily computed from ``actions``.
    :raises ValueError: If they have another number of dimensions, or hold a constant where ``actions`` vary or have another.
    """
    bounds = statistics["action"]
    values = libero_gripper_inverse(actions) if gripper == "libero" else actions
    if len(bounds["q01"]) != values.shape[1]:
        raise ValueError(f"{source} has statistics for {len(bounds['q01'])} dimensions, the actions have {values.shape[1]}.")
    flat = np.asarray(bounds["q01"]) == np.asarray(bounds["q99"])
    flat &= np.asarray(bounds.get("mask", np.ones(len(flat))), dtype=bool)
    lost = np.flatnonzero(flat & (np.ptp(values, axis=0) > 0)).tolist()
    if lost:
        raise ValueError(
            f"{source} has statistics of zero range (q01 == q99) for dimension(s) {lost}, which vary in the demonstrations: "
            "they could not be imitated. Use statistics='data'."
        )
    held = np.asarray(bounds["q01"], dtype=np.float64)
    other = np.flatnonzero(flat & (np.abs(values[0] - held) > _SAME_CONSTANT))
    if len(other):
        raise ValueError(
            f"{source} has statistics that hold dimension(s) {other.tolist()} at {held[other].tolist()}, the demonstrations "
            f"have {values[0, other].tolist()} there: they could not be imitated. Use statistics='data'."
        )


# ---------------------------------------------------------------------- HDF5


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError('Reading demonstrations needs h5py: pip install "sb3-tgrpo[libero]"') from error
    if not path.is_file():
        raise ValueError(f"{path} does not exist: give an HDF5 file of demonstrations.")
    try:
        file = h5py.File(path, "r")
    except _DAMAGE as error:
        raise ValueError(f"{path} is no HDF5 file, or a truncated one ({error}). Copy or collect it again.") from error
    with file:
        try:
            yield file
        except _DAMAGE as error:
            if isinstance(error, ValueError) and str(path) in str(error):
                raise  # one of ours
            raise ValueError(f"{path} can't be read to its end ({error}): it is damaged. Copy or collect it again.") from error


def _is_group(item: Any) -> bool:
    import h5py

    return isinstance(item, h5py.Group)


def _is_array(item: Any) -> bool:
    import h5py

    return isinstance(item, h5py.Dataset)


def _group(file: Any, name: str, path: Path) -> Any:
    if not _is_group(file.get(name)):
        held = ", ".join(sorted(file)) or "nothing"
        raise ValueError(f"{path} has no group {name!r} (it holds {held}): it is not in LIBERO's layout.")
    return file[name]


def _demonstration_names(data: Any, path: Path) -> list[str]:
    names = [name for name in data if name.startswith("demo_") and name[5:].isdecimal()]
    if not names:
        raise ValueError(f"{path} holds no demonstrations (no group data/demo_0).")
    for name in names:
        item = data.get(name)
        if item is None:
            raise ValueError(
                f"{path}: data/{name} can't be opened: it is a link to something that is not there, or damaged. Leave it out."
            )
        if not _is_group(item):
            raise ValueError(f"{path}: data/{name} is no group with actions and obs: the file is not in LIBERO's layout.")
    return sorted(names, key=lambda name: int(name[5:]))


def _successful(data: Any, names: list[str], path: Path) -> list[str]:
    """Those not marked as failures, as ``sb3-tgrpo demos collect --keep-failures`` marks them; other files hold successes."""
    kept = [name for name in names if _json_attribute(data[name], "sb3_tgrpo").get("success", True)]
    if not kept:
        raise ValueError(f"{path} holds {len(names)} demonstrations, none of them successful: there is nothing to imitate.")
    if len(kept) < len(names):
        failed = len(names) - len(kept)
        logger.warning("%s: %d of %d demonstrations were unsuccessful and are left out.", path, failed, len(names))
    return kept


def _json_attribute(data: Any, name: str) -> dict[str, Any]:
    try:
        content = json.loads(data.attrs[name])
    except (KeyError, TypeError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _instruction(data: Any, path: Path) -> str:
    words = _json_attribute(data, "problem_info").get("language_instruction")
    parts = words if isinstance(words, list) else [words if words is not None else ""]
    if not all(isinstance(part, str) for part in parts):
        raise ValueError(
            f"{path}: attribute problem_info of 'data' has language_instruction {words!r}, which is no text: mend it, or pass "
            "instruction=."
        )
    # LIBERO's own files hold it as a list of characters in some releases, and quoted in others.
    text = "".join(parts).strip().strip('"')
    # OpenVLA's regenerated files hold no attributes, but are named after the task, as LIBERO's own are.
    if not text and path.stem.endswith("_demo"):
        text = re.sub(r"^[A-Z_]+SCENE\d+_", "", path.stem.removesuffix("_demo")).replace("_", " ")
    if not text:
        raise ValueError(
            f"{path} has no instruction (attribute problem_info of 'data', entry language_instruction), and is not named "
            "after one, as in open_the_middle_drawer_of_the_cabinet_demo.hdf5: rename it, or pass instruction=."
        )
    return text


def _text(data: Any, name: str, default: str) -> str:
    """An attribute that is text, of fixed length (bytes) or not."""
    value = data.attrs.get(name, default)
    return value.decode() if isinstance(value, bytes) else str(value)


def _assets(data: Any, path: Path) -> str:
    shown = _text(data, "assets", "full")
    if shown not in ("full", "light"):
        raise ValueError(f"{path}: attribute assets of 'data' is {shown!r}, not 'full' or 'light': pass assets= (--assets).")
    return shown


def _observation_lag(data: Any) -> int:
    """1 if row t was observed after action t. LIBERO's own script does so and writes this attribute; OpenVLA's does not."""
    return int("sb3_tgrpo" not in data.attrs and "macros_image_convention" in data.attrs)


def _suite(data: Any) -> str | None:
    """The suite, from our own attribute or from the folder of the BDDL file that LIBERO's files name."""
    if "suite" in data.attrs:
        return _text(data, "suite", "")
    folder = Path(_text(data, "bddl_file_name", "")).parent.name
    return folder if folder.startswith("libero_") else None


def _one(values: set[str], what: str) -> str:
    if len(values) > 1:
        raise ValueError(f"The files differ in their {what} ({', '.join(sorted(values))}): a policy is trained on one kind.")
    return values.pop()


def _moving(actions: np.ndarray) -> np.ndarray:
    """OpenVLA's rule: steps that move, or whose gripper command is not that of the last step that was kept."""
    moves = np.linalg.norm(actions[:, :-1], axis=1) >= _NOOP_NORM
    changes = np.diff(actions[:, -1], prepend=actions[:1, -1]) != 0  # what is left out commands what the last kept step does
    return np.flatnonzero(moves | (changes & np.logical_or.accumulate(moves)))


def _first(bad: np.ndarray) -> int:
    return int(np.flatnonzero(bad.any(axis=1))[0])


def _update(digest: Any, instruction: str, actions: np.ndarray, images: Any, rows: np.ndarray) -> None:
    """Fingerprint of a demonstration: its words, its actions, its first and last picture. Reading all would take minutes."""
    digest.update(instruction.encode() + b"\x00" + str(actions.shape).encode())
    digest.update(np.ascontiguousarray(actions, dtype="<f8").tobytes())
    digest.update(np.asarray(images[int(rows[0])]).tobytes())
    digest.update(np.asarray(images[int(rows[-1])]).tobytes())
