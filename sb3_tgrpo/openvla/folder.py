"""Files of a checkpoint folder: JSON, the list of weights, and a fingerprint of all of them. Without torch."""

import hashlib
import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from sb3_tgrpo.files import atomic_write

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"

_LARGE = 1 << 28
"""Digests of files from this size on are kept on disk: reading 15 GB takes half a minute."""


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object; anything else is a ValueError."""
    content = path.read_bytes()
    try:
        found = json.loads(content)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged (not JSON: {error}). Download the checkpoint again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged (it holds no JSON object but {content[:40]!r}). Download the checkpoint again.")
    return found


def weight_map(folder: Path) -> dict[str, str]:
    """File of every tensor, as the index has it, or as the only file does where there is no index."""
    if (folder / INDEX).is_file():
        found = read_json(folder / INDEX).get("weight_map")
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
            raise ValueError(
                f"{folder / INDEX} is damaged (it has no weight_map from tensors to files). Download the checkpoint again."
            )
        return found
    if not (folder / SINGLE).is_file():
        raise ValueError(
            f"{folder} is not a complete OpenVLA checkpoint: it has neither {INDEX} nor {SINGLE}. Download it again."
        )
    return dict.fromkeys(open_shard(folder / SINGLE).keys(), SINGLE)


def weight_files(folder: Path) -> list[str]:
    """Names of the files of weights, all of which are there."""
    files = sorted(set(weight_map(folder).values()))
    if absent := [name for name in files if not (folder / name).is_file()]:
        raise ValueError(f"{folder} lacks {', '.join(absent)}, named in {INDEX}. Download the checkpoint again.")
    return files


def open_shard(path: Path, framework: str = "numpy") -> Any:
    """A safetensors file. Opening it checks its header against its length, and reads no weights."""
    from safetensors import safe_open

    try:
        return safe_open(str(path), framework=framework)
    except Exception as error:  # safetensors raises its own type, an OSError or a RuntimeError, by kind of damage
        raise ValueError(f"{path} is truncated or damaged ({error}). Download the checkpoint again.") from error


def identity(folder: Path) -> str:
    """A fingerprint that differs as soon as any tensor, statistic or setting does."""
    digest = hashlib.sha256(b"whole files\n")
    settings = ("config.json", "dataset_statistics.json", "preprocessor_config.json", "tokenizer.json")
    for name in [*(name for name in settings if (folder / name).is_file()), *weight_files(folder)]:
        digest.update(f"{name}:{file_digest(folder / name)}\n".encode())
    return digest.hexdigest()


def identity_by_ends(folder: Path) -> str:
    """The fingerprint of versions before 0.2, which sees the first 128 KB and the last 64 KB of each file of weights."""
    digest = hashlib.sha256()
    for name in ("config.json", "dataset_statistics.json"):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    for name in weight_files(folder):
        size = (folder / name).stat().st_size
        digest.update(f"{name}:{size}".encode())
        with open(folder / name, "rb") as file:
            digest.update(file.read(1 << 17))
            file.seek(max(size - (1 << 16), 0))
            digest.update(file.read())
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a whole file. Large files are read once as long as their path, size and time of change stay the same."""
    path = path.resolve()
    status = path.stat()
    if status.st_size < _LARGE:
        return _read_digest(path)
    return _large_digest(path, status.st_size, status.st_mtime_ns)


@cache
def _large_digest(path: Path, size: int, changed: int) -> str:
    name = hashlib.sha256(f"{path}\n{size}\n{changed}".encode()).hexdigest()
    folder = os.environ.get("SB3_TGRPO_CACHE") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "sb3_tgrpo")
    kept = Path(os.path.expanduser(folder), "digests", name)
    with suppress(OSError):  # there is none, or it may not be read
        if len(text := kept.read_text(encoding="ascii", errors="replace")) == 64:
            return text
    digest = _read_digest(path)
    with suppress(OSError):  # read-only or full: this process remembers it
        atomic_write(kept, digest)
    return digest


def _read_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
