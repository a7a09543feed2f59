"""Where LIBERO's models come from: finding an assets folder and pointing LIBERO at it.

LIBERO loads its meshes, textures and MJCF files from one folder. ``"full"`` is LIBERO's own folder, ``"light"`` the
built-in one of :mod:`sb3_tgrpo.envs.libero.light_assets`; both have the same layout, so all that differs is the path.
"""

import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal, get_args

from sb3_tgrpo.envs.libero.installation import libero_assets, user_cache  # noqa: F401  (imported from here by others)
from sb3_tgrpo.envs.libero.light_assets import light_assets_folder

logger = logging.getLogger(__name__)

AssetsKind = Literal["full", "light"]
AssetsChoice = Literal["auto", "full", "light"]

ASSETS_VARIABLE = "SB3_TGRPO_LIBERO_ASSETS"
HUB_REPOSITORY = "lerobot/libero-assets"


@dataclass(frozen=True)
class Assets:
    """
    A folder in LIBERO's asset layout.

    :param kind: ``"full"`` (LIBERO's own meshes and textures) or ``"light"`` (built in, primitives only).
    :param path: Folder.
    """

    kind: AssetsKind
    path: Path


def resolve_assets(kind: str = "auto") -> Assets:
    """
    Find the folder that LIBERO's models are loaded from.

    ``"full"`` takes the first of: the folder named by ``SB3_TGRPO_LIBERO_ASSETS``; the folder LIBERO itself would use
    (set by the running program, inside the installed package, or its own download folder); the Hugging Face cache of
    ``lerobot/libero-assets``; and downloads the latter when there is none. ``"light"`` is generated into a per-user
    cache folder on first use. ``"auto"`` is full if found on this machine, else light; it never downloads.

    The choice is logged once per process.

    :param kind: ``"auto"``, ``"full"`` or ``"light"``.
    :return: The kind found (never ``"auto"``) and its folder.
    :raises ValueError: If there is no such kind.
    :raises FileNotFoundError: If the folder named by ``SB3_TGRPO_LIBERO_ASSETS`` is missing or lacks files, or if ``"full"``
        can't be downloaded.
    """
    if kind not in get_args(AssetsChoice):
        raise ValueError(f"assets={kind!r}: choose one of {', '.join(map(repr, get_args(AssetsChoice)))}.")
    return _resolve(kind, os.environ.get(ASSETS_VARIABLE) or None)


@cache
def _resolve(kind: str, named_folder: str | None) -> Assets:
    if kind == "light":
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
    """Files that LIBERO's 130 tasks load and ``folder`` lacks, as paths relative to it."""
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
        if not os.path.isdir(path):  # Path.is_dir raises where this user may not look
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
    home = os.path.expanduser("~")
    if os.path.isabs(home):
        yield Path(home) / ".cache" / "libero" / "assets"
    if not os.path.isdir(_hub_cache() / f"datasets--{HUB_REPOSITORY.replace('/', '--')}"):
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
    return (Path(home).expanduser() if home else (user_cache() or Path()) / "huggingface") / "hub"


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
