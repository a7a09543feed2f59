"""Demonstrations for supervised fine-tuning: HDF5 files in LIBERO's layout."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from sb3_tgrpo.envs.demos.reader import DemoFile, import_h5py, moving_steps, open_demos
from sb3_tgrpo.settings import check_number, typed
from sb3_tgrpo.sft.statistics import Gripper, action_statistics

logger = logging.getLogger(__name__)

_INSTRUCTION_BYTES = 256


@dataclass(frozen=True)
class Demonstration:
    """
    One recorded episode.

    :param file: The HDF5 file.
    :param name: Its group in the file, such as ``demo_0``.
    :param instruction: Sentence that the robot was told.
    :param rows: Rows of the images used, ascending.
    :param held_out: Whether the file keeps it for validation.
    """

    file: Path
    name: str
    instruction: str
    rows: np.ndarray
    held_out: bool = False

    @property
    def n_frames(self) -> int:
        return len(self.rows)


class DemonstrationDataset:
    """
    Frames and actions of demonstrations in LIBERO's HDF5 layout: ``data/demo_i/actions`` and
    ``data/demo_i/obs/agentview_rgb``. Actions are read at once, images when they are asked for. Demonstrations that were
    unsuccessful by the file's own account are left out. Each action goes with the image before it: LIBERO's own files, which
    observe after the action, lose the first action of each demonstration and the last image.

    The instruction is that of the file's task where the task is known, else the attribute ``problem_info`` of ``data`` or the
    file's name (``open_it_demo.hdf5``).

    :param files: HDF5 files; several tasks are several files.
    :param name: Name of the action statistics in the checkpoint (``unnorm_key``). None: the suite, if the files state one,
        else the first file's stem.
    :param assets: LIBERO assets that the images show, ``"full"`` or ``"light"``. None: as the files state; files that do not,
        such as LIBERO's own, are ``"full"``.
    :param instruction: Instruction that replaces the files' own.
    :param image_key: Camera below ``obs``.
    :param action_key: Data set below ``demo_i`` with the actions to imitate.
    :param gripper: ``"libero"`` for LIBERO's action space: last dimension -1 open, +1 closed, all within [-1, 1].
        ``"none"`` leaves all dimensions alike, and accepts other robots and controllers.
    :param max_demonstrations: Number of demonstrations of each file to use, from the first, unsuccessful ones not counted.
    :param drop_noops: Whether to leave out steps that neither move the arm (norm below 1e-4) nor change the gripper's
        command, as OpenVLA's LIBERO data do.
    :param min_range: See :func:`~sb3_tgrpo.sft.statistics.action_statistics`.
    :param symmetric: See :func:`~sb3_tgrpo.sft.statistics.action_statistics`.
    :raises ValueError: If a file is no such HDF5 file, is empty or damaged, lacks a key, holds actions of another space or
        convention, or unsuccessful demonstrations only.
    :raises OSError: If a file does not exist, is written by another process, or may not be read.
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
        typed(Gripper, gripper, "gripper")
        typed(Literal["full", "light", None], assets, "assets")
        check_number("max_demonstrations", max_demonstrations, int, optional=True)
        paths = [Path(files)] if isinstance(files, str | Path) else [Path(file) for file in files]
        if not paths:
            raise ValueError("files is empty: give at least one HDF5 file of demonstrations.")
        if len({path.resolve() for path in paths}) < len(paths):
            raise ValueError(f"files={', '.join(map(str, paths))}: a file is named twice. Leave one out.")
        self.gripper: Gripper = gripper
        self.image_key, self.action_key = f"obs/{image_key}", action_key
        self.demonstrations: list[Demonstration] = []
        self.image_shape: tuple[int, int, int] = (0, 0, 0)
        self._parts: list[np.ndarray] = []
        self._digest = hashlib.sha256()
        shown: list[tuple[Literal["full", "light"], str | None]] = []
        for path in paths:
            with open_demos(path) as file:
                shown.append((assets or file.assets, file.suite))
                self._read(file, instruction, max_demonstrations, drop_noops)
        if len(widths := {part.shape[1] for part in self._parts}) > 1:
            raise ValueError(f"The files hold actions of different lengths {sorted(widths)}: train on one robot at a time.")
        if len(kinds := {kind for kind, _ in shown}) > 1:
            raise ValueError(
                f"The files differ in their assets ({', '.join(sorted(kinds))}): train on one kind, or pass assets=."
            )
        self.actions = np.concatenate(self._parts)
        self.fingerprint = self._digest.hexdigest()
        self.assets = kinds.pop()
        suites = {suite for _, suite in shown}
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
        """Record of the data for a checkpoint."""
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
        Divide the demonstrations so that no episode is in both parts, each instruction's in the same proportion. Files that
        hold a split of their own (``mask/valid``, ``mask/test``) keep it.

        :param validation_fraction: Share for validation, 0 <= fraction < 1; 0 for none.
        :param seed: Seed of the choice.
        :return: Demonstration indices for training and for validation, ascending.
        :raises ValueError: If a part would be empty.
        """
        if not 0 <= validation_fraction < 1:
            raise ValueError(f"validation_fraction={validation_fraction}: it must be at least 0 and below 1.")
        rng = np.random.default_rng([seed, 0x5B117])
        held_out = [k for k, demo in enumerate(self.demonstrations) if demo.held_out]
        split_by_files = {self.demonstrations[k].file for k in held_out}
        for instruction in self.instructions:
            same = [
                k for k, demo in enumerate(self.demonstrations)
                if demo.instruction == instruction and demo.file not in split_by_files
            ]  # fmt: skip
            count = round(validation_fraction * len(same))
            if validation_fraction > 0 and count == 0 and len(same) > 1:
                count = 1
            if validation_fraction > 0 and same and not 0 < count < len(same):
                raise ValueError(
                    f"validation_fraction={validation_fraction} of {len(same)} demonstration(s) of {instruction!r} leaves an "
                    "empty split: add demonstrations, change the fraction, or pass 0 for no validation."
                )
            held_out += rng.permutation(same)[:count].tolist()
        train = sorted({*range(len(self.demonstrations))} - {*held_out})
        if not train:
            raise ValueError("The files hold all demonstrations out (mask/valid, mask/test): there is nothing to train on.")
        return np.array(train), np.array(sorted(held_out), dtype=int)

    # ------------------------------------------------------------------ reading

    def _file(self, path: Path) -> Any:
        """An open handle, kept for the next call."""
        if self._handle is None or self._handle[0] != path:
            self.close()
            self._handle = (path, import_h5py().File(path, "r"))
        return self._handle[1]

    def close(self) -> None:
        """Close the file that is open, if any; reading opens it again."""
        if self._handle is not None:
            self._handle[1].close()
            self._handle = None

    def _read(self, file: DemoFile, instruction: str | None, limit: int | None, drop_noops: bool) -> None:
        """Add a file's demonstrations."""
        words = file.instruction if instruction is None else instruction
        if not words:
            raise file.error(
                "it has no instruction (attribute problem_info of 'data', entry language_instruction), and is not named after "
                "one, as in open_the_middle_drawer_of_the_cabinet_demo.hdf5: rename it, or pass instruction=."
            )
        if self.gripper == "libero":
            file.check_convention()
        names = [name for name in file.names if file.succeeded(name)]
        if not names:
            raise file.error(f"none of its {len(file.names)} demonstrations was successful: there is nothing to imitate.")
        if failed := len(file.names) - len(names):
            logger.warning(
                "%s: %d of %d demonstrations were unsuccessful and are left out.", file.path, failed, len(file.names)
            )
        for name in names[:limit]:
            actions = file.rows(name, self.action_key)
            images = file.images(name, self.image_key, len(actions))
            file.check_length(name, len(actions))
            if self.gripper == "libero":
                file.check_actions(name, actions)
            if self.image_shape not in ((0, 0, 0), images.shape[1:]):
                raise file.error(f"{name} has images of {images.shape[1:3]}, not {self.image_shape[:2]}: use one size.")
            self.image_shape = tuple(images.shape[1:])
            actions = actions[file.lag(name) :]
            rows = moving_steps(actions) if drop_noops else np.arange(len(actions))
            if not len(rows):
                raise file.error(f"{name} holds no step to imitate: leave it out.")
            self.demonstrations.append(Demonstration(file.path, name, words, rows, name in file.held_out))
            self._parts.append(actions[rows])
            _update(self._digest, words, actions[rows], images, rows)


def _update(digest: Any, instruction: str, actions: np.ndarray, images: Any, rows: np.ndarray) -> None:
    """Fingerprint of a demonstration: its words, its actions, its first and last picture. Reading all would take minutes."""
    digest.update(instruction.encode() + b"\x00" + str(actions.shape).encode())
    digest.update(np.ascontiguousarray(actions, dtype="<f8").tobytes())
    digest.update(np.asarray(images[int(rows[0])]).tobytes())
    digest.update(np.asarray(images[int(rows[-1])]).tobytes())
