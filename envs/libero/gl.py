"""Choosing the OpenGL backend that MuJoCo renders with, before anything has loaded one."""

import ctypes
import ctypes.util
import importlib
import importlib.util
import logging
import os
import sys

logger = logging.getLogger(__name__)

MISSING_GL = (
    "No OpenGL library for offscreen rendering was found. On Debian/Ubuntu install one of them: "
    "`apt-get install libegl1 libgl1 libegl-mesa0` (EGL; with an NVIDIA driver libegl1 is enough) or "
    "`apt-get install libosmesa6` (software), or set MUJOCO_GL yourself."
)


def choose_gl() -> str:
    """
    Set ``MUJOCO_GL`` if the user has not: on Linux to ``egl`` if it offers a device, else to ``osmesa``.

    MuJoCo reads the variable when it is first asked for an OpenGL context, robosuite when it is imported, so this runs
    before both. Other systems have one backend and are left alone. ``MUJOCO_EGL_DEVICE_ID`` is respected by MuJoCo.

    :return: the backend in force, ``""`` for the system's own.
    :raises RuntimeError: naming the packages to install, if there is neither library.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if not chosen and sys.platform == "linux":
        if has_egl_device():
            chosen = "egl"
        elif ctypes.util.find_library("OSMesa") is not None:
            chosen = "osmesa"
        else:
            raise RuntimeError(MISSING_GL)
        os.environ["MUJOCO_GL"] = chosen
        logger.info("MUJOCO_GL was not set: rendering with %s.", chosen)
    if chosen == "osmesa" and "torch._dynamo" not in sys.modules and importlib.util.find_spec("torch") is not None:
        # Both bring an LLVM of their own: torch's compiler imported after OSMesa has crashed the process, before it not.
        importlib.import_module("torch._dynamo")
    return chosen


def has_egl_device() -> bool:
    """EGL can be installed without any driver behind it."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return False
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return bool(query(0, None, ctypes.byref(count))) and count.value > 0
