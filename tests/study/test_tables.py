"""Tables and plots of what a study found."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from studies import CELL, ENVS, TOY, copy_of_tables, evaluation, found, study, study_arguments, tuning_results

from sb3_tgrpo.cli import main
from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.statistics import wilson_interval
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.study import tables as study_tables
from sb3_tgrpo.study.design import Study
from sb3_tgrpo.study.runner import write_tables
from sb3_tgrpo.study.tables import markdown, plot, summarise, table_rows, versus_rows, write_results
from sb3_tgrpo.train.config import TrainConfig


def test_table_by_hand() -> None:
    these = study(methods=("SFT", "PPO", "TGRPO"))
    a, b = ENVS
    rows = summarise(
        found(
            these,
            {
                ("SFT", a, 0): [1, 0, 0, 0], ("SFT", a, 1): [1, 0, 0, 0],
                ("SFT", b, 0): [1, 1, 0, 0], ("SFT", b, 1): [1, 1, 0, 0],
                ("TGRPO", a, 0): [1, 1, 0, 0], ("TGRPO", a, 1): [0, 1, 1, 1], ("TGRPO", b, 0): [1, 1, 0, 0],
                ("TGRPO", b, 1): [1, 1, 1, 1], ("PPO", a, 0): [0, 0, 0, 0],
            },
        ),
        these,
    )  # fmt: skip
    assert list(rows) == ["SFT", "PPO", "TGRPO"]
    tgrpo = rows["TGRPO"]
    assert tgrpo["tasks"][a]["successes"] == 5 and tgrpo["tasks"][a]["episodes"] == 8
    assert tgrpo["tasks"][b]["seeds"] == [0.5, 1.0] and tgrpo["mean"] == (5 / 8 + 6 / 8) / 2
    assert tgrpo["iqm"] == pytest.approx((0.5 + 0.75) / 2)  # of 0.5, 0.75, 0.5, 1.0 the middle two
    assert tgrpo["rank"] == 1.0 and rows["SFT"]["rank"] == 2.0 and rows["SFT"]["vs_sft"] is None
    paired = tgrpo["vs_sft"]["initial_state"]
    assert (paired["only_before"], paired["only_after"], paired["n_pairs"]) == (1, 6, 16)
    assert paired["difference"] == 5 / 16 and tgrpo["vs_sft"]["evaluation"]["resample"] == "evaluation"
    # A method without one of the tasks has no overall figures, and takes no rank from others.
    assert rows["PPO"]["iqm"] is None and rows["PPO"]["rank"] is None and rows["PPO"]["tasks"][a]["rate"] == 0.0
    head, body = table_rows(rows, these.envs)
    assert head[:3] == ["method", "libero_object-3", "libero_object-9"] and body[2][1].startswith("62.5 [")
    assert body[1][2:] == ["-", "-", "-", "-", "-25.0 [-75.0, +0.0] from 4 initial states", "- / -"]
    # Of TGRPO's four runs gains are 0.25 and 0.5 on the first task, 0 and 0.5 on the second.
    assert tgrpo["vs_sft"]["evaluation"]["interval"] == (0.125, 0.5) and tgrpo["vs_sft"]["seeds"] == 2
    assert body[2][6].startswith("+31.2 [") and "runs" not in body[2][6]  # two seeds say little of others
    # PPO has one cell, so against it there is one.
    assert rows["SFT"]["versus"] == {} and list(tgrpo["versus"]) == ["PPO"]
    pair = tgrpo["versus"]["PPO"]["initial_state"]
    assert (pair["n_pairs"], pair["only_after"], pair["difference"]) == (4, 2, 0.5)
    assert "evaluation" not in tgrpo["versus"]["PPO"]
    # Of TGRPO on the first task 10, 11, 11, 12 and 13 steps, on the second twice 10 and 11, then 12 and 13.
    assert body[2][-1] == "11 / 11" and body[0][-1] == "10 / 10.5"
    head, body = versus_rows(rows)
    assert head == ["", "PPO", "TGRPO"]
    assert body == [
        ["PPO", "-", "-50.0 [-100.0, +0.0] from 4 initial states, 1"],
        ["TGRPO", "+50.0 [+0.0, +100.0] from 4 initial states, 1", "-"],
    ]
    assert plot(rows, "", "greedy").startswith(b"\x89PNG") and plot(rows, "alpha_1", "greedy").startswith(b"\x89PNG")


def test_the_interval_over_runs_keeps_the_tasks() -> None:
    """Each run gains half on one task and nothing on the other: other trainings would give the same."""
    a, b = ENVS
    these = study(methods=("SFT", "TGRPO"), seeds=(0, 1, 2))
    outcomes = {("SFT", a): [1, 0, 0, 0], ("TGRPO", a): [1, 1, 1, 0], ("SFT", b): [1, 0, 0, 0], ("TGRPO", b): [1, 0, 0, 0]}
    rows = summarise(found(these, {(m, env, k): won for (m, env), won in outcomes.items() for k in these.seeds}), these)
    assert rows["TGRPO"]["vs_sft"]["evaluation"]["interval"] == (0.25, 0.25) and rows["TGRPO"]["vs_sft"]["seeds"] == 3
    low, high = rows["TGRPO"]["vs_sft"]["initial_state"]["interval"]
    assert low < 0.25 < high
    _, body = table_rows(rows, these.envs)
    assert body[1][6].startswith("+25.0 [") and body[1][6].endswith("] from 8 initial states, runs [+25.0, +25.0]")


@pytest.mark.parametrize("decoding", [Decoding(), Decoding(1.0)])
def test_copies_of_an_evaluation_count_once(decoding: Decoding) -> None:
    """Greedy play of the start policy is copied to every seed; sampled play is each seed's own, whatever comes out."""
    deterministic, seeds = decoding.greedy, (0, 1, 2, 3, 4)
    these = study(methods=("SFT", "TGRPO"), seeds=seeds)
    outcomes = {ENVS[0]: [1] * 23 + [0] * 27, ENVS[1]: [1] * 40 + [0] * 10}
    played = {cell: replace(evaluation(outcomes[cell.env], cell.env), decoding=decoding) for cell in these.cells()}
    rows = summarise(played, these)
    times = 1 if deterministic else 5
    first = rows["SFT"]["tasks"][ENVS[0]]
    assert (first["successes"], first["episodes"], first["evaluations"]) == (23 * times, 50 * times, times)
    assert first["interval"] == list(wilson_interval(23 * times, 50 * times)) and first["seeds"] == [0.46] * 5
    assert rows["SFT"]["mean"] == pytest.approx(0.63) and rows["SFT"]["iqm"] == pytest.approx(0.63)
    assert (rows["SFT"]["iqm_interval"] is None) == (rows["SFT"]["mean_interval"] is None) == deterministic
    _, body = table_rows(rows, these.envs)
    assert body[0][1].startswith("46.0 [33.0, 59.6]" if deterministic else "46.0 [39.9, 52.2]")
    assert body[0][5] == ("63.0" if deterministic else "63.0 [63.0, 63.0]")
    assert plot(rows, "", "greedy").startswith(b"\x89PNG")
    # Trained policies are others for each seed, also where they come out the same.
    assert rows["TGRPO"]["tasks"][ENVS[0]]["episodes"] == 250 and rows["TGRPO"]["iqm_interval"] is not None
    assert rows["TGRPO"]["vs_sft"]["initial_state"]["n_pairs"] == 500


