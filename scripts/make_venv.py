"""Make a virtual environment, with Debian's python3-venv installed where that is missing and allowed."""

import importlib.util
import os
import shutil
import subprocess
import sys


def has_ensurepip() -> bool:
    """Debian takes it out of Python's library."""
    return getattr(importlib.util.find_spec("ensurepip"), "origin", None) is not None


def main(folder: str) -> int | str:
    if not has_ensurepip():
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        if shutil.which("apt-get") and os.geteuid() == 0:
            print(f"Installing {package}")
            subprocess.run(["apt-get", "update"], stdout=subprocess.DEVNULL)
            subprocess.run(["apt-get", "install", "-y", package], stdout=subprocess.DEVNULL)
        importlib.invalidate_caches()
        if not has_ensurepip():
            return f"{sys.executable} can't make virtual environments. Ask for:\n    sudo apt-get install {package}"
    # Cleared: what an interrupted attempt has left may have no pip.
    return subprocess.run([sys.executable, "-m", "venv", "--clear", folder]).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
