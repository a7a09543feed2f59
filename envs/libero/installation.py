"""LIBERO's installation: where it is, importing it without a question, its cache, and the assets folder that it loads from."""

import atexit
import hashlib
import importlib
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sb3_tgrpo.files import atomic_write

logger = logging.getLogger(__name__)

CACHE_VARIABLE = "SB3_TGRPO_CACHE"

_libero_lock = threading.RLock()


def libero_root() -> Path:
    """
    The folder of the installed ``libero.libero`` package.

    :raises ImportError: If it is not installed.
    """
    spec = importlib.util.find_spec("libero")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError('LIBERO is missing: pip install "sb3-tgrpo[libero]", then pip install --no-deps hf-libero==0.1.4.')
    return Path(spec.submodule_search_locations[0]) / "libero"


def user_cache() -> Path | None:
    """``$XDG_CACHE_HOME``, else ``~/.cache``; None for a user who has no home folder."""
    base, home = os.environ.get("XDG_CACHE_HOME"), os.path.expanduser("~")
    return Path(base) if base else Path(home) / ".cache" if os.path.isabs(home) else None


def is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest one above it that exists."""
    while not os.path.exists(folder) and folder != folder.parent:  # Path.exists raises where this user may not look
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


@cache
def writable_cache_folder() -> Path:
    """
    This package's cache folder: ``SB3_TGRPO_CACHE``, else ``$XDG_CACHE_HOME/sb3_tgrpo``, else ``~/.cache/sb3_tgrpo``. Where it
    can't be written to, a temporary folder that lasts as long as this process.
    """
    named, base = os.environ.get(CACHE_VARIABLE), user_cache()
    folder = Path(os.path.expanduser(named)) if named else base and base / "sb3_tgrpo"
    if folder and is_writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    temporary = Path(tempfile.mkdtemp(prefix="sb3_tgrpo-"))
    atexit.register(_remove_folder, temporary, os.getpid())
    logger.warning("The cache folder %s can't be written to (set %s); using %s.", folder, CACHE_VARIABLE, temporary)
    return temporary


def _remove_folder(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a forked child, whose parent still uses it
        shutil.rmtree(folder, ignore_errors=True)


def import_libero() -> Any:
    """
    Import ``libero.libero`` without its question on standard input and without creating ``~/.libero``.

    LIBERO asks for its dataset folder when it finds no configuration file. Ours is shown to it during the import; a
    configuration of the user's own, if there is one, is in force afterwards.

    :return: The module ``libero.libero``.
    :raises ImportError: If LIBERO is not installed.
    """
    with _libero_lock:
        if "libero.libero" in sys.modules:
            return sys.modules["libero.libero"]
        root = libero_root()
        previous = os.environ.get("LIBERO_CONFIG_PATH")
        own = Path(os.path.expanduser(previous or "~/.libero"))
        config = _libero_config(root)
        os.environ["LIBERO_CONFIG_PATH"] = str(config.parent)
        try:
            module = importlib.import_module("libero.libero")
        finally:
            if previous is None:
                del os.environ["LIBERO_CONFIG_PATH"]
            else:
                os.environ["LIBERO_CONFIG_PATH"] = previous
        if os.path.isfile(own / "config.yaml"):
            module.libero_config_path, module.config_file = str(own), str(own / "config.yaml")  # type: ignore[attr-defined]
        return module


def _libero_config(root: Path) -> Path:
    """A LIBERO configuration file for the installation at ``root``, in the cache."""
    entries = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }
    text = "".join(f'{key}: "{path.as_posix()}"\n' for key, path in entries.items())
    folder = writable_cache_folder() / f"libero-config-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    config = folder / "config.yaml"
    if not config.is_file():
        atomic_write(config, text)
    return config


@contextmanager
def libero_assets(path: str | os.PathLike[str]) -> Iterator[Any]:
    """
    Within the context, LIBERO loads its models from ``path``; afterwards, from where it did before.

    LIBERO looks its assets folder up each time an environment or an object is constructed, so the context must span
    the construction (and a ``reset`` that rebuilds the model), not the use. LIBERO is imported on entry if need be (see
    :func:`import_libero`). Threads take turns; entering again inside is allowed.

    :param path: A folder in LIBERO's asset layout, e.g. ``resolve_assets("light").path``.
    :return: A context manager that yields the module ``libero.libero``.
    :raises FileNotFoundError: If ``path`` is not a folder.
    """
    if not os.path.isdir(path):
        raise FileNotFoundError(f"LIBERO assets folder {os.fspath(path)!r} does not exist.")
    with _libero_lock:
        libero = import_libero()
        before = libero._assets_path_cache
        libero._assets_path_cache = os.fspath(path)
        try:
            yield libero
        finally:
            libero._assets_path_cache = before
