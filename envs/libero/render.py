"""Offscreen pictures of a MuJoCo model."""

import atexit
import importlib
import os
import weakref
from typing import Any

import mujoco
import numpy as np

from sb3_tgrpo.envs.libero.gl import GLError, check_gl_variables, choose_gl, why_not

_first_process: int | None = None
"""The process that OpenGL was first used in: this one, or one that this one was forked from."""
_open_renderers: "weakref.WeakSet[OffscreenRenderer]" = weakref.WeakSet()


def _context_class(backend: str) -> Any:
    # MuJoCo settles on a backend when it is first imported, which may have been before MUJOCO_GL was set
    name = backend if backend in ("egl", "osmesa") else "gl_context"
    return importlib.import_module(f"mujoco.{name}").GLContext


def _close_all() -> None:
    for renderer in list(_open_renderers):
        renderer.close()


class OffscreenRenderer:
    """
    Renders fixed cameras into arrays, visual geoms only, as LIBERO does.

    The OpenGL context is created on first use, in the process that uses it. Sizes are in pixels.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, height: int, width: int) -> None:
        self._model, self._data = model, data
        self._viewport = mujoco.MjrRect(0, 0, width, height)
        self._shape = (height, width, 3)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[0] = 0  # collision geoms
        self._option.geomgroup[1] = 1
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        self._perturb = mujoco.MjvPerturb()
        self._scene: mujoco.MjvScene | None = None
        self._gl: Any = None
        self._context: mujoco.MjrContext | None = None
        self._pid = -1

    def _open(self) -> None:
        global _first_process
        if _first_process not in (None, os.getpid()):
            # OpenGL's threads and locks do not survive a fork: the child would wait for them for ever.
            raise GLError(
                "This process was forked from one that had rendered before, and OpenGL hangs in such a child. Start workers "
                'with start_method="forkserver" (SubprocVecEnv) or context="forkserver" (AsyncVectorEnv), use make_group_env, '
                "or render nothing before the fork."
            )
        backend = choose_gl()
        check_gl_variables(backend)
        _first_process = os.getpid()
        try:
            context_class = _context_class(backend)
            global_ = self._model.vis.global_
            global_.offwidth = max(global_.offwidth, self._viewport.width)
            global_.offheight = max(global_.offheight, self._viewport.height)
            self._gl = context_class(global_.offwidth, global_.offheight)
            # Exit handlers run last in, first out: this one must come before that of the backend, which ends OpenGL.
            atexit.unregister(_close_all)
            atexit.register(_close_all)
            self._gl.make_current()
            self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except Exception as error:
            self.close()
            raise GLError(
                f"MuJoCo can't render offscreen with MUJOCO_GL={os.environ.get('MUJOCO_GL', '')}: {error}. {why_not(backend)}"
            ) from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(self._model, maxgeom=1000)
        self._pid = os.getpid()
        _open_renderers.add(self)

    def render(self, camera: int) -> np.ndarray:
        """
        :param camera: Camera id.
        :return: Array uint8 of shape (height, width, 3), bottom row first, as OpenGL reads it and LIBERO stores it.
        :raises GLError: If OpenGL can't be used.
        """
        if self._context is None or self._pid != os.getpid():
            self._open()
        self._gl.make_current()
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self._model, self._data, self._option, self._perturb, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._viewport, self._scene, self._context)
        image = np.empty(self._shape, np.uint8)
        mujoco.mjr_readPixels(image, None, self._viewport, self._context)
        return image

    def close(self) -> None:
        """Free the OpenGL context."""
        if self._pid not in (-1, os.getpid()):
            return  # the context belongs to the parent process
        if self._context is not None:
            self._gl.make_current()
            self._context.free()
            self._context = None
        if self._gl is not None:
            self._gl.free()
            self._gl = None
