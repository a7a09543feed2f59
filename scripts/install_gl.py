"""Make sure that MuJoCo can render without a display: install Debian's software OpenGL where that is allowed."""

import ctypes.util
import os
import shutil
import subprocess
import sys

PACKAGES = ["libegl1", "libgl1", "libgl1-mesa-dri", "libosmesa6"]
# opencv, a requirement of robosuite, loads libGL whether or not anything is drawn
LIBRARIES = ["EGL", "OSMesa", "GL"]


def main() -> int:
    missing = [name for name in LIBRARIES if ctypes.util.find_library(name) is None]
    if not missing or not sys.platform.startswith("linux"):
        return 0
    command = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    if shutil.which("apt-get") and os.geteuid() == 0:
        print(f"Installing {' '.join(PACKAGES)} (missing: {', '.join('lib' + name for name in missing)})")
        quiet = {"stdout": subprocess.DEVNULL, "env": {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}}
        subprocess.run(["apt-get", "update"], **quiet)
        if subprocess.run(command, **quiet).returncode == 0:
            return 0
    print(
        f"Rendering LIBERO needs {', '.join('lib' + name for name in missing)}, which this user can't install. "
        f"Ask for:\n    sudo {' '.join(command)}\nEverything that does not render works without.",
        file=sys.stderr,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
