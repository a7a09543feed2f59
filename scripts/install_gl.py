"""Make sure that MuJoCo can render without a display: install Debian's software OpenGL where that is allowed."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "envs" / "libero"
sys.path.insert(0, str(FOLDER))
from gl import EGL_PACKAGES, MISSING_GL, OSMESA_PACKAGES  # noqa: E402  (by its own name: the package is not installed yet)

# opencv, a requirement of robosuite, loads libGL whether or not anything is drawn.
CAN_RENDER = f"""
import ctypes.util, sys
sys.path.insert(0, {str(FOLDER)!r})
from gl import has_egl_device
found = ctypes.util.find_library
sys.exit(not (found("GL") and (has_egl_device() or found("OSMesa"))))
"""


def can_render() -> bool:
    """Asked in a new process: libEGL remembers which drivers it has seen."""
    return subprocess.run([sys.executable, "-c", CAN_RENDER]).returncode == 0


def install(packages: tuple[str, ...]) -> None:
    """What can't be installed is missed by :func:`can_render`."""
    print(f"Installing {' '.join(packages)}, to render without a display")
    quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
    subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *packages], **quiet)


def main() -> int:
    if not sys.platform.startswith("linux") or can_render():
        return 0
    if shutil.which("apt-get") and os.geteuid() == 0:
        subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL)
        for packages in (EGL_PACKAGES, OSMESA_PACKAGES):
            install(packages)
            if can_render():
                return 0
    print(f"LIBERO can't be rendered, and this user can't install what is missing. Ask for it: {MISSING_GL}", file=sys.stderr)
    print("Everything that does not render works without.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
