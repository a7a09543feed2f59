"""The folder of a run: JSON files, the settings that they belong to, and one process at a time."""

import json
import os
import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from sb3_tgrpo.files import atomic_write, locked
from sb3_tgrpo.version import __version__

LIBRARIES = (
    "torch", "stable-baselines3", "gymnasium", "numpy", "transformers", "peft", "mujoco", "robosuite", "hf-libero", "bddl",
    "h5py",
)  # fmt: skip


class RunFolder:
    """
    A folder with JSON files.

    :param path: Path of the folder, made if needed.
    :raises OSError: If it can't be made.
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

        :param name: Name of the file.
        :raises ValueError: If it is damaged.
        """
        file = self.path / name
        if not file.is_file():
            return None
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is damaged ({error}): put an intact copy back, or choose another folder.") from error

    def write(self, name: str, content: Any) -> Path:
        """
        Write a JSON file.

        :param name: Name of the file.
        :param content: Content that JSON can hold.
        """
        return atomic_write(self.path / name, json.dumps(content, indent=1) + "\n")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Inside, no other process may use the folder; the lock goes with the process.

        :raises OSError: If one does.
        """
        with locked(self.path / ".lock", str(self.path)):
            yield

    def claim(
        self,
        name: str,
        settings: Mapping[str, Any],
        *,
        results: Iterable[str],
        may_change: Collection[str] = (),
        defaults: Mapping[str, Any] | None = None,
        upgrade: Callable[[dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        """
        Bind the folder's results to settings: record the settings before there are results, refuse others afterwards.

        :param name: JSON file that records the settings.
        :param settings: Settings that JSON can hold, nested or not; tuples count as lists.
        :param results: Glob patterns of the files that were computed with the settings. While there are none, new settings
            replace the record: a call that failed at once binds nothing.
        :param may_change: Settings that results do not depend on, by their dotted names.
        :param defaults: Values of settings that a record of an older version lacks.
        :param upgrade: Function that gives a record of an older version today's names and defaults.
        :raises ValueError: If there are results of other settings, naming each difference with both values; or results
            without their record.
        """
        new = json.loads(json.dumps(settings))
        old = self.read(name)
        found = next((file for pattern in results for file in self.path.glob(pattern)), None)
        if found is None:
            self.write(name, new)
            return
        if old is None:
            raise ValueError(
                f"{self.path} holds {found.relative_to(self.path)}, but {name}, which records its settings, is missing: "
                "put the file back, or choose another folder."
            )
        if upgrade is not None:
            old = json.loads(json.dumps(upgrade(old)))
        then = {**flat(json.loads(json.dumps(defaults or {}))), **flat(old)}
        if changed := [text for text in differences(then, flat(new)) if text.split(" ")[0] not in may_change]:
            raise ValueError(f"{self.path} was made with other settings ({'; '.join(changed)}). Choose another folder.")


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """
    Nested settings by their dotted names.

    :param settings: Mapping of names to values or mappings.
    :param prefix: Text before each name.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """
    Settings in which two flat mappings differ, as texts such as ``"seed was 0, is 1"``.

    :param then: Earlier settings.
    :param now: Later settings.
    """
    absent = object()
    names = [name for name in {**then, **now} if then.get(name, absent) != now.get(name, absent)]
    return [f"{name} was {then.get(name, 'not set')!r}, is {now.get(name, 'not set')!r}" for name in names]


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