def test_evaluations_of_the_start_policy_that_differ_are_all_counted() -> None:
    """Other outcomes, or other starts: widened ones are drawn by the seed."""
    these = study(methods=("SFT",), envs=ENVS[:1])
    cells = these.cells()
    for change in ({"success": False}, {"seed": 7}):
        first, second = evaluation([1, 1]), evaluation([1, 1])
        second.episodes[1] = replace(second.episodes[1], **change)
        task = summarise({cells[0]: first, cells[1]: second}, these)["SFT"]["tasks"][ENVS[0]]
        assert (task["evaluations"], task["episodes"]) == (2, 4)


def test_tasks_weigh_the_same_when_seeds_are_missing() -> None:
    these = study(methods=("SFT", "TGRPO"), seeds=(0, 1, 2, 3))
    easy = {("TGRPO", ENVS[0], seed): [1, 1] for seed in (0, 1, 2, 3)}
    rows = summarise(found(these, {**easy, ("TGRPO", ENVS[1], 0): [0, 0], ("TGRPO", ENVS[1], 1): [0, 0]}), these)
    assert rows["TGRPO"]["mean"] == 0.5 and rows["TGRPO"]["mean_interval"] == [0.5, 0.5]  # 4/6 over cells
    one = summarise(found(these, {**easy, ("TGRPO", ENVS[1], 0): [0, 0]}), these)["TGRPO"]
    assert one["iqm"] is not None and one["iqm_interval"] is None  # one seed says nothing of others


def test_tables_of_what_is_there(finished: Path, tmp_path: Path) -> None:
    these = Study("table1", TrainConfig().updated(TOY), (TOY["env"],), ("TGRPO",), (0, 1))
    os.symlink(finished / "cells", tmp_path / "cells")
    results = write_results(these, RunFolder(tmp_path))
    assert results["missing"] == ["SFT, vla_toy_Toy, seed 1", "TGRPO, vla_toy_Toy, seed 1"]
    assert "Not finished, so not in the tables: SFT" in markdown(results, these, RunFolder(tmp_path))


