"""Where LIBERO's models come from: finding an assets folder and pointing LIBERO at it.

LIBERO loads its meshes, textures and MJCF files from one folder. ``"full"`` is LIBERO's own folder, ``"light"`` the
built-in one of :mod:`sb3_tgrpo.envs.libero.light_assets`; both have the same layout, so all that differs is the path.
"""

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
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

logger = logging.getLogger(__name__)

AssetsKind = Literal["full", "light"]

ASSETS_VARIABLE = "SB3_TGRPO_LIBERO_ASSETS"
CACHE_VARIABLE = "SB3_TGRPO_CACHE"
HUB_REPOSITORY = "lerobot/libero-assets"
KINDS = ("full", "light", "auto")

_libero_lock = threading.RLock()


@dataclass(frozen=True)
class Assets:
    """
    A folder in LIBERO's asset layout.

    :param kind: ``"full"`` (LIBERO's own meshes and textures) or ``"light"`` (built in, primitives only)
    :param path: the folder
    """

    kind: AssetsKind
    path: Path


def resolve_assets(kind: str = "auto") -> Assets:
    """
    Find the folder LIBERO's models are loaded from.

    ``"full"`` takes the first of: the folder named by ``SB3_TGRPO_LIBERO_ASSETS``; the folder LIBERO itself would use
    (set by the running program, inside the installed package, or its own download folder); the Hugging Face cache of
    ``lerobot/libero-assets``; and downloads the latter when there is none. ``"light"`` is generated into a per-user
    cache folder on first use. ``"auto"`` is full if found on this machine, else light; it never downloads.

    The choice is logged once per process.

    :param kind: ``"full"``, ``"light"`` or ``"auto"``
    :return: the kind found (never ``"auto"``) and its folder
    :raises ValueError: for another ``kind``
    :raises FileNotFoundError: when the folder named by ``SB3_TGRPO_LIBERO_ASSETS`` does not exist or lacks files, or
        when ``"full"`` is asked for and can't be downloaded
    """
    if kind not in KINDS:
        raise ValueError(f"assets={kind!r}: choose one of {', '.join(map(repr, KINDS))}.")
    return _resolve(kind, os.environ.get(ASSETS_VARIABLE) or None)


@cache
def _resolve(kind: str, named_folder: str | None) -> Assets:
    if kind == "light":
        from sb3_tgrpo.envs.libero.light_assets import light_assets_folder

        assets = Assets("light", light_assets_folder())
    else:
        path = _find_full(named_folder)
        if path is None and kind == "auto":
            assets = _resolve("light", named_folder)
        else:
            assets = Assets("full", path or _download_full())
    logger.info("LIBERO assets: %s, from %s (asked for: %s).", assets.kind, assets.path, kind)
    return assets


def missing_files(folder: Path) -> list[str]:
    """
    :param folder: a folder in LIBERO's asset layout
    :return: the files that LIBERO's 130 tasks load and ``folder`` lacks, as relative paths
    """
    names = (files("sb3_tgrpo.envs") / "data" / "full_assets.txt").read_text(encoding="utf-8").split()
    return [name for name in names if not os.path.isfile(os.path.join(folder, name))]


def _describe(missing: list[str], shown: int = 5) -> str:
    more = f" and {len(missing) - shown} more" if len(missing) > shown else ""
    return f"{len(missing)} file(s) missing: {', '.join(missing[:shown])}{more}"


def _find_full(named_folder: str | None) -> Path | None:
    """The first complete full-assets folder on this machine; a folder that the user named must be complete."""
    if named_folder is not None:
        path = Path(named_folder).expanduser()
        remedy = f"Set {ASSETS_VARIABLE} to a folder that holds LIBERO's assets, or unset it."
        if not path.is_dir():
            raise FileNotFoundError(f"{ASSETS_VARIABLE}={named_folder}: no such folder. {remedy}")
        if missing := missing_files(path):
            raise FileNotFoundError(f"{ASSETS_VARIABLE}={named_folder}: {_describe(missing)}. {remedy}")
        return path.resolve()
    for path in _candidates():
        if not path.is_dir():
            continue
        if missing := missing_files(path):
            logger.warning("Skipping the LIBERO assets in %s: %s.", path, _describe(missing))
            continue
        return path
    return None


