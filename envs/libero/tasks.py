"""LIBERO's suites and tasks: names, sentences, BDDL files and stored initial states, without importing LIBERO."""

import codecs
import io
import logging
import os
import pickle
import re
import runpy
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sb3_tgrpo.envs.libero.installation import libero_root
from sb3_tgrpo.envs.registration import STEP_CAPS, SUITES

logger = logging.getLogger(__name__)

_LANGUAGE = re.compile(r"\(:language\s+([^()]*)\)", re.IGNORECASE)
_ARRAY_PARTS = {("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")}
_NUMPY_2 = int(np.__version__.split(".")[0]) >= 2

DEFAULT_STEP_CAP = 300
"""Step cap of BDDL files that belong to no suite."""


@dataclass(frozen=True)
class LiberoTask:
    """
    One task.

    :param suite: Suite, ``""`` for a BDDL file of the user's.
    :param index: Position in the suite, in LIBERO's own task order.
    :param name: The BDDL file's name without its suffix.
    :param instruction: The sentence for the policy, LIBERO's ``Task.language``.
    :param bddl_file: Problem definition.
    :param init_file: Stored initial states, None if there are none.
    :param step_cap: Control steps per episode.
    :param bddl_text: The problem definition itself where it differs from the file (see
        :mod:`~sb3_tgrpo.envs.libero.target_variants`); None = the file's.
    """

    suite: str
    index: int
    name: str
    instruction: str
    bddl_file: Path
    init_file: Path | None
    step_cap: int
    bddl_text: str | None = None

    def read_bddl(self) -> str:
        """The problem definition."""
        return self.bddl_file.read_text(encoding="utf-8") if self.bddl_text is None else self.bddl_text


@cache
def _task_names() -> dict[str, list[str]]:
    # LIBERO's own table, read as a file: importing it would import all of LIBERO and torch.
    return runpy.run_path(str(libero_root() / "benchmark" / "libero_suite_task_map.py"))["libero_task_map"]


def instruction_of(name: str) -> str:
    """LIBERO's ``Task.language``: the file name as words, without the scene prefix of the LIBERO-100 suites."""
    if name[:1].isupper() and "SCENE" in name:
        scene = name.index("SCENE") + len("SCENE")
        name = name[scene:].lstrip("0123456789").removeprefix("_")
    return name.replace("_", " ")


def get_task(suite: str, task: int = 0) -> LiberoTask:
    """
    A task of one of LIBERO's suites.

    :param suite: One of :data:`~sb3_tgrpo.envs.registration.SUITES`.
    :param task: Index in the suite, in LIBERO's own task order.
    :raises ValueError: If the suite or the index is unknown, listing the valid ones.
    :raises TypeError: If ``task`` is not an integer.
    """
    if suite not in SUITES:
        raise ValueError(f"Unknown LIBERO suite {suite!r}. Available: {', '.join(SUITES)}.")
    if isinstance(task, bool) or not isinstance(task, int | np.integer):
        raise TypeError(f"task must be an integer (the index in {suite}), got {task!r}.")
    if not 0 <= task < SUITES[suite]:
        raise ValueError(f"Unknown task {task} of {suite}. Available: 0 to {SUITES[suite] - 1}.")
    name, root = _task_names()[suite][task], libero_root()
    return LiberoTask(
        suite=suite,
        index=int(task),
        name=name,
        instruction=instruction_of(name),
        bddl_file=root / "bddl_files" / suite / f"{name}.bddl",
        init_file=root / "init_files" / suite / f"{name}.pruned_init",
        step_cap=STEP_CAPS[suite],
    )


def bddl_language(text: str) -> str:
    """The sentence of a problem definition, ``""`` without one. LIBERO's own often differ from ``Task.language``."""
    found = _LANGUAGE.search(text)
    return " ".join(found[1].split()) if found else ""


def same_words(first: str, second: str) -> bool:
    """Whether two sentences differ in nothing but case and spaces."""
    return first.lower().split() == second.lower().split()


def find_task(name: str, text: str, folder: str = "") -> LiberoTask | None:
    """
    LIBERO's task of a BDDL file's name, unless the text is about something else.

    :param name: The file's name without its suffix.
    :param text: Problem definition; ``""`` if it is not known.
    :param folder: The file's folder; the suite that it names is looked through first.
    :raises ImportError: If LIBERO is not installed.
    """
    here = bddl_language(text)
    for task in _namesakes(name, folder):
        own = bddl_language(task.read_bddl())
        if not here or same_words(own, here):
            return task
        logger.warning("%s is the name of %s-%d, but the file is about %r, not %r.", name, task.suite, task.index, here, own)
    return None


def _namesakes(name: str, folder: str = "") -> Iterator[LiberoTask]:
    for suite in sorted(SUITES, key=lambda suite: not folder.startswith(suite)):
        if name in (names := _task_names()[suite]):
            yield get_task(suite, names.index(name))


def task_from_bddl(path: str | os.PathLike[str], instruction: str | None = None) -> LiberoTask:
    """
    A task of the user's own.

    :param path: BDDL file in LIBERO's dialect.
    :param instruction: Sentence for the policy. None takes it from the file name, as LIBERO does, and warns if the file's
        ``(:language)`` asks for something else.
    :raises FileNotFoundError: If there is no such file.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"BDDL file {file} does not exist.")
    task = LiberoTask("", 0, file.stem, instruction or instruction_of(file.stem), file.resolve(), None, DEFAULT_STEP_CAP)
    if instruction is None:
        _warn_of_another_sentence(task)
    return task


def _warn_of_another_sentence(task: LiberoTask) -> None:
    """
    Files that were made from LIBERO's by changing ``(:language)`` often keep the name, or have a suffix in it.

    In 29 of LIBERO's own 130 files the two differ as well; those, and differences in little words alone, cause no warning.
    """

    def content(sentence: str) -> list[str]:
        return [word for word in re.findall(r"[^\W_]+", sentence.lower()) if word not in ("a", "an", "the", "up")]

    written = bddl_language(task.read_bddl())
    if not written or content(written) == content(task.instruction):
        return
    if any(same_words(bddl_language(own.read_bddl()), written) for own in _namesakes(task.name)):
        return
    warnings.warn(
        f"{task.bddl_file.name}: its name asks for {task.instruction!r}, its (:language) for {written!r}. The policy reads "
        "the former, as in LIBERO: choose with instruction=...",
        stacklevel=4,
    )


class _ArrayUnpickler(pickle.Unpickler):
    """
    Reads a pickled numpy array and nothing else.

    LIBERO saved its initial states with ``torch.save``, which is a zip file around a pickle. Read this way, a worker need not
    import torch, nor trust the file.
    """

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):
            return codecs.encode
        if (module.replace("numpy._core", "numpy.core"), name) in _ARRAY_PARTS:
            # numpy 2 has moved the module that files written by numpy 1 name.
            return super().find_class(module.replace("numpy.core", "numpy._core") if _NUMPY_2 else module, name)
        raise pickle.UnpicklingError(f"initial states may hold arrays only, found {module}.{name}.")


@cache
def stored_starts(task: LiberoTask) -> np.ndarray:
    """
    The stored initial states of a task, one flattened simulator state (time, qpos, qvel) per row, read-only.

    :raises ValueError: If the task has none.
    """
    if task.init_file is None:
        raise ValueError(f"{task.name} has no stored initial states: omit init_state_id to draw initial states.")
    with zipfile.ZipFile(task.init_file) as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
        states = np.array(_ArrayUnpickler(io.BytesIO(archive.read(name))).load(), dtype=np.float64)
    states.setflags(write=False)
    return states