def test_tables_are_of_the_settings_asked_for(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of_tables(finished, tmp_path)
    before = (folder / "table1/table.md").read_text()
    assert main([*study_arguments(folder), "--tables", "--budget", "50"]) == 1
    assert "TGRPO/seed_0 was made with other settings (algorithm.total_timesteps was 40, is 50)" in capsys.readouterr().err
    assert (folder / "table1/table.md").read_text() == before


def test_tables_tell_whose_cells_were_paid_by_which_reward(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished / "cells", tmp_path / "cells")
    root = RunFolder(tmp_path)
    for seed in (1, 2):
        shutil.copytree(tmp_path / CELL, tmp_path / CELL.replace("seed_0", f"seed_{seed}"))
        config = root.read(f"{CELL}/config.json")
        root.write(f"{CELL.replace('seed_0', f'seed_{seed}')}/config.json", {**config, "seed": seed})
    study = Study("table1", TrainConfig().updated(TOY), (TOY["env"],), ("TGRPO",), (0, 1, 2))

    def told(*rewards: str | None) -> str:
        cells = [cell for cell in study.cells() if (root / cell.name).is_dir()]
        for cell, reward in zip(cells, rewards, strict=True):
            root.write(f"{cell.name}/setup.json", {**root.read(f"{cell.name}/setup.json"), "reward": reward})
        results = write_results(study, root)
        assert [cell["reward"] for cell in results["cells"]] == list(rewards)
        lines = (root / "table1/table.md").read_text().splitlines()
        return "".join(line for line in lines if "digest" in line)

    new, old = "0123456789ab" + "c" * 52, "ba9876543210" + "c" * 52
    assert told(None, None, None, None) == ""  # SFT, and TGRPO's three
    assert told(new, None, new, new) == "- Reward of vla_toy_Toy, by its digest: 0123456789ab."
    assert told(new, old, new, old) == (
        "- **Several rewards of vla_toy_Toy**, by their digests, with methods and seeds: "
        "0123456789ab (SFT 0, TGRPO 1); ba9876543210 (TGRPO 0 2)."
    )


def test_each_task_has_a_reward_of_its_own() -> None:
    rewards = {"libero_object-6": "6" * 64, "libero_object-8": "8" * 64}
    cells = [{"env": f"LIBERO/{task}-v0", "method": "TGRPO", "seed": 0, "reward": reward} for task, reward in rewards.items()]
    assert study_tables._rewards(cells) == [
        "Reward of libero_object-6, by its digest: 666666666666.",
        "Reward of libero_object-8, by its digest: 888888888888.",
    ]


def test_tables_keep_what_was_tuned_and_overridden(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = {"TGRPO": {"learning_rate": 1e-3}, "PPO": {"gamma": 0.5}}
    rest = {"envs": ["LIBERO/libero_object-1-v0"], "mode": "T=1", "trials": {"TGRPO": {"1.0": 0.4}}, "seeds": [0]}
    tuning = {**rest, "chosen": {"TGRPO": 1.0}, "learning_rates": {"TGRPO": 1e-3}}
    folder = copy_of_tables(finished, tmp_path / "study", overrides=overrides, tuning=tuning)
    arguments = [*study_arguments(folder), "learning_rate=0.5"]  # TGRPO's is the record's
    assert main([*arguments, "--tables"]) == 0
    text = (folder / "table1/table.md").read_text()
    assert "Tuning: 1 learning rates for each of TGRPO" in text
    assert "TGRPO has settings of its own: learning_rate = 0.001" in text
    assert "PPO has" not in text  # which these tables are not of
    assert RunFolder(folder).read("table1/results.json")["tuning"] == tuning
    assert main([*arguments, "TGRPO.learning_rate=0.001", "--tables"]) == 0
    same = tuning_results(tmp_path / "same", {"TGRPO@1": 0.4}, learning_rate=1e-3)
    assert main([*arguments, "--tables", "--tuning", str(same)]) == 0
    capsys.readouterr()
    assert main([*arguments, "TGRPO.learning_rate=0.1", "--tables"]) == 1
    assert "overrides.TGRPO.learning_rate was 0.001, is 0.1" in capsys.readouterr().err
    other = tuning_results(tmp_path / "other", {"TGRPO@1": 0.3}, learning_rate=1e-3)
    assert main([*arguments, "--tables", "--tuning", str(other)]) == 1
    assert "tuning.trials.TGRPO.1.0 was 0.4, is 0.3" in capsys.readouterr().err
    untuned = copy_of_tables(finished, tmp_path / "untuned")
    assert main([*study_arguments(untuned), "--tables", "--tuning", str(same)]) == 1
    assert "study.json records other settings" in capsys.readouterr().err


def test_tables_of_cells_that_another_grid_ran(finished: Path, tmp_path: Path) -> None:
    os.symlink(finished / "cells", tmp_path / "cells")
    these = Study("ablation", TrainConfig().updated(TOY), (TOY["env"],), ("TGRPO",), (0,))
    assert not write_tables(these, tmp_path)["missing"]  # no record of this grid
