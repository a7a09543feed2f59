"""The report, its pictures, and what the terminal shows."""

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import pytest

from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train.config import ALGORITHM_NAMES, Algo, TrainConfig
from sb3_tgrpo.train.plots import plot_curves, plot_furthest, plot_stages, plot_success, stage_colours
from sb3_tgrpo.train.report import LIGHT_NOTE, result_lines, write_pooled_report, write_report
from sb3_tgrpo.train.view import RunView, Stage, count, describe_update, duration, make_view, sparkline, time_split

PNG = b"\x89PNG"


def row(update: int) -> dict[str, Any]:
    return {
        "update": update, "timesteps": 500 * update, "rollout/member_success_rate": 0.25 * (update % 4),
        "train/approx_kl": 0.01, "rollout/mixed_groups": 0.4,
        "rollout/group_reward": float(update), "rollout/progress": 0.5, "train/entropy_loss": -3.0, "stages": [8, 2 * update],
        "furthest": [1, 3], "time/env_seconds": 6.0, "time/policy_seconds": 3.0, "time/update_seconds": 1.0,
        "time/rollout_seconds": 9.0,
    }  # fmt: skip


def paired(difference: float, resample: str = "initial_state") -> dict[str, Any]:
    return {"difference": difference, "interval": [difference - 0.1, difference + 0.1], "p_value": 0.03, "only_before": 1,
            "only_after": 6, "n_pairs": 10, "resample": resample, "n_resampled": 10, "is_crude": False}  # fmt: skip


def mode(before: int, after: int, seeds: tuple[int, ...] = (0,)) -> dict[str, Any]:
    n = len(seeds)
    each = [
        {"seed": s, "before": {"successes": before, "episodes": 10}, "after": {"successes": after, "episodes": 10},
         "paired": paired((after - before) / 10)} for s in seeds
    ]  # fmt: skip
    sides = {
        name: {"successes": n * count, "episodes": 10 * n, "length": 90.0, "furthest": [0, 1, 2, 3, 3] * 2 * n, "n_stages": 3}
        for name, count in (("before", before), ("after", after))
    }
    units = {"initial_state": paired((after - before) / 10)}
    if n > 1:
        units["evaluation"] = paired((after - before) / 10, "evaluation")
    return {"per_seed": each, "paired": units, **sides}


def results(seeds: tuple[int, ...] = (0,), assets: str = "light") -> dict[str, Any]:
    return {
        "env": "LIBERO/libero_object-9-v0", "assets": assets, "image_size": 128, "reward": "libero_object-9",
        "training_starts": "drawn by LIBERO's sampler",
        "start": "start <b>", "seed": 0, "resampled_groups": 0, "seeds": list(seeds), "timesteps": 2000, "updates": 4,
        "modes": {"greedy": mode(3, 8, seeds), "T=1": mode(4, 6, seeds)}, "finished": "2026-01-01T00:00:00Z",
        "videos": {"mode": "greedy", "start": 7, "chosen": True}, "seconds": {"total": 130.0, "rollouts": 90.0},
    }  # fmt: skip


