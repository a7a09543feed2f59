"""What ``sb3-tgrpo study`` shows while it runs."""

import io

import pytest
from rich.console import Console

from sb3_tgrpo.study.view import RunningCell, StudyProgress, StudyView, seconds_left

PROGRESS = StudyProgress(
    3,
    12,
    [
        RunningCell("TGRPO, libero_object-6, seed 2", 95, "TGRPO  12,345/40,000 steps  9 min 02 s left"),
        RunningCell("PPO [sic], libero_object-6, seed 2", 700, "evaluate after, greedy  20/50 episodes  " + 9 * " and so"),
        RunningCell("GRPO, libero_object-6, seed 2", 1, ""),
    ],
    5400,
)


@pytest.mark.parametrize(
    ("taken", "running", "waiting", "workers", "expected"),
    [
        ([], [10.0], 3, 1, None),
        ([60.0, 120.0], [], 4, 2, 180.0),  # two more rounds of 90 s
        ([100.0], [40.0, 90.0], 2, 2, 135.0),  # 60 + 10 + 200 of work by two
        ([100.0], [40.0], 0, 2, 60.0),  # a single cell is not shared
        ([100.0], [130.0], 0, 1, 0.0),  # late already
    ],
)
def test_seconds_left(taken: list[float], running: list[float], waiting: int, workers: int, expected: float | None) -> None:
    assert seconds_left(taken, running, waiting, workers) == expected


def test_plain_lines_each_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("sb3_tgrpo.train.view.time.monotonic", lambda: clock[0])
    stream = io.StringIO()
    with StudyView(stream=stream) as view:
        view.print("begins")
        for clock[0] in (0.2, 59.0, 60.5, 61.0, 119.0):
            view.refresh(PROGRESS)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "begins"
    assert lines[1:] == [f"{cell.name}: {cell.line or 'starting'}" for cell in PROGRESS.running]


def test_live_panel() -> None:
    console = Console(file=io.StringIO(), width=110, force_terminal=False)
    with StudyView("study table1: runs/[a]", console=console) as view:
        console.print(view.render())
        assert not console.file.getvalue().strip(), "before anything is known"  # type: ignore[attr-defined]
        view.refresh(PROGRESS)
        view.print("[3/12] SFT, libero_object-6, seed 2: greedy 38/50")
        console.print(view.render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for expected in (
        "study table1: runs/[a]", "3 of 12 cells", "about 90 min 00 s left", "95 s", "12,345/40,000 steps",
        "PPO [sic], libero_object-6, seed 2", "11 min 40 s", "20/50 episodes", "…", "starting", "[3/12] SFT",
    ):  # fmt: skip
        assert expected in text, text
