"""Choosing the OpenGL backend that MuJoCo renders with, before anything has loaded one."""

import ctypes.util
import importlib
import logging
import os
import sys

logger = logging.getLogger(__name__)

MISSING_GL = (
    "No OpenGL library for offscreen rendering was found. On Debian/Ubuntu install one of them: "
    "`apt-get install libegl1 libgl1` (EGL, also used with NVIDIA drivers) or `apt-get install libosmesa6` (software), "
    "or set MUJOCO_GL yourself. Environments without image observations need none."
)


def choose_gl() -> str | None:
    """
    Set ``MUJOCO_GL`` if the user has not: on Linux to ``egl``, else ``osmesa``, whichever library can be loaded.

    MuJoCo reads the variable when it is first asked for an OpenGL context, robosuite when it is imported, so this runs
    before both. Other systems have one backend and are left alone. ``MUJOCO_EGL_DEVICE_ID`` is respected by MuJoCo.

    :return: the backend in force; None if there is none (set a message from :data:`MISSING_GL` before rendering).
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if chosen or sys.platform != "linux":
        _guard_osmesa(chosen)
        return chosen or "default"
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library) is not None:
            os.environ["MUJOCO_GL"] = backend
            logger.info("MUJOCO_GL was not set: rendering with %s.", backend)
            _guard_osmesa(backend)
            return backend
    return None


def _guard_osmesa(backend: str) -> None:
    # Both bring an LLVM of their own. torch's compiler imported after OSMesa has crashed the process, before it not.
    if backend == "osmesa" and "torch" in sys.modules:
        importlib.import_module("torch._dynamo")