class Links(HTMLParser):
    """Everything that a page refers to, and whether its tags are balanced."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.targets += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(path: Path) -> tuple[str, list[str]]:
    page = path.read_text()
    parser = Links()
    parser.feed(page)
    assert not parser.open
    return page, parser.targets


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path)
    JsonLines(folder / "metrics.jsonl").rewrite([row(k) for k in range(1, 5)])
    (folder / "videos").mkdir()
    for name in ("before", "after"):
        (folder / "videos" / f"{name}.mp4").write_bytes(b"video " + name.encode())
    folder.write("run.json", {"command": "sb3-tgrpo train", "versions": {"torch": "9.9"}, "platform": "Linux", "cores": 2})
    return folder


def test_report_is_self_contained(run: RunFolder) -> None:
    page, targets = read(write_report(TrainConfig(), run, results()))
    assert targets and all(target.startswith("data:") for target in targets)
    assert sum(target.startswith("data:video/mp4") for target in targets) == 2
    assert sum(target.startswith("data:image/png") for target in targets) == 3
    assert not re.search(r"https?://", page)
    text = re.sub(r"<[^>]+>", " ", page)
    for words in (
        "30% → 80%",
        "+50 points",
        "8/10 = 80%",
        "1 / 6",
        "torch 9.9",
        "initial state 7, the first that failed before",
    ):
        assert words in text, words
    assert "start &lt;b&gt;" in page and "start <b>" not in page
    assert LIGHT_NOTE.replace("'", "&#39;") in page and '"kl_coef"' in page.replace("&#34;", '"')
    assert (run / "plots/stages.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("algo", get_args(Algo))
def test_the_report_is_of_the_method_that_was_run(run: RunFolder, algo: str) -> None:
    page, _ = read(write_report(TrainConfig().updated({"algo": algo}), run, results()))
    name = ALGORITHM_NAMES[algo]
    assert f"<h1>{name} on LIBERO/libero_object-9-v0</h1>" in page
    assert (f"by {name}" in page) == (algo not in ("sft", "tgrpo"))
    assert ("group-relative" in page) == (algo == "tgrpo")
    assert ("imitates demonstrations" in page) == (algo not in ("trpo", "recurrent_ppo"))


def test_own_pictures_are_not_called_stand_ins(run: RunFolder) -> None:
    page, _ = read(write_report(TrainConfig(), run, results(assets="full")))
    assert "stand-ins" not in page and "full (LIBERO&#39;s own)" in page


def test_report_without_stages_or_updates(tmp_path: Path) -> None:
    plain = results()
    for each in plain["modes"].values():
        for side in ("before", "after"):
            each[side] |= {"n_stages": None, "furthest": [None] * 10}
    del plain["videos"]
    page, targets = read(write_report(TrainConfig(), RunFolder(tmp_path), plain))
    assert not targets and "30% → 80%" in page


def test_pooled_report(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for seed in (0, 3):
        JsonLines(folder / f"seed_{seed}" / "metrics.jsonl").rewrite([row(1), row(2)])
    pooled = {**results((0, 3)), "seconds": 200.0}
    page, targets = read(write_pooled_report(TrainConfig(), folder, pooled))
    assert {"seed_0/report.html", "seed_3/report.html"} <= set(targets)
    text = re.sub(r"<[^>]+>", " ", page)
    assert "16/20 = 80%" in text and "with whole runs resampled instead of initial states:\n[+40, +60]" in text
    lines = "\n".join(result_lines(pooled))
    assert "greedy   seed 3   3/10 = 30% -> 8/10 = 80%" in lines and "with seeds resampled: [+10, +30]" in lines
    assert "greedy   6/20 = 30% -> 16/20 = 80%, +50 points [+40, +60], exact McNemar p = 0.03" in lines


def test_plots() -> None:
    assert plot_curves([[row(k) for k in range(1, 30)]]).startswith(PNG)  # type: ignore[union-attr]
    assert plot_curves([[]]) is None and plot_stages([{"timesteps": 1}]) is None
    assert plot_stages([row(1)]).startswith(PNG)  # type: ignore[union-attr]
    assert plot_success(results((0, 1))["modes"]).startswith(PNG)
    assert plot_furthest(results()["modes"]).startswith(PNG)  # type: ignore[union-attr]
    light, dark = sum(stage_colours(5)[0]), sum(stage_colours(5)[-1])
    assert light > dark and len(stage_colours(1)) == 1


def test_durations_and_sparklines() -> None:
    assert [duration(s) for s in (45.2, 725, 7380)] == ["45 s", "12 min 05 s", "2 h 03 min"]
    assert sparkline([0.0, 1.0, 0.5]) == "▁█▅" and sparkline([2.0, 2.0]) == "▁▁" and len(sparkline([0.0] * 99)) == 40
    infinity, nan = float("inf"), float("nan")
    assert sparkline([0.0, infinity, 1.0, -infinity, nan]) == "▁!█!!" and sparkline([infinity]) == "!" and sparkline([]) == ""
    assert sparkline([0.0, 5e-324]) == "▁█"  # nor do the least of numbers leave the range
    assert time_split([row(1)]) == "simulators 60%, policy 30%, update 10%" and time_split([{}]) == ""
    assert [count(number, "update") for number in (0, 1, 2000)] == ["0 updates", "1 update", "2,000 updates"]


def test_numbers_of_an_update_have_a_scale_or_a_unit() -> None:
    assert describe_update(row(2), 10.0) == (
        "update 2: success of members 50%, mixed groups 40%, reward 2.00 of 10, progress 50%, KL of the update 0.0100 nats, "
        "time: simulators 60%, policy 30%, update 10%"
    )
    assert "reward 2.00, progress" in describe_update(row(2))  # of an environment whose highest return is not known


def test_four_initial_states_give_no_interval() -> None:
    few = results()
    few["modes"]["greedy"]["paired"]["initial_state"] |= {"is_crude": True, "n_resampled": 4, "interval": [0.5, 0.5]}
    line = result_lines(few)[0]
    assert "+50 points (no interval: 4 initial states can't give one)" in line and "[+50, +50]" not in line


def test_the_report_names_lost_simulators(run: RunFolder) -> None:
    page, _ = read(write_report(TrainConfig(), run, results()))
    assert "<tr><th>lost simulators</th><td>none</td></tr>" in page
    page, _ = read(write_report(TrainConfig(), run, results() | {"resampled_groups": 1, "updates": 1}))
    assert "1 group sampled again from the same initial state" in page and "in 1 update<" in page


def test_plain_lines() -> None:
    stream = io.StringIO()
    with RunView("a run", stream) as view:
        view.skip_stage("demonstrations", "20")
        view.begin_stage("TGRPO", 1000, "steps", first_round=float("inf"))
        for step in range(100):  # these come too fast to be shown
            view.sampling(step, 1, 4)
        view.update(row(1))
        view.end_stage("1,000 steps")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "a run" and lines[1].startswith("demonstrations: 20 (done before)") and "update 1" in lines[3]
    assert lines[2].startswith("TGRPO  0/1,000 steps") and lines[-1].startswith("TGRPO: 1,000 steps [") and len(lines) == 5
    assert make_view("x")._live is None  # no terminal here


def test_an_update_is_printed_once_however_long_it_took() -> None:
    stream = io.StringIO()
    view = RunView("", stream)
    view.interval = 0.0  # whatever changes is shown
    view.begin_stage("TGRPO", 1000, "steps")
    view.update(row(1))
    view.sampling(600, 1, 4)
    lines = stream.getvalue().splitlines()
    assert sum("success of members" in line for line in lines) == 1 and "1 of 4 groups for update 2" in lines[-1]


def test_the_last_update_shows_that_it_is_under_way() -> None:
    stream = io.StringIO()
    view = RunView("", stream)
    view.begin_stage("TGRPO", 1000, "steps")
    view.sampling(500, 4, 4)
    view.updating()
    assert "is computed" not in stream.getvalue()  # of others the line comes soon
    view.sampling(1010, 4, 4)
    view.updating()
    assert stream.getvalue().splitlines()[-1].endswith("update 1 is computed")


def test_a_part_that_failed_is_not_called_done() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), RunView("", stream) as view:
        view.begin_stage("TGRPO", 10, "steps")
        raise RuntimeError
    assert "done" not in stream.getvalue()


def test_time_left_does_not_count_what_an_earlier_call_did(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("sb3_tgrpo.train.view.time.monotonic", lambda: clock[0])
    stage = Stage("TGRPO", total=100, done=50, first=50)
    assert stage.seconds_left is None and Stage("x", total=0).seconds_left is None
    clock[0] = 10.0
    stage.advance(60)
    assert stage.seconds_left == pytest.approx(40.0)  # 40 to do, 10 done in 10 s
    stage.advance(stage.total + 3)  # a rollout goes a little further than what was asked for
    assert stage.seconds_left == 0.0


def test_time_left_does_not_count_the_start_of_simulators(monkeypatch: pytest.MonkeyPatch) -> None:
    """50 episodes by 8 simulators, which start for 40 s: an episode takes 10 s."""
    clock = [0.0]
    monkeypatch.setattr("sb3_tgrpo.train.view.time.monotonic", lambda: clock[0])
    stage = Stage("evaluate", total=50, first_round=8)
    for done in range(1, 8):
        clock[0] = 50.0 + 0.1 * done
        stage.advance(done)
        assert stage.seconds_left is None  # 49 times 50 s, an estimate would say
    clock[0] = 51.0
    stage.advance(8)
    clock[0] = 61.0
    stage.advance(16)
    assert stage.seconds_left == pytest.approx(10 / 8 * 34)


def test_live_panel() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=110, force_terminal=True, color_system=None)
    with RunView("TGRPO on libero_object-9", console=console) as view:
        view.later_seconds, view.highest_return = 120.0, 6.0
        view.begin_stage("evaluate before, greedy", 50, "episodes")
        view.advance(10, "3 of 10 succeeded")
        assert "3 of 10 succeeded" in shown(console, view)
        view.begin_stage("TGRPO", 60_000, "steps")
        for k in (1, 2, 3):
            view.update(row(k))
        view.sampling(1_700, 3, 16)
        panel = shown(console, view)
    for words in ("TGRPO on libero_object-9", "1,700 of 60,000 steps", "3 of 16 groups for update 4", "KL of the update",
                  "mixed groups", "75%", "3.00 of 6", "0.0100 nats", "simulators 60%, policy 30%, update 10%",
                  "left (2 min 00 s for what comes after)"):  # fmt: skip
        assert words in panel, words
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "✓ evaluate before, greedy  3 of 10 succeeded" in output


def test_live_panel_of_a_method_without_groups() -> None:
    from rich.console import Console

    console = Console(file=io.StringIO(), width=110)
    with RunView("PPO", console=console) as view:
        view.begin_stage("PPO", 60_000, "steps")
        assert "update" not in shown(console, view)  # nothing is known yet
        view.sampling(1_700, 23, None)
        panel = shown(console, view)
        assert "23 episodes for update 1" in panel and "groups" not in panel


def shown(console: Any, view: RunView) -> str:
    with console.capture() as capture:
        console.print(view.render())
    return capture.get()
