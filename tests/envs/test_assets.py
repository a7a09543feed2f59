"""Finding LIBERO's assets folder, and pointing LIBERO at it."""

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sb3_tgrpo.envs.libero import assets as assets_module
from sb3_tgrpo.envs.libero.assets import ASSETS_VARIABLE, missing_files, resolve_assets
from sb3_tgrpo.envs.libero.installation import CACHE_VARIABLE, import_libero, is_writable, libero_assets, writable_cache_folder
from sb3_tgrpo.envs.libero.light_mjcf import asset_files


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Hide whatever assets this machine has, and give each test a cache folder of its own."""
    monkeypatch.delenv(ASSETS_VARIABLE, raising=False)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _no_network)
    clear_caches()
    yield
    clear_caches()


def clear_caches() -> None:
    assets_module._resolve.cache_clear()
    writable_cache_folder.cache_clear()


def _no_network(repository: str, *, repo_type: str, local_files_only: bool = False) -> str:
    from huggingface_hub.errors import LocalEntryNotFoundError

    assert (repository, repo_type) == ("lerobot/libero-assets", "dataset")
    if local_files_only:
        raise LocalEntryNotFoundError("nothing in the cache")
    raise ConnectionError("no network")


def complete_folder(path: Path) -> Path:
    """A stand-in with every file name that the check asks for."""
    for name in missing_files(path):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return path


def test_unknown_kind_lists_the_valid_ones() -> None:
    with pytest.raises(ValueError, match=r"assets='heavy'.*'auto', 'full', 'light'"):
        resolve_assets("heavy")


def test_auto_falls_back_to_light_and_never_downloads(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        found = resolve_assets("auto")
        assert resolve_assets("auto") is found
    assert found.kind == "light"
    assert (found.path / "stable_hope_objects" / "milk" / "milk.xml").is_file()
    assert len([r for r in caplog.records if "asked for: auto" in r.getMessage()]) == 1
    assert "Downloading" not in caplog.text


def test_auto_prefers_a_named_full_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = complete_folder(tmp_path / "full")
    monkeypatch.setenv(ASSETS_VARIABLE, str(folder))
    assert resolve_assets("auto") == resolve_assets("full")
    assert (resolve_assets("auto").kind, resolve_assets("auto").path) == ("full", folder)
    assert resolve_assets("light").kind == "light"


@pytest.mark.parametrize("kind", ["auto", "full"])
def test_a_named_folder_must_exist_and_be_complete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    monkeypatch.setenv(ASSETS_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=f"{ASSETS_VARIABLE}=.*nowhere: no such folder"):
        resolve_assets(kind)
    folder = complete_folder(tmp_path / "full")
    (folder / "turbosquid_objects" / "yellow_book" / "yellow_book.xml").unlink()
    (folder / "stable_hope_objects" / "milk" / "milk.xml").unlink()
    monkeypatch.setenv(ASSETS_VARIABLE, str(folder))
    with pytest.raises(
        FileNotFoundError,
        match=r"2 file\(s\) missing: stable_hope_objects/milk/milk.xml, turbosquid_objects/yellow_book/yellow_book.xml\.",
    ):
        resolve_assets(kind)


def test_libero_download_folder_and_hub_cache_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cached = complete_folder(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(cached))
    assert resolve_assets("auto").kind == "light"  # nothing in the cache: the hub's client is not asked
    hub = tmp_path / "home" / ".cache" / "huggingface" / "hub"
    (hub / "datasets--lerobot--libero-assets").mkdir(parents=True)
    clear_caches()
    assert resolve_assets("auto").path == cached
    clear_caches()
    own = complete_folder(tmp_path / "home" / ".cache" / "libero" / "assets")
    assert resolve_assets("auto").path == own


def test_an_incomplete_folder_found_by_search_is_skipped_with_a_warning(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    own = complete_folder(tmp_path / "home" / ".cache" / "libero" / "assets")
    (own / "scenes" / "libero_floor_base_style.xml").unlink()
    assert resolve_assets("auto").kind == "light"
    assert "1 file(s) missing: scenes/libero_floor_base_style.xml" in caplog.text


def test_full_downloads_and_says_what_to_do_when_it_can_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf'no network\). Set {ASSETS_VARIABLE} .*assets="light"'):
        resolve_assets("full")

    def download(repository: str, *, repo_type: str, local_files_only: bool = False) -> str:
        if local_files_only:
            _no_network(repository, repo_type=repo_type, local_files_only=True)
        return str(complete_folder(tmp_path / "downloaded"))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert resolve_assets("full").path == tmp_path / "downloaded"


def test_libero_assets_restores_what_was_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    libero = import_libero()
    monkeypatch.setattr(libero, "_assets_path_cache", "before")
    inner = tmp_path / "inner"
    inner.mkdir()
    with libero_assets(tmp_path) as module:
        assert module is libero
        assert libero.get_assets_path() == str(tmp_path)
        with pytest.raises(KeyError), libero_assets(inner):
            assert libero.get_assets_path() == str(inner)
            raise KeyError
        assert libero.get_assets_path() == str(tmp_path)
    assert libero._assets_path_cache == "before"
    with pytest.raises(FileNotFoundError, match="nowhere"), libero_assets(tmp_path / "nowhere"):
        pass


@pytest.mark.parametrize("own_config", [False, True])
def test_importing_libero_asks_nothing_and_leaves_the_home_folder_alone(tmp_path: Path, own_config: bool) -> None:
    home = tmp_path / "home"
    home.mkdir()
    if own_config:
        (home / ".libero").mkdir()
        (home / ".libero" / "config.yaml").write_text("datasets: mine\n")
    before = sorted(path.relative_to(home) for path in home.rglob("*"))
    code = (
        "import os; from sb3_tgrpo.envs.libero.installation import import_libero; libero = import_libero();"
        "assert 'LIBERO_CONFIG_PATH' not in os.environ;"
        f"print(libero.get_libero_path('datasets'), '' if {own_config} else libero.get_libero_path('bddl_files'))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "LIBERO_CONFIG_PATH"} | {
        "HOME": str(home),
        CACHE_VARIABLE: str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    datasets, *rest = done.stdout.split()
    assert sorted(path.relative_to(home) for path in home.rglob("*")) == before
    if own_config:
        assert datasets == "mine"
    else:
        assert Path(rest[0]).is_dir()


def test_an_unwritable_cache_is_replaced_by_a_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv(CACHE_VARIABLE, str(blocked / "cache"))
    folder = resolve_assets("light").path
    assert (folder / "scenes" / "libero_floor_base_style.xml").is_file()
    assert tmp_path not in folder.parents
    assert "can't be written to" in caplog.text


def test_a_user_without_a_home_has_a_cache_and_light_assets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.getuid", lambda: 4_000_000)  # as in a container: the system knows no such user
    assert resolve_assets("auto").kind == "light"


def test_a_home_that_may_not_be_searched_is_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stat = Path.stat

    def denied(self: Path, **kwargs: bool) -> os.stat_result:
        if tmp_path / "home" in (self, *self.parents):
            raise PermissionError(13, "Permission denied", str(self))
        return stat(self, **kwargs)

    monkeypatch.setattr(Path, "stat", denied)
    assert resolve_assets("auto").kind == "light"
    assert is_writable(tmp_path / "home" / "new")  # asked by writing, not by looking


def test_many_processes_generate_light_assets_at_once(tmp_path: Path) -> None:
    code = "from sb3_tgrpo.envs.libero.assets import resolve_assets; print(resolve_assets('light').path)"
    command = [sys.executable, "-c", code]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    folders = {worker.communicate()[0].strip() for worker in workers}
    assert [worker.returncode for worker in workers] == [0] * 6
    (folder,) = folders
    on_disk = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    assert on_disk == asset_files()


def test_a_damaged_light_file_is_written_anew() -> None:
    folder = resolve_assets("light").path
    milk = folder / "stable_hope_objects" / "milk" / "milk.xml"
    good = milk.read_bytes()
    milk.write_bytes(good[:100])
    clear_caches()
    assert resolve_assets("light").path == folder
    assert milk.read_bytes() == good
