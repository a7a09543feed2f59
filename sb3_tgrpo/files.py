"""Files that appear whole or not at all, JSON lines, and a lock. Standard library only: every room may import this."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    A name to write a file under, which becomes ``path`` if the block ends without an exception.

    A reader sees the old file or the new one, never a part. Interrupted writers leave nothing behind but after ``SIGKILL``.

    :param path: File to write; its folder is made.
    :return: Path of the unfinished file in the same folder, with the same suffix. It does not exist yet.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.", suffix=".part") as folder:
        unfinished = Path(folder) / path.name
        yield unfinished
        unfinished.chmod(0o666 & ~_umask())  # some writers make files for their owner alone
        os.replace(unfinished, path)


def atomic_write(path: str | os.PathLike[str], content: str | bytes) -> Path:
    """
    Write a file at once.

    :param path: File to write; its folder is made.
    :param content: Text (UTF-8) or bytes.
    :return: The path.
    """
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    return Path(path)


def atomic_copytree(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """
    Copy a folder so that ``target`` is there whole or not at all.

    :param source: Folder to copy.
    :param target: New folder.
    :raises OSError: If ``target`` exists and is not empty.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.", suffix=".part") as folder:
        os.replace(shutil.copytree(source, Path(folder) / target.name), target)


@contextmanager
def locked(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """
    Inside the block no other process may hold the same lock. The lock ends with the process.

    :param path: Lock file, made if needed.
    :param what: What the lock protects, for the message.
    :raises OSError: If another process holds the lock.
    """
    import fcntl  # not on Windows, where the rest of this module works

    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(f"{what} is in use by another process: wait for it, or choose another folder.") from error
        yield


class JsonLines:
    """
    A file of one JSON object per line, appended to as things happen.

    :param path: The file.
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
        atomic_write(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
