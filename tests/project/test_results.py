"""The record of the results: rows, archives, and figures that are computed from them."""

import json
import lzma
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import result_tables  # noqa: E402
import results  # noqa: E402
from result_tables import Section, compare, counted, earlier_page, grid_tables, uncomputed  # noqa: E402


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All archives, unpacked."""
    folder = tmp_path_factory.mktemp("results")
    results.unpack([], folder)
    return folder


def test_rows() -> None:
    header = (results.DOCS / "runs.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header == "study,task,method,seed,mode,successes,episodes,steps,seconds,reward_digest,commit"
    rows = results.read_rows()
    assert {row["mode"] for row in rows} == {"greedy", "sampled"}
    assert all(0 <= int(row["successes"]) <= int(row["episodes"]) for row in rows)
    keys = [tuple(row[name] for name in results.KEY) for row in rows]
    assert len(set(keys)) == len(keys) > 300


def test_rows_are_those_of_the_archives(unpacked: Path) -> None:
    rows = results.read_rows()
    archived = {folder.name for folder in unpacked.iterdir()}
    assert len(archived) == 9
    for name in archived:
        stored = [row for row in rows if row["study"] == name]
        assert sorted(results.study_rows(unpacked / name), key=str) == sorted(stored, key=str), name


def test_evaluations_have_the_outcomes_that_were_played(unpacked: Path) -> None:
    played = list(unpacked.glob("*/cells/*/*/seed_*/evaluations/*/episodes.jsonl"))
    assert len(played) > 300
    for file in played:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        episodes = json.loads(file.with_name("evaluation.json").read_text(encoding="utf-8"))["episodes"]
        assert sorted((e["init_state_id"], e["success"]) for e in lines) == [
            (e["init_state_id"], e["success"]) for e in episodes
        ]


def test_packing_gives_the_same_bytes(unpacked: Path, tmp_path: Path) -> None:
    results.unpack(["temperature_0.5", "study_6"], tmp_path)
    for name in ("temperature_0.5", "study_6"):
        first, second = unpacked / name, tmp_path / name
        for file in second.rglob("*"):
            os.utime(file, (0, 0))
        packed = [results.archive_bytes(folder, results.recorded(folder)) for folder in (first, second)]
        assert packed[0] == packed[1]
        # Another version of xz may compress otherwise.
        assert lzma.decompress(packed[0]) == lzma.decompress((results.DOCS / f"{name}.tar.xz").read_bytes())


def test_a_study_is_packed_and_unpacked(unpacked: Path, tmp_path: Path) -> None:
    folder, docs = tmp_path / "study_6", tmp_path / "docs"
    docs.mkdir()
    results.unpack(["study_6"], tmp_path)
    (folder / "cells/libero_object-6/TGRPO/seed_0/checkpoint").mkdir()
    (folder / "cells/libero_object-6/TGRPO/seed_0/checkpoint/config.json").write_text("{}")
    (folder / "table1/table.md").write_text("a page")
    other = dict.fromkeys(results.HEADER, "") | {"study": "other", "seed": "3", "commit": "kept"}
    results.write_rows([other], docs)
    for _ in range(2):  # again, its rows take the place of the earlier ones
        results.pack(folder, docs)
    rows = results.read_rows(docs)
    assert rows[0] == other and len(rows) == 1 + 8
    assert (docs / "study_6/table1/table.md").read_text() == "a page"
    (again,) = results.unpack([], tmp_path / "again", docs)
    assert not list(again.rglob("checkpoint")) and not list(again.rglob("table.md"))
    assert (again / "table1/results.json").read_bytes() == (unpacked / "study_6/table1/results.json").read_bytes()
    with pytest.raises(ValueError, match="No archive of study_7"):
        results.unpack(["study_7"], tmp_path, docs)


def test_tables_do_not_depend_on_the_names_of_settings(tmp_path: Path) -> None:
    (folder,) = results.unpack(["study_6"], tmp_path)
    for file in folder.glob("cells/*/*/seed_*/config.json"):
        file.write_text('{"names": "of another version"}')
    record = json.loads((folder / "table1/study.json").read_text())
    (folder / "table1/study.json").write_text(json.dumps({**record, "config": {"names": "of another version"}}))
    assert grid_tables(folder) == []
    assert "| TGRPO | 75.0 [65.7, 82.5] |" in (folder / "table1/table.md").read_text()


def test_figures_of_a_page(unpacked: Path) -> None:
    sections = [*earlier_page(unpacked), *counted(results.read_rows())]
    assert sum(len(section.rows) for section in sections) > 100
    assert compare(sections) == [] and uncomputed(sections[:2]) == []


@pytest.mark.slow
def test_figures_of_all_pages(unpacked: Path) -> None:
    assert result_tables.write_figures(unpacked) == 0


@pytest.mark.parametrize(
    ("page", "same"),
    [
        ("It won 185/250 = 74 % [68, 79] of them, +28 points [-3, +42].", True),
        ("| **185/250 = 74 %** [68, 79] | 28 [-3, 42] |", True),
        ("It won 185/250 = 74 % [68, 79] of them, +28 points [+3, +42].", False),
        ("It won 185/250 = 74 % [68, 79] of them, -28 points [-3, +42].", False),
        ("It won 185/250 = 74 % [68, 79] of them, +28 points [-3, +42.5].", False),
        ("It won 1185/250 = 74 % [68, 79] of them, +28 points [-3, +42].", False),
        ("It won 185/250 = 74 % of them, +28 points [-3, +42].", False),
    ],
)
def test_a_page_with_another_figure_is_found(tmp_path: Path, page: str, same: bool) -> None:
    docs = tmp_path / "docs/results"
    docs.mkdir(parents=True)
    (docs / "page.md").write_text(page)
    section = Section("docs/results/page.md", "toy", [["TGRPO", "185/250 = 74 % [68, 79]", "+28 [-3, +42]"]])
    assert (compare([section], docs) == []) == same
    (docs / "page.md").write_text(page + " And it won by 12 [+1, +23].")
    assert len(uncomputed([section], docs)) >= 1


def test_few_files_are_tracked() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) <= 600, "results belong into an archive: scripts/results.py pack"