def _candidates() -> Iterator[Path]:
    """Where an installed LIBERO or the Hugging Face cache keeps the assets, most specific first."""
    loaded = sys.modules.get("libero.libero")
    if loaded is not None and getattr(loaded, "_assets_path_cache", None):
        yield Path(loaded._assets_path_cache)
    package = importlib.util.find_spec("libero")
    for location in (package.submodule_search_locations or []) if package else []:
        yield Path(location) / "libero" / "assets"
    yield Path.home() / ".cache" / "libero" / "assets"
    if not (_hub_cache() / f"datasets--{HUB_REPOSITORY.replace('/', '--')}").is_dir():
        return  # spares every worker process the import
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ImportError:
        return
    try:
        yield Path(snapshot_download(HUB_REPOSITORY, repo_type="dataset", local_files_only=True))
    except LocalEntryNotFoundError:
        return


def _hub_cache() -> Path:
    """Where huggingface_hub keeps what it downloads, by its own rules."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    home = os.environ.get("HF_HOME")
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(home).expanduser() if home else (Path(base) if base else Path.home() / ".cache") / "huggingface") / "hub"


def _download_full() -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ImportError(
            'Downloading LIBERO\'s assets needs huggingface_hub: pip install "sb3-tgrpo[libero]". '
            'assets="light" needs no download.'
        ) from error
    logger.info("Downloading LIBERO's assets (%s) into the Hugging Face cache.", HUB_REPOSITORY)
    remedy = f'Set {ASSETS_VARIABLE} to a folder that holds them, or use assets="light", which needs no download.'
    try:
        path = Path(snapshot_download(HUB_REPOSITORY, repo_type="dataset"))
    except Exception as error:  # the hub client raises its own, requests' and httpx's classes
        raise FileNotFoundError(f"LIBERO's assets can't be downloaded from {HUB_REPOSITORY} ({error}). {remedy}") from error
    if missing := missing_files(path):
        raise FileNotFoundError(f"The download of {HUB_REPOSITORY} is not complete: {_describe(missing)}. {remedy}")
    return path


def cache_folder() -> Path:
    """
    :return: this package's per-user cache folder: ``SB3_TGRPO_CACHE``, else ``$XDG_CACHE_HOME/sb3_tgrpo``, else
        ``~/.cache/sb3_tgrpo``; it may not exist yet, nor be writable
    """
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "sb3_tgrpo"


@cache
def writable_cache_folder() -> Path:
    """
    :return: :func:`cache_folder`, created if need be; where it can't be written to, a temporary folder that lasts as long as
        this process
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        temporary = Path(tempfile.mkdtemp(prefix="sb3_tgrpo-"))
        atexit.register(_remove_folder, temporary, os.getpid())
        logger.warning("The cache folder %s can't be written to (%s); using %s.", folder, error, temporary)
        return temporary


def _remove_folder(folder: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a forked child, whose parent still uses it
        shutil.rmtree(folder, ignore_errors=True)


def import_libero() -> Any:
    """
    Import ``libero.libero`` without its question on standard input and without creating ``~/.libero``.

    LIBERO asks for its dataset folder when it finds no configuration file. Ours is shown to it during the import; a
    configuration of the user's own, if there is one, is in force afterwards.

    :return: the module ``libero.libero``
    :raises ImportError: if LIBERO is not installed
    """
    with _libero_lock:
        if "libero.libero" in sys.modules:
            return sys.modules["libero.libero"]
        package = importlib.util.find_spec("libero")
        if package is None or not package.submodule_search_locations:
            raise ImportError(
                'LIBERO is not installed: pip install "sb3-tgrpo[libero]", then pip install --no-deps hf-libero==0.1.4.'
            )
        previous = os.environ.get("LIBERO_CONFIG_PATH")
        own = Path(previous or "~/.libero").expanduser()
        config = _libero_config(Path(package.submodule_search_locations[0]) / "libero")
        os.environ["LIBERO_CONFIG_PATH"] = str(config.parent)
        try:
            module = importlib.import_module("libero.libero")
        finally:
            if previous is None:
                del os.environ["LIBERO_CONFIG_PATH"]
            else:
                os.environ["LIBERO_CONFIG_PATH"] = previous
        if (own / "config.yaml").is_file():
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
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(config, text.encode())
    return config


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that other processes see all of it or none."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def libero_assets(path: str | os.PathLike[str]) -> Iterator[Any]:
    """
    Within the context, LIBERO loads its models from ``path``; afterwards, from where it did before.

    LIBERO looks its assets folder up each time an environment or an object is constructed, so the context must span
    the construction (and a ``reset`` that rebuilds the model), not the use. LIBERO is imported on entry if need be (see
    :func:`import_libero`). Threads take turns; entering again inside is allowed.

    :param path: a folder in LIBERO's asset layout, e.g. ``resolve_assets("light").path``
    :return: a context manager that yields the module ``libero.libero``
    :raises FileNotFoundError: if ``path`` is not a folder
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
