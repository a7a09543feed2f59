"""The examples run, at a small size."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


def run(*command: str, cwd: Path) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, env=environ)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_cartpole(tmp_path: Path) -> None:
    assert "after" in run(str(ROOT / "examples/01_cartpole.py"), "--steps", "2000", cwd=tmp_path)


def test_libero(tmp_path: Path) -> None:
    output = run(str(ROOT / "examples/02_libero.py"), "--steps", "200", "--group-size", "2", cwd=tmp_path)
    assert "group   1  reward" in output
    for name in ("before.mp4", "after.mp4", "curve.png", "model.zip", "run.json"):
        assert (tmp_path / "runs/libero_example" / name).stat().st_size > 0


def test_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests/helpers"))
    toy = ("--env", "vla_toy:Toy-v0", "--checkpoint", "tiny", "--steps", "40", "--initial-states", "1")
    output = run(str(ROOT / "examples/03_train.py"), *toy, cwd=tmp_path)
    assert "TGRPO: " in output and "exact McNemar" in output
    assert (tmp_path / "runs/trajectory_level/report.html").exists()


def test_instructions(tmp_path: Path) -> None:
    small = ("--targets", "chocolate_pudding", "ketchup", "--starts", "1", "--max-steps", "6", "--n-envs", "1")
    output = run(str(ROOT / "examples/04_instructions.py"), str(ROOT / "sb3_tgrpo/data/start"), *small, cwd=tmp_path)
    assert output.count("| ketchup | 0 / 0 / 0 | 0 / 0 / 0 | 1 / 1 / 1 | 0/1 = 0%") == 2  # nothing is touched in six steps
    outcomes = json.loads((tmp_path / "runs/instructions/outcomes.json").read_text())["outcomes"]
    assert [(row["target"], row["steps"]) for row in outcomes["greedy"]] == [("chocolate_pudding", 6), ("ketchup", 6)]
    assert (tmp_path / "runs/instructions/instructions.png").stat().st_size > 0


def test_where_it_stands_still(tmp_path: Path) -> None:
    output = run(
        str(ROOT / "examples/05_where_it_stands_still.py"), str(ROOT / "sb3_tgrpo/data/start"), "--every", "50", cwd=tmp_path
    )
    assert "moved, mm" in output and "highest stage" in output and "the hand stayed within" in output


@pytest.mark.parametrize("arguments", [("--steps", "500", "--repetitions", "1")])
def test_algorithm_overhead(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    table = run(str(ROOT / "examples/benchmarks/algorithm_overhead.py"), *arguments, cwd=tmp_path)
    assert re.search(r"\| TGRPO, groups of 4 +\| +\d+ \| +\d+\.\d+ \|", table)


def test_ppo_baseline(tmp_path: Path) -> None:
    small = ("--steps", "80", "--max-episode-steps", "20", "--members", "2", "--episodes", "1")
    output = run(str(ROOT / "examples/06_ppo_baseline.py"), *small, cwd=tmp_path)
    assert re.search(r"base policy: \d+% of 1 episodes", output) and "TGRPO: " in output and "PPO: " in output


def test_own_environment_and_reward(tmp_path: Path) -> None:
    output = run(str(ROOT / "examples/07_own_environment_and_reward.py"), "--steps", "2000", cwd=tmp_path)
    assert "Goals reached, greedily: " in output
    assert re.search(r"V8 +expert replay +ok", output) and "in stage 0 of 3" in output


def test_own_policy(tmp_path: Path) -> None:
    small = ("--env", "Pendulum-v1", "--steps", "2000", "--kl-coef", "0.01")
    assert " after" in run(str(ROOT / "examples/08_own_policy.py"), *small, cwd=tmp_path)


def test_collect_demos(tmp_path: Path) -> None:
    output = run(str(ROOT / "examples/09_collect_demos.py"), "--demos", "2", cwd=tmp_path)
    assert "2 demonstrations of" in output and (tmp_path / "demos.hdf5").exists()


def test_generate_reward_shows_a_shipped_one(tmp_path: Path) -> None:
    assert "def compute_reward" in run(str(ROOT / "examples/10_generate_reward.py"), "--shipped", cwd=tmp_path)


def test_shares_of_the_step_level() -> None:
    """One group of two: the first member succeeds at its second step of three, the second never does."""
    module = runpy.run_path(str(ROOT / "examples/benchmarks/step_level.py"))
    signal = np.array([[0.5, 0.1], [1.0, 0.2], [0.0, 0.3]])[:, None]
    mask = np.array([[True, True], [True, True], [False, True]])[:, None]
    half = 0.5**0.5  # what two members have, above and below their mean
    for compare_ended, after in ((False, 0.0), (True, -half / 3)):
        until, afterwards = module["shares"](signal, mask, compare_ended)
        np.testing.assert_allclose(until, [[half, -2 * half / 3]])
        np.testing.assert_allclose(afterwards, [[0.0, after]])


def test_step_level(tmp_path: Path) -> None:
    settings = ("--groups", "2", "--set", "group_size=2", "max_episode_steps=10", "parallel_groups=1")
    output = run(str(ROOT / "examples/benchmarks/step_level.py"), *settings, cwd=tmp_path)
    assert "2 groups of 2, 40 steps that count" in output and "compare_ended=True" in output
    assert output.count("failed, not so far") == 2  # ten steps are too few for anything


def test_drift(tmp_path: Path) -> None:
    start = str(ROOT / "sb3_tgrpo/data/start")
    run(str(ROOT / "scripts/results.py"), "unpack", "starts", "--out", str(tmp_path), cwd=tmp_path)
    other = str(tmp_path / "starts/libero_object-6")
    command = (str(ROOT / "examples/benchmarks/drift.py"), start, start, other, "--starts", "1", "--steps", "60")
    rows = [line.split("│")[2:] for line in run(*command, cwd=tmp_path).splitlines() if line.startswith("│")]
    own, same, moved = rows
    assert own == same and own[0].split() == ["0.00", "±", "0.00"]  # a policy is where it is
    assert float(moved[0].split()[0]) > 1.0  # another is not: the other's task is another one
