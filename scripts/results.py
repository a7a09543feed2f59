"""
The record of the results: an archive and rows of ``docs/results/runs.csv`` for each study.

    python scripts/results.py                        # make results: unpack all, compute the figures of the pages again
    python scripts/results.py unpack study_40k       # one study, into runs/results/study_40k
    python scripts/results.py pack runs/study_40k    # maintainers: a finished study, into docs/results

``tables`` needs the package. ``pack`` and ``unpack`` need nothing but Python.
"""

import argparse
import csv
import io
import json
import lzma
import re
import shlex
import shutil
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs/results"
UNPACKED = Path(__file__).parents[1] / "runs/results"
RUNS = "runs.csv"
HEADER = (
    "study", "task", "method", "seed", "mode", "successes", "episodes", "steps", "seconds", "reward_digest", "commit",
)  # fmt: skip
KEY = HEADER[:5]
BASE = "SFT"
"""Method of the rows of a base policy, the policy before training."""
PAGES = ("table.md", "greedy.png", "T1.png")
"""What stays outside the archive, for readers: the tables of a grid and their pictures."""

Row = dict[str, str]


# ---------------------------------------------------------------------- archives


def recorded(folder: Path, everything: bool = False) -> list[Path]:
    """
    Files of a study that its archive holds: the JSON records, without weights, videos and logs.

    :param folder: Folder of the study.
    :param everything: Whether to take all files, for a folder that is a checkpoint.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    if everything:
        return files
    left_out = {"checkpoint", "checkpoints", "start", "videos"}
    return [
        file for file in files if file.suffix in (".json", ".jsonl") and not left_out & set(file.relative_to(folder).parts)
    ]


def archive_bytes(folder: Path, files: Sequence[Path]) -> bytes:
    """
    A tar.xz of some files of a folder. Packing twice gives the same bytes: members are in order, without times and owners.

    :param folder: Folder that the names begin with.
    :param files: Files to pack.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in sorted(files, key=lambda file: file.relative_to(folder).as_posix()):
            content = file.read_bytes()
            member = tarfile.TarInfo(f"{folder.name}/{file.relative_to(folder).as_posix()}")
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return lzma.compress(buffer.getvalue(), preset=9 | lzma.PRESET_EXTREME)


def unpack(names: Sequence[str], out: Path, docs: Path = DOCS) -> list[Path]:
    """
    Unpack archives.

    :param names: Names of studies; all where empty.
    :param out: Folder to unpack into, one folder per study. What lies in a study's folder already is replaced.
    :param docs: Folder of the archives.
    :return: Folders of the studies.
    :raises ValueError: If there is no such archive.
    """
    known = {file.name.removesuffix(".tar.xz"): file for file in sorted(docs.glob("*.tar.xz"))}
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"No archive of {', '.join(unknown)} in {docs}. Available: {', '.join(known)}.")
    for name in names or known:
        shutil.rmtree(out / name, ignore_errors=True)
        with tarfile.open(known[name]) as archive:
            archive.extractall(out, filter="data")
    return [out / name for name in names or known]


# ---------------------------------------------------------------------- runs.csv


def read_rows(docs: Path = DOCS) -> list[Row]:
    """Rows of ``runs.csv``, none without the file."""
    file = docs / RUNS
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def write_rows(rows: Sequence[Row], docs: Path = DOCS) -> None:
    """
    Write ``runs.csv``, sorted by its first five columns.

    :param rows: Rows with the columns of :data:`HEADER`.
    :param docs: Folder of the file.
    """
    with (docs / RUNS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, HEADER, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: [int(row[name]) if name == "seed" else row[name] for name in KEY]))


def study_rows(folder: Path) -> list[Row]:
    """
    One row for each evaluation of a trained policy or of the base policy in a study's folder.

    What a cell did not record is empty. The files are read as plain JSON, not as today's settings: they keep the field names
    of the version that wrote them.

    :param folder: Folder of the study.
    """
    found: dict[tuple[str, ...], Row] = {}
    for cell in sorted(folder.glob("cells/*/*/seed_*")):
        for row in _cell_rows(folder, cell):
            found.setdefault(tuple(row[name] for name in KEY), row)
    return list(found.values())


