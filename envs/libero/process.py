"""What has to be in order in a process before LIBERO's libraries are imported."""

import logging
import os

from sb3_tgrpo.envs.libero.gl import choose_gl


def _no_macro_advice(record: logging.LogRecord) -> bool:
    return "macro" not in record.getMessage()


def prepare_process() -> None:
    """
    Choose an OpenGL backend and import robosuite, quietly.

    :raises RuntimeError: if there is no OpenGL library, which robosuite can't be imported without.
    """
    backend = choose_gl()
    # robosuite advises every new process to write a file of private macros.
    logging.getLogger("robosuite_logs").addFilter(_no_macro_advice)
    # robosuite asserts at import that MUJOCO_EGL_DEVICE_ID is one of CUDA_VISIBLE_DEVICES, but EGL counts devices its own way.
    visible = os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    try:
        import robosuite  # noqa: F401
    finally:
        if visible is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = visible
    if backend:
        os.environ["MUJOCO_GL"] = backend  # robosuite overwrites the user's choice when it is imported
