"""The package as others get it: a wheel installed elsewhere, and light imports."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {"sb3_tgrpo": ROOT / "sb3_tgrpo", "sb3_tgrpo.envs": ROOT / "envs", "sb3_tgrpo.rewards": ROOT / "rewards"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from the tree, unpacked into a folder of its own."""
    out = tmp_path_factory.mktemp("wheel")
    source = out / "source"
    # Build from a copy of what git tracks: a stray build/ folder must not help, nor be left behind
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        origin = ROOT / name
        if name.startswith(("tests/", "docs/")) or not (origin.is_symlink() or origin.exists()):
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_symlink():
            target.symlink_to(origin.readlink())
        else:
            target.write_bytes(origin.read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(out / "site")
    return out / "site"


def test_wheel_carries_every_module_and_data_file(wheel: Path) -> None:
    for package, folder in FOLDERS.items():
        tracked = subprocess.run(["git", "ls-files", "-z"], cwd=folder, capture_output=True, text=True, check=True).stdout
        for name in filter(None, tracked.split("\0")):
            if package == "sb3_tgrpo" and name in ("envs", "rewards"):  # the symlinks
                continue
            packed = wheel.joinpath(*package.split("."), name)
            assert packed.exists(), f"{name} of {package} is not in the wheel: add it to pyproject.toml"


def test_wheel_imports_elsewhere(wheel: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.path.insert(0, sys.argv[1])
import sb3_tgrpo, sb3_tgrpo.envs, sb3_tgrpo.rewards
for module in (sb3_tgrpo, sb3_tgrpo.envs, sb3_tgrpo.rewards):
    assert module.__file__.startswith(sys.argv[1]), module.__file__
for module in (sb3_tgrpo, sb3_tgrpo.envs, sb3_tgrpo.rewards):
    for name in module.__all__:
        getattr(module, name)
"""
    subprocess.run([sys.executable, "-c", code, str(wheel)], cwd=tmp_path, check=True)


def modules_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(' '.join(sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"transformers", "peft", "libero", "robosuite", "mujoco", "anthropic"}


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import sb3_tgrpo", HEAVY | {"torch", "stable_baselines3"}),
        ("import sb3_tgrpo.envs", HEAVY | {"torch"}),
        ("from sb3_tgrpo.envs import SyncGroupVectorEnv", HEAVY | {"torch"}),
        ("import sb3_tgrpo.rewards", HEAVY | {"torch"}),
        ("from sb3_tgrpo.rewards import RewardProgram, load_reward", HEAVY | {"torch"}),
        ("from sb3_tgrpo import TGRPO", HEAVY),
        ("from sb3_tgrpo import TGRPO; from sb3_tgrpo.envs import make_group_env", HEAVY),
    ],
)
def test_imports_are_light(statement: str, absent: set[str]) -> None:
    loaded = {name.split(".")[0] for name in modules_after(statement)}
    assert not loaded & absent


def test_second_import_name_is_refused() -> None:
    for name in ("envs", "rewards", "envs.groups"):
        result = subprocess.run([sys.executable, "-c", f"import {name}"], cwd=ROOT, capture_output=True, text=True)
        assert result.returncode != 0 and "Import this package as sb3_tgrpo." in result.stderr


def test_constraints_hold_names_and_versions_only() -> None:
    for line in ROOT.joinpath("constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line), line
