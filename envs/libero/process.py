"""What has to be in order in a process before LIBERO's libraries are imported."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sb3_tgrpo.envs.libero.gl import GLError, choose_gl, why_not
from sb3_tgrpo.envs.libero.installation import is_writable, user_cache, writable_cache_folder


def _no_macro_advice(record: logging.LogRecord) -> bool:
    return "macro" not in record.getMessage()


def prepare_process() -> None:
    """
    Choose an OpenGL backend and import robosuite, quietly.

    :raises GLError: If OpenGL can't be loaded, which robosuite can't be imported without.
    """
    backend = choose_gl()
    _find_numba_a_cache()
    # robosuite advises every new process to write a file of private macros.
    logging.getLogger("robosuite_logs").addFilter(_no_macro_advice)
    # robosuite asserts at import that MUJOCO_EGL_DEVICE_ID is one of CUDA_VISIBLE_DEVICES, but EGL counts devices its own way.
    visible = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    with _no_log_file():
        try:
            import robosuite  # noqa: F401
        except (AttributeError, ImportError) as error:  # what PyOpenGL raises without the library depends on the library
            if isinstance(error, ModuleNotFoundError):
                raise
            raise GLError(f"OpenGL can't be loaded with MUJOCO_GL={backend}: {error}. {why_not(backend)}") from error
        finally:
            if visible is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = visible
    if backend:
        os.environ["MUJOCO_GL"] = backend  # robosuite overwrites the user's choice when it is imported


@contextmanager
def _no_log_file() -> Iterator[None]:
    """
    robosuite writes ``/tmp/robosuite.log`` from its import on. On a machine with several users the file belongs to the first
    of them, and the import fails for all others.
    """
    real = logging.FileHandler

    def handler(*args: Any, **kwargs: Any) -> logging.Handler:
        return logging.NullHandler()

    logging.FileHandler = handler  # type: ignore[misc, assignment]
    try:
        yield
    finally:
        logging.FileHandler = real  # type: ignore[misc]


def _find_numba_a_cache() -> None:
    """
    Numba keeps compiled functions beside their source, else below the home folder. Where it can write to neither, importing
    robosuite fails: then it gets a folder of ours.
    """
    if os.environ.get("NUMBA_CACHE_DIR"):
        return
    robosuite, home = find_spec("robosuite"), user_cache()
    sources = [Path(__file__).parent, *([Path(robosuite.origin).parent / "utils"] if robosuite and robosuite.origin else [])]
    if all(map(is_writable, sources)) or (home and is_writable(home)):
        return
    from numba.core import config

    os.environ["NUMBA_CACHE_DIR"] = config.CACHE_DIR = str(writable_cache_folder() / "numba")  # type: ignore[attr-defined]
