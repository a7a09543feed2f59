"""The folder of a run: files that appear whole or not at all, and one process at a time."""

import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sb3_tgrpo.version import __version__

LIBRARIES = (
    "torch", "stable-baselines3", "gymnasium", "numpy", "transformers", "peft", "mujoco", "robosuite", "hf-libero", "bddl",
)  # fmt: skip


class RunFolder:
    """
    A folder with JSON files.

    :param path: created if needed.
    :raises OSError: if it can't be.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = "it is a file" if self.path.is_file() else error.strerror
            raise OSError(f"{path} can't be made a folder ({reason}): choose another one with --out.") from error

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> Any:
        """
        A JSON file's content, None if it is not there.

        :raises ValueError: if it is damaged.
        """
        file = self.path / name
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is damaged ({error}): delete it, and what it records is done again.") from error

    def write(self, name: str, content: Any) -> Path:
        """Write a JSON file."""
        return write_text(self.path / name, json.dumps(content, indent=1) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Inside, no other process may use the folder; the lock goes with the process.

        :raises OSError: if one does.
        """
        import fcntl  # not on Windows, where the rest of this module works

        with open(self.path / ".lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OSError(f"{self.path} is in use by another process: wait for it, or choose another folder.") from error
            yield


class JsonLines:
    """
    A file of one JSON object per line, appended to as things happen.

    :param path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> list[dict[str, Any]]:
        """All rows; a last line that was cut off by a crash is left out."""
        if not self.path.is_file():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def append(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rewrite(self, rows: list[dict[str, Any]]) -> None:
        """Replace all rows."""
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def write_text(path: Path, text: str) -> Path:
    """Write a text file so that it is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, path)
    except BaseException:
        os.unlink(unfinished)
        raise
    return path


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions() -> dict[str, str]:
    """Versions of what results depend on; packages that are not installed are left out."""
    found = {"sb3-tgrpo": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def environment_record() -> dict[str, Any]:
    """Versions and machine, for the record."""
    return {"versions": versions(), "platform": platform.platform(), "cores": cpu_count()}


def now() -> str:
    """The time, to the second, in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
