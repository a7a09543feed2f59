"""Rooms of the code base: an import goes to a lower row or stays in its room, wherever in a file it stands."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# From the top. A room may import the rooms of lower rows, and itself. Modules directly in sb3_tgrpo/ are rooms of their own.
ROWS = (
    ("__main__",),
    ("cli",),
    ("study",),
    ("train",),
    ("evaluation", "rewards.generation", "sft"),  # sft reads demonstrations by envs.demos
    ("baselines", "envs.demos", "rewards.verification"),
    ("tgrpo", "doctor", "rewards.episodes"),
    ("openvla", "envs.libero", "envs.experts", "rewards.program", "run_folder"),
    ("policies", "buffers", "resumable", "envs.groups", "envs.spaces", "envs.registration"),
    ("rewards.facts", "advantages", "losses", "group_env", "progress_bar"),
    ("decoding", "defaults", "files", "lazy", "processes", "settings", "version"),
)
FLOOR = {room: len(ROWS) - i for i, row in enumerate(ROWS) for room in row}

# tgrpo.py makes a group from an environment's id, and wraps a group in SB3's interface: `TGRPO("MlpPolicy", "CartPole-v1")`.
ALLOWED = {("tgrpo", "envs.groups")}
ALGORITHM = ("openvla", "tgrpo", "policies", "buffers", "advantages", "losses")


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name below ``sb3_tgrpo`` and path of each module; a package is named like its folder."""
    for folder, prefix in (("sb3_tgrpo", ""), ("envs", "envs."), ("rewards", "rewards.")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            relative = path.relative_to(ROOT / folder).with_suffix("")
            if folder != "sb3_tgrpo" or relative.parts[0] not in ("envs", "rewards"):  # the two symlinks
                yield (prefix + ".".join(part for part in relative.parts if part != "__init__")).rstrip("."), path


def room_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] in ("envs", "rewards") else parts[0]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name below ``sb3_tgrpo`` of all imports, those in functions and under TYPE_CHECKING too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "sb3_tgrpo" and not node.level:
            base = node.module.removeprefix("sb3_tgrpo").lstrip(".")
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}".lstrip(".")
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("sb3_tgrpo."):
                    yield node.lineno, alias.name.removeprefix("sb3_tgrpo.")
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: import by the full name"


NAMES = dict(modules())


def module_of(name: str) -> str | None:
    """The module that ``name`` is, or is an attribute of; None for an attribute of a package outside the rooms."""
    while name and name not in NAMES:
        name = name.rpartition(".")[0]
    return name if name not in ("", "envs", "rewards") else None


def test_every_module_is_in_a_room() -> None:
    outside = {room_of(name) for name in NAMES if name not in ("", "envs", "rewards")} - FLOOR.keys()
    assert not outside, f"rooms that no row names: {sorted(outside)}"


def test_imports_go_down() -> None:
    wrong = []
    for name, path in NAMES.items():
        if name in ("", "envs", "rewards"):  # lazy tables of public names
            continue
        room = room_of(name)
        for line, imported in imports(path):
            target = module_of(imported)
            other = room if target is None else room_of(target)
            if other != room and FLOOR[other] >= FLOOR[room] and (room, other) not in ALLOWED:
                wrong.append(f"{path.relative_to(ROOT)}:{line} ({room}) imports {target} ({other})")
            if other.startswith("envs") and room.startswith("rewards"):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: rewards import nothing of envs")
            if other.startswith(("envs", "rewards")) and room in (
                "openvla",
                "tgrpo",
                "policies",
                "buffers",
                "advantages",
                "losses",
            ):
                if (room, other) not in ALLOWED:
                    wrong.append(f"{path.relative_to(ROOT)}:{line}: algorithm and policies import no environment")
    assert not wrong, "\n".join(wrong)


def test_no_circle_within_a_room() -> None:
    below = {name: {module_of(imported) for _, imported in imports(path)} - {None, name} for name, path in NAMES.items()}
    for package in [name for name in NAMES if any(other.startswith(name + ".") for other in NAMES)] + ["", "envs", "rewards"]:
        below.pop(package, None)  # a package's lazy table of names
    while True:  # what imports none of the rest, and what none of the rest imports, is in no circle
        imported = set().union(*below.values())
        free = {name for name, targets in below.items() if not targets & below.keys() or name not in imported}
        if not free:
            break
        below = {name: targets for name, targets in below.items() if name not in free}
    assert not below, f"modules in circles: {sorted(below)}"
