"""Choosing the OpenGL backend that MuJoCo renders with, before anything has loaded one. Standard library only."""

import ctypes
import ctypes.util
import importlib
import importlib.util
import logging
import os
import sys

logger = logging.getLogger(__name__)

EGL_PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri")
"""Debian's and Ubuntu's packages for EGL in software; with an NVIDIA driver the first two are enough."""
OSMESA_PACKAGES = ("libosmesa6", "libgl1")
"""The second choice; Mesa has no OSMesa any more since 25.1."""

MISSING_GL = (
    "No OpenGL library for offscreen rendering was found. On Debian/Ubuntu: "
    f"`apt-get install {' '.join(EGL_PACKAGES)}` (EGL), or `apt-get install {' '.join(OSMESA_PACKAGES)}` (OSMesa)."
)


class GLError(RuntimeError, ValueError):
    """OpenGL can't be used at all, or not as the environment's variables ask."""


_OFF = ("disable", "disabled", "off", "false", "0")
_WITH_DISPLAY = ("enable", "enabled", "on", "true", "1", "glfw", "glx")
_CHOOSE = "Unset MUJOCO_GL and a backend is chosen, or set it to egl or osmesa."


def choose_gl() -> str:
    """
    Set ``MUJOCO_GL`` if the user has not: on Linux to ``egl`` if it offers a device, else to ``osmesa``.

    MuJoCo reads the variable when it is first asked for an OpenGL context, robosuite when it is imported, so this runs
    before both. Other systems have one backend and are left alone.

    :return: The backend in force, ``""`` for the system's own.
    :raises GLError: If there is neither library, with the packages to install; or if MuJoCo refuses a variable's value.
    """
    chosen = os.environ.get("MUJOCO_GL", "").lower().strip()
    if sys.platform == "linux":
        if not chosen:
            if has_egl_device():
                chosen = "egl"
            elif ctypes.util.find_library("OSMesa") is not None:
                chosen = "osmesa"
            else:
                raise GLError(MISSING_GL)
            os.environ["MUJOCO_GL"] = chosen
            logger.info("MUJOCO_GL was not set: rendering with %s.", chosen)
        elif chosen not in ("egl", "osmesa", *_OFF, *_WITH_DISPLAY):
            raise GLError(f"MUJOCO_GL={os.environ['MUJOCO_GL']}: MuJoCo has no such backend on Linux. {_CHOOSE}")
        platform = os.environ.get("PYOPENGL_PLATFORM") or chosen
        if chosen in ("egl", "osmesa") and platform.lower() != chosen:
            raise GLError(f"PYOPENGL_PLATFORM={platform} contradicts MUJOCO_GL={chosen}: unset it, or make them equal.")
    if chosen == "osmesa" and "torch._dynamo" not in sys.modules and importlib.util.find_spec("torch") is not None:
        # Both bring an LLVM of their own: torch's compiler imported after OSMesa has crashed the process, before it not.
        importlib.import_module("torch._dynamo")
    return chosen


def check_gl_variables(backend: str) -> None:
    """
    Refuse settings of the environment under which nothing can be rendered, before OpenGL is asked.

    :param backend: Backend in force, from :func:`choose_gl`.
    :raises GLError: If a variable's value can't work, naming it and what is valid.
    """
    if backend in _OFF:
        raise GLError(f"MUJOCO_GL={backend} turns rendering off. {_CHOOSE}")
    if sys.platform != "linux":
        return
    if backend in _WITH_DISPLAY and not os.environ.get("DISPLAY") and not os.environ.get("WAYLAND_DISPLAY"):
        raise GLError(f"MUJOCO_GL={backend} needs a display, and DISPLAY is not set. {_CHOOSE}")
    device = os.environ.get("MUJOCO_EGL_DEVICE_ID")
    if backend != "egl" or device is None:
        return
    count = egl_device_count()
    if count and not (device.isascii() and device.isdigit() and int(device) < count):
        valid = "0, the only device" if count == 1 else f"a number from 0 to {count - 1}"
        raise GLError(
            f"MUJOCO_EGL_DEVICE_ID={device}: EGL has {count} device(s) here, so it must be {valid}. EGL counts devices "
            "its own way: CUDA's numbers and names do not apply. Without the variable the first device that works is taken."
        )


def why_not(backend: str) -> str:
    """Advice after ``backend`` failed: packages if its library is missing."""
    found = {"egl": has_egl_device, "osmesa": lambda: ctypes.util.find_library("OSMesa") is not None}
    return _CHOOSE if found.get(backend, lambda: True)() else MISSING_GL


def has_egl_device() -> bool:
    """EGL can be installed without any driver behind it."""
    return egl_device_count() > 0


def egl_device_count() -> int:
    """Number of devices that EGL offers, 0 without EGL."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
    except OSError:
        return 0
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    address = egl.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0
