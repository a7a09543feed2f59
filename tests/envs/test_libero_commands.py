"""Commands and the benchmark around the LIBERO environments."""

import re
import subprocess
import sys
from pathlib import Path

import check_all_tasks
import pytest
import write_task_facts


def test_check_tasks_on_light_assets(capsys: pytest.CaptureFixture[str]) -> None:
    assert check_all_tasks.main(["libero_object-0", "libero_object-9", "--assets", "light"]) == 0
    assert "2 of 2 tasks work." in capsys.readouterr().out
    with pytest.raises(ValueError, match="task must look like"):
        check_all_tasks.main(["libero_objects"])


def test_check_tasks_counts_failures(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo.envs.libero.render import OffscreenRenderer

    draw = OffscreenRenderer.render
    monkeypatch.setattr(OffscreenRenderer, "render", lambda self, camera: draw(self, camera) * 0)
    assert check_all_tasks.main(["libero_object-0", "--assets", "light"]) == 1
    assert "FAILED: RuntimeError: the picture is blank" in capsys.readouterr().out


@pytest.mark.full_assets
def test_check_a_task_of_each_suite(capsys: pytest.CaptureFixture[str]) -> None:
    """All 130: ``python scripts/check_all_tasks.py``."""
    tasks = ["libero_spatial-9", "libero_object-2", "libero_goal-2", "libero_10-0", "libero_90-70"]
    assert check_all_tasks.main([*tasks, "--assets", "full"]) == 0, capsys.readouterr().out


@pytest.mark.full_assets
def test_shipped_task_facts_are_as_measured(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ["libero_spatial-4", "libero_goal-3", "libero_10-2", "libero_10-9"]
    assert write_task_facts.main([*tasks, "--check", "--assets", "full"]) == 0, capsys.readouterr().out


def test_benchmark_runs() -> None:
    script = Path(__file__).parents[2] / "examples" / "benchmarks" / "env_throughput.py"
    command = [sys.executable, str(script), "--quick", "--assets", "light"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    ratios = re.findall(r"^\| .+ \| [\d.]+ \| [\d.]+ \| [\d.]+x \|$", done.stdout, re.MULTILINE)
    assert len(ratios) == 2, done.stdout