def _cell_rows(folder: Path, cell: Path) -> Iterator[Row]:
    task, method, seed = cell.parts[-3], cell.parts[-2], cell.parts[-1].removeprefix("seed_")
    result, setup = (_json(cell / f"{name}.json") or {} for name in ("results", "setup"))
    row = dict.fromkeys(HEADER, "") | {"study": folder.name, "task": task, "method": method, "seed": seed}
    row["steps"] = str(result.get("timesteps", "0" if method == BASE else ""))
    row["seconds"] = f"{result['seconds']['total']:.1f}" if "seconds" in result else ""
    row["reward_digest"] = (setup.get("reward") or "")[:12]
    row["commit"] = _commit(folder, cell)
    evaluations = sorted(cell.glob("evaluations/after_*/evaluation.json"))
    for file in evaluations:
        evaluation = _json(file)
        played = {"mode": "greedy" if evaluation["deterministic"] else "sampled"}
        paid = re.search(r"spec ([0-9a-f]{12})", str(evaluation["protocol"].get("env_kwargs", {}).get("reward")))
        if not row["reward_digest"] and paid:  # earlier versions wrote it into the evaluation alone
            played["reward_digest"] = paid[1]
        outcomes = [episode["success"] for episode in evaluation["episodes"]]
        yield row | played | {"successes": str(sum(outcomes)), "episodes": str(len(outcomes))}
    if not evaluations:  # of some runs only the report was kept: counts, without the episodes
        for name, mode in result["modes"].items():
            played = {"mode": "greedy" if name == "greedy" else "sampled"}
            for when, method_played in (("after", method), ("before", BASE)):
                counts = {column: str(mode[when][column]) for column in ("successes", "episodes")}
                base = {"method": BASE, "steps": "0", "seconds": ""} if when == "before" else {}
                yield row | played | counts | base | {"method": method_played}


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _commit(folder: Path, cell: Path) -> str:
    """
    Commit that a cell was finished by: that of its study's latest call before it that names its method and seed. A cell that
    was copied from another study, which lies beside this one, has that study's. Empty for a cell that ``sb3-tgrpo train``
    ran, which does not record its commit.
    """
    result, run = _json(cell / "results.json"), _json(cell / "run.json")
    if not result or not run or "--config" not in (run["command"] or ""):
        return ""
    method, seed = cell.parts[-2], cell.parts[-1].removeprefix("seed_")
    for study in (folder, *sorted(other for other in folder.parent.iterdir() if other != folder)):
        same = study / cell.relative_to(folder) / "results.json"
        if not same.is_file() or same.read_bytes() != (cell / "results.json").read_bytes():
            continue
        records = [_json(file) for file in study.glob("*/study.json")]
        calls = [call for record in records for call in record["calls"] if call["commit"] and call["command"]]
        for call in sorted(calls, key=lambda call: (call["at"], call["command"]), reverse=True):
            words = shlex.split(call["command"])
            named = method in _values(words, "--methods") and seed in _values(words, "--seeds")
            if named and call["at"] <= result["finished"]:
                return str(call["commit"])[:12]
    return ""


def _values(words: Sequence[str], option: str) -> list[str]:
    if option not in words:
        return []
    rest = list(words[words.index(option) + 1 :])
    return rest[: next((k for k, word in enumerate(rest) if word.startswith("--")), len(rest))]


def pack(folder: Path, docs: Path = DOCS, everything: bool = False) -> Path:
    """
    Pack a study: its archive, its rows and the pages of its grids.

    :param folder: Folder of the study, whose name is that of the archive.
    :param docs: Folder of the archives.
    :param everything: Whether to pack all files, for a folder that is a checkpoint.
    :return: The archive.
    :raises ValueError: If the folder has nothing to pack.
    """
    files = recorded(folder, everything)
    if not files:
        raise ValueError(f"{folder} has no JSON files to pack: pass the folder of a study.")
    archive = docs / f"{folder.name}.tar.xz"
    archive.write_bytes(archive_bytes(folder, files))
    rows = [row for row in read_rows(docs) if row["study"] != folder.name]
    write_rows([*rows, *study_rows(folder)], docs)
    for page in (page for name in PAGES for page in folder.glob(f"*/{name}")):
        (docs / folder.name / page.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, docs / folder.name / page.parent.name / page.name)
    return archive


def main() -> int:
    """Exit status 1 where a page has other figures than the record, 2 where the arguments are wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command")
    packing = commands.add_parser("pack", help="pack finished studies into docs/results")
    packing.add_argument("folders", nargs="+", type=Path, help="folders of studies")
    packing.add_argument("--everything", action="store_true", help="all files, for a folder that is a checkpoint")
    unpacking = commands.add_parser("unpack", help="unpack studies")
    unpacking.add_argument("studies", nargs="*", help="names of studies; all without any")
    tables = commands.add_parser("tables", help="unpack all, compute the figures of the pages and compare (default)")
    for command in (unpacking, tables):
        command.add_argument("--out", type=Path, default=UNPACKED, help="folder to unpack into (default: runs/results)")
    arguments = parser.parse_args(sys.argv[1:] or ["tables"])
    try:
        if arguments.command == "pack":
            for folder in arguments.folders:
                print(pack(folder.resolve(), everything=arguments.everything))
        elif arguments.command == "unpack":
            print(*unpack(arguments.studies, arguments.out), sep="\n")
        else:
            from result_tables import write_figures

            unpack([], arguments.out)
            return write_figures(arguments.out)
    except ValueError as error:
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
