"""``sb3-tgrpo study``: checks before anything runs, cells, interruption."""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch as th
from studies import CELL, ENVS, TOY, environ, study_arguments, toy

from sb3_tgrpo import TGRPO
from sb3_tgrpo.cli import main
from sb3_tgrpo.cli.study import add_parser, study_from
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.openvla.checkpoint import Checkpoint
from sb3_tgrpo.openvla.tiny import save_tiny
from sb3_tgrpo.rewards import load_reward
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.study import runner as study_runner
from sb3_tgrpo.study.design import Cell, Study, is_finished
from sb3_tgrpo.study.runner import StudyError, check_cells, commit, run_study, write_tables
from sb3_tgrpo.study.view import StudyProgress, StudyView
from sb3_tgrpo.train.config import AlgorithmConfig, TrainConfig, shipped_base_policy


def test_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--tasks",
        "libero_object-3",
        "--seeds",
        "4",
        "--set",
        "PPO.gamma=0.9",
        "--budget",
        "500",
        "--out",
        str(tmp_path),
    ]
    assert main(["study", "table1", *arguments, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "to run    PPO, libero_object-3, seed 4" in shown and "was taught to 'pick up the chocolate pudding" in shown
    assert main(["study", "table1", *arguments, "--set", "gamma:0.9"]) == 1
    assert "METHOD.NAME=VALUE" in capsys.readouterr().err


def test_repeated_flags_add_up() -> None:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    given = "study table1 --tasks libero_object-3 --tasks libero_object-4 --methods SFT --methods PPO"
    study = study_from(parser.parse_args([*given.split(), "--set", "n_epochs=2", "--set", "PPO.gamma=0.9", "batch_size=64"]))
    assert [env.split("-")[-2] for env in study.envs] == ["3", "4"]
    assert (study.config.algorithm.n_epochs, study.config.algorithm.batch_size) == (2, 64)
    assert study.overrides == {"PPO": {"gamma": 0.9}} and study.methods == ("SFT", "PPO")


@pytest.mark.parametrize(("workers", "given", "threads"), [(1, None, None), (2, None, 1), (2, 3, 3)])
def test_cells_at_once_share_the_cores(
    workers: int, given: int | None, threads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_tgrpo.study.runner.subprocess.Popen", lambda *args, **kwargs: None)
    cell = Study("table1", toy(update_threads=given), ("vla_toy:Toy-v0",), ("SFT",)).cells()[0]
    study_runner._start(cell, None, RunFolder(tmp_path), workers)
    assert RunFolder(tmp_path).read(f"{cell.name}/cell.json")["update_threads"] == threads


def test_study_folder(finished: Path) -> None:
    results = RunFolder(finished).read("table1/results.json")
    assert results["budget"] == 40 and not results["missing"] and [c["method"] for c in results["cells"]] == ["SFT", "TGRPO"]
    assert results["cells"][0]["timesteps"] == 0 and results["cells"][1]["timesteps"] >= 40
    assert set(results["modes"]) == {"greedy", "T=1"} and set(results["modes"]["greedy"]) == {"SFT", "TGRPO"}
    record = RunFolder(finished).read("table1/study.json")
    (call,) = record["calls"]
    assert call["command"].startswith("sb3-tgrpo study table1") and call["hardware"]["cpu"] and call["versions"]["torch"]
    text = (finished / "table1/table.md").read_text()
    assert "| TGRPO |" in text and "Tuning: none" in text and "Base policy: vla_toy_Toy: tiny" in text
    assert (finished / "table1/greedy.png").is_file() and (finished / "table1/T1.png").is_file()
    # The start policy was played once; the other cell has taken its outcomes over.
    copies = [finished / f"cells/vla_toy_Toy/{m}/seed_0/evaluations/before_T1/evaluation.json" for m in ("SFT", "TGRPO")]
    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert "evaluate before, greedy" in (finished / CELL / "log.txt").read_text()
    assert "(done before)" in (finished / CELL / "log.txt").read_text()
    assert json.loads((finished / CELL / "config.json").read_text())["seed"] == 0
    assert json.loads((finished / CELL / "setup.json").read_text()) == {
        "start": Checkpoint("tiny").identity,
        "assets": "none",
        "reward": None,
    }


def test_finished_cells_are_not_run_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("a cell was started")

    monkeypatch.setattr("sb3_tgrpo.study.runner._start", never)
    assert main(study_arguments(finished)) == 0
    assert main([*study_arguments(finished), "--tables"]) == 0
    assert main([*study_arguments(finished), "kl_coef=0.5"]) == 1  # cells of other settings
    refusal = capsys.readouterr().err  # of TGRPO's: nothing of training changes what the start policy reached
    assert "TGRPO/seed_0 was made with other settings (algorithm.kl_coef was 0.0, is 0.5)" in refusal
    assert main([*study_arguments(finished), "max_episode_steps=7"]) == 1
    assert "SFT/seed_0 was made with other settings (task.max_episode_steps was" in capsys.readouterr().err


def test_finished_cells_stay_true_when_settings_change_that_their_method_does_not_use(tmp_path: Path) -> None:
    root = RunFolder(tmp_path)

    def cells(**settings: Any) -> dict[str, Cell]:
        study = Study("table1", TrainConfig().updated(settings), ENVS[:1], ("PPO", "GRPO"), (0,))
        return {cell.method: cell for cell in study.cells()}

    for cell in cells().values():
        root.write(f"{cell.name}/config.json", cell.config.to_dict())
        root.write(f"{cell.name}/results.json", {})
    check_cells([*cells(beta=0.5).values()], root)
    check_cells([cells(kl_coef=0.5)["SFT"], cells(kl_coef=0.5)["PPO"], cells(n_epochs=9)["SFT"]], root)
    for wrong in (cells(kl_coef=0.5)["GRPO"], cells(n_epochs=9)["PPO"], cells(joint_noise=0.5)["SFT"]):
        with pytest.raises(ValueError, match=f"{wrong.method}/seed_0 was made with other settings"):
            check_cells([wrong], root)
    ppo = cells()["PPO"]
    root.write(f"{ppo.name}/config.json", ppo.config.updated({"algo": "trpo"}).to_dict())
    with pytest.raises(ValueError, match=r"algorithm\.algo was 'trpo', is 'ppo'"):
        check_cells([ppo], root)
    root.write(f"{ppo.name}/config.json", ppo.config.to_dict())
    (root / ppo.name / "results.json").unlink()
    check_cells([cells(kl_coef=0.5)["PPO"]], root)  # nothing of it was played
    atomic_write(root / ppo.name / "evaluations/before_greedy/episodes.jsonl", "")
    with pytest.raises(ValueError, match="kl_coef was"):  # to go on it would have to be the same in all
        check_cells([cells(kl_coef=0.5)["PPO"]], root)


def test_a_checkpoint_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    root = RunFolder(tmp_path)
    study = Study("table1", TrainConfig(), ("LIBERO/libero_object-8-v0",), ("TGRPO",), (0,))
    cell = study.cells()[0]
    root.write(f"{cell.name}/config.json", cell.config.to_dict())
    atomic_write(root / cell.name / "evaluations/before_greedy/episodes.jsonl", "")
    root.write(f"{cell.name}/setup.json", {"start": Checkpoint(shipped_base_policy()).identity, "assets": "light"})
    check_cells([cell], root)
    root.write(f"{cell.name}/setup.json", {"start": "an earlier one", "assets": "light"})
    with pytest.raises(ValueError, match=r"SFT/seed_0 started from another policy than .* holds now"):
        check_cells([cell], root)


def test_cells_of_an_earlier_reward_are_tabled_and_not_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = RunFolder(tmp_path)
    study = Study("table1", TrainConfig(), ("LIBERO/libero_object-8-v0",), ("TGRPO", "TGRPO-sparse"), (0,))
    started: list[Cell] = []
    monkeypatch.setattr(study_runner._Run, "finish", lambda run: started.extend(run.cells) or {})
    monkeypatch.setattr("sb3_tgrpo.study.tables.write_results", lambda study, root: {})
    cells = study.cells()
    rewards = [None if cell.method == "TGRPO-sparse" else load_reward("libero_object-8").sha256 for cell in cells]
    for newer, runs in (("", True), ("an older one", False), (None, True)):
        for cell, reward in zip(cells, rewards, strict=True):
            root.write(f"{cell.name}/config.json", cell.config.to_dict())
            atomic_write(root / cell.name / "evaluations/before_greedy/episodes.jsonl", "")
            setup = {"start": Checkpoint(shipped_base_policy()).identity, "assets": "light", "reward": reward}
            if newer is None:  # written before rewards were noted
                del setup["reward"]
            elif newer and reward:
                setup["reward"] = newer
            root.write(f"{cell.name}/setup.json", setup)
        write_tables(study, tmp_path)
        started.clear()
        if runs:
            run_study(study, tmp_path)
            assert started
        else:
            with pytest.raises(ValueError, match=r"was run with another version of the reward, an older"):
                run_study(study, tmp_path)
            assert not started


class Recorder(StudyView):
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[StudyProgress] = []
        self.lines: list[str] = []

    def print(self, text: str) -> None:
        self.lines.append(text)

    def refresh(self, progress: StudyProgress) -> None:
        self.seen.append(progress)


def test_cells_go_on_with_the_settings_that_they_have(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "cells", tmp_path / "cells")
    root = RunFolder(tmp_path)
    study = Study("table1", TrainConfig().updated(TOY), (TOY["env"],), ("TGRPO",), (0,))
    cells = study.cells()
    assert all(is_finished(cell, root) for cell in cells)
    check_cells(cells, root)
    # Written before a setting was there, a configuration has its default.
    stored = root.read(f"{CELL}/config.json")
    newer = next(f.name for f in fields(AlgorithmConfig) if f.name not in TOY and stored["algorithm"][f.name] == f.default)
    del stored["algorithm"][newer]
    root.write(f"{CELL}/config.json", stored)
    check_cells(cells, root)
    others = replace(study, config=study.config.updated({"total_timesteps": 80}))
    with pytest.raises(ValueError, match=r"other settings \(algorithm.total_timesteps was 40, is 80\)"):
        check_cells(others.cells(), root)


def test_a_view_is_told_how_cells_stand(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_runner, "_start", partial(start_pretended, tmp_path / "study", finished / CELL))
    view = Recorder()
    config = TrainConfig().updated(TOY)
    study = Study("table1", config, (TOY["env"],), ("SFT", "TGRPO", "PPO"), (0,))
    run_study(study, tmp_path / "study", view=view)
    assert [progress.total for progress in view.seen] == [3] * len(view.seen)
    numbers = [progress.done for progress in view.seen]
    assert numbers == sorted(numbers) and set(numbers) == {0, 1, 2, 3}
    lines = {(cell.name, cell.line) for progress in view.seen for cell in progress.running}
    assert ("PPO, vla_toy_Toy, seed 0", "PPO  20/40 steps") in lines
    # The start policy's seconds say nothing of how long the others take.
    assert [progress.seconds_left is None for progress in view.seen] == [done < 2 for done in numbers]


def start_pretended(folder: Path, finished: Path, cell: Cell, *_: object) -> "subprocess.Popen[bytes]":
    """A process that says how it stands and is finished half a second later."""
    place = folder / cell.name
    place.mkdir(parents=True)
    (place / "log.txt").write_text(f"start policy\n{cell.method}  20/40 steps\n\n")
    script = "import shutil, sys, time; time.sleep(0.5); shutil.copytree(*sys.argv[1:], dirs_exist_ok=True)"
    return subprocess.Popen([sys.executable, "-c", script, str(finished), str(place)], stdin=subprocess.PIPE)


def test_commit_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a repository that the environment with the package lies in."""

    def git(*arguments: str) -> str:
        named = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", str(tmp_path), *arguments]
        return subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()

    installed = tmp_path / "venv/site-packages/sb3_tgrpo/study.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    (tmp_path / "thesis.tex").write_text("")
    monkeypatch.setattr(study_runner, "__file__", str(installed))
    assert commit() is None
    git("init", "-q")
    git("add", "thesis.tex")
    git("commit", "-q", "-m", "thesis")
    assert commit() is None
    git("add", str(installed))
    git("commit", "-q", "-m", "package")
    assert commit() == git("rev-parse", "HEAD")
    installed.write_text("# changed")
    assert commit() == git("rev-parse", "HEAD") + "+"


def test_kill_and_resume(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "cells/vla_toy_Toy/SFT", tmp_path / "cells/vla_toy_Toy/SFT")
    command = [sys.executable, "-m", "sb3_tgrpo", *study_arguments(tmp_path)]
    process = subprocess.Popen(command, env=environ("0.03"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    while not (tmp_path / CELL / "resume.zip").is_file() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    output, _ = process.communicate()
    assert process.returncode == -signal.SIGKILL, output.decode()
    assert not (tmp_path / CELL / "model.zip").exists()
    assert free(RunFolder(tmp_path / CELL)), "the cell outlived its study"
    done = subprocess.run(command, env=environ("0"), capture_output=True, text=True)
    assert done.returncode == 0 and "TGRPO, vla_toy_Toy, seed 0: goes on" in done.stdout, done.stdout + done.stderr
    first, second = (TGRPO.load(folder / CELL / "model.zip", device="cpu") for folder in (finished, tmp_path))
    for a, b in zip(first.policy.parameters(), second.policy.parameters(), strict=True):  # type: ignore[attr-defined]
        assert th.equal(a, b)
    modes = [RunFolder(folder).read("table1/results.json")["modes"] for folder in (finished, tmp_path)]
    assert modes[0] == modes[1]


def free(run: RunFolder) -> bool:
    """Whether nobody uses the folder, after a moment."""
    for _ in range(300):
        try:
            with run.locked():
                return True
        except OSError:
            time.sleep(0.1)
    return False


def test_a_cell_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", environ("0")["PYTHONPATH"])
    arguments = study_arguments(tmp_path)
    arguments[arguments.index("tiny")] = str(tmp_path / "nothing")
    save_tiny(tmp_path / "nothing", 32)
    (tmp_path / "nothing" / "model.safetensors.index.json").unlink()  # its weights can't be found
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "2 of 2 cells failed" in output.err and "the base policy could not be evaluated" in output.err
    assert "nothing" in output.err and "Traceback" not in output.err


class CellProcess:
    """A cell's process that is interrupted when it is asked how it stands."""

    def __init__(self, events: list[str]) -> None:
        self.kill, self.wait = (partial(events.append, name) for name in ("kill", "wait"))

    def poll(self) -> None:
        raise KeyboardInterrupt


def test_cells_end_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for one before the next is ended would add up."""
    events: list[str] = []
    monkeypatch.setattr(study_runner, "_start", lambda *arguments: CellProcess(events))
    study = Study("table1", toy(), (TOY["env"],), ("SFT",), (0,))
    run = study_runner._Run(study, [], RunFolder(tmp_path), 2, Recorder())
    run.running = {cell: (CellProcess(events), 0.0) for cell in replace(study, seeds=(0, 1)).cells()}
    n_cells = len(run.running)
    with pytest.raises(KeyboardInterrupt):
        run.finish()
    assert n_cells > 1 and events == ["kill"] * n_cells + ["wait"] * n_cells


def test_what_cannot_be_read_of_a_study_counts_as_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, view = RunFolder(tmp_path), Recorder()
    study = Study("table1", toy(), (TOY["env"],), ("SFT",), (0,))
    (cell,) = study.cells()
    root.write(f"{cell.name}/config.json", cell.config.to_dict())
    for name in (f"{cell.name}/results.json", f"{cell.name}/log.txt", "table1/study.json"):
        atomic_write(root / name, '{"calls": [')
    monkeypatch.setattr(study_runner, "_start", lambda *_: subprocess.Popen(["true"], stdin=subprocess.PIPE))
    with pytest.raises(StudyError, match="1 of 1 cells failed"):  # it was started, and has written nothing
        run_study(study, tmp_path, view=view)
    assert any("results.json can't be read: the cell counts as not finished" in line for line in view.lines)
    assert any("study.json can't be read" in line for line in view.lines)
    assert not is_finished(cell, root) and len(root.read("table1/study.json")["calls"]) == 1


@pytest.mark.parametrize("evidence", ["results.json", "metrics.jsonl", "evaluations/after_greedy/episodes.jsonl"])
def test_a_cell_without_the_record_of_its_settings_is_refused(tmp_path: Path, evidence: str) -> None:
    """Whatever it was run with, the table would say that it was what is asked for now."""
    (cell,) = Study("table1", toy(), (TOY["env"],), ("SFT",), (0,)).cells()
    atomic_write(tmp_path / cell.name / evidence, "{}")
    atomic_write(tmp_path / cell.name / "model.zip", "")
    with pytest.raises(ValueError, match=r"config\.json, which records its settings, is missing"):
        check_cells([cell], RunFolder(tmp_path))
