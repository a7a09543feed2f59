"""``sb3-tgrpo study``: methods, grids, statistics, tables, the other methods in the main job, and interruption."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from torch.nn import functional
from toy_envs import ScriptEnv

from sb3_tgrpo import TGRPO, envs, tgrpo
from sb3_tgrpo.baselines import ungrouped as baselines
from sb3_tgrpo.baselines.ungrouped import (
    DrawnStarts,
    SceneExtractor,
    algorithm_class,
    even_batch_size,
    make_ungrouped_env,
    rollout_steps,
)
from sb3_tgrpo.cli import main
from sb3_tgrpo.cli.study import add_parser, study_from
from sb3_tgrpo.envs.registration import env_ids
from sb3_tgrpo.evaluation.comparison import wilson_interval
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation
from sb3_tgrpo.evaluation.statistics import bootstrap_interval, interquartile_mean, mean_of_tasks, ranks
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.openvla.loading import checkpoint_identity
from sb3_tgrpo.openvla.tiny import save_tiny
from sb3_tgrpo.rewards import load_reward
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.study import runner as study_module
from sb3_tgrpo.study import tables as study_tables
from sb3_tgrpo.study.methods import GRIDS, METHODS, settings_of
from sb3_tgrpo.study.runner import (
    Cell,
    Study,
    check_cells,
    commit,
    is_finished,
    run_study,
    tuned_overrides,
    write_tables,
)
from sb3_tgrpo.study.tables import markdown, plot, summarise, table_rows, versus_rows, write_results
from sb3_tgrpo.study.view import StudyProgress, StudyView
from sb3_tgrpo.train import job as main_job
from sb3_tgrpo.train import stages as train_stages
from sb3_tgrpo.train.config import (
    USED_SETTINGS,
    AlgorithmConfig,
    BaselineConfig,
    TrainConfig,
    parse_setting,
    shipped_start,
)
from sb3_tgrpo.train.job import run_training

HELPERS = Path(__file__).parents[1] / "helpers"
ENVS = ("LIBERO/libero_object-3-v0", "LIBERO/libero_object-9-v0")
TOY: dict[str, Any] = {
    "env": "vla_toy:Toy-v0", "checkpoint": "tiny", "lora": None, "eval_starts": 2, "eval_workers": 1, "device": "cpu",
    "total_timesteps": 40, "group_size": 2, "groups_per_update": 2, "parallel_groups": 1, "learning_rate": 1e-3,
    "n_envs": 2, "n_steps": 10,
    "update_threads": 1,
}  # fmt: skip


# ---------------------------------------------------------------------- statistics


def test_interquartile_mean_by_hand() -> None:
    assert interquartile_mean(np.array([9.0, 1.0, 2.0, 3.0, 4.0, 100.0, 5.0, -50.0])) == (2 + 3 + 4 + 5) / 4
    assert interquartile_mean(np.array([1.0, 2.0, 6.0])) == 3.0  # a quarter of three, rounded down, is none
    assert interquartile_mean(np.array([[0.0, 1.0, 1.0, 9.0], [5.0, 4.0, 6.0, 5.0]])).tolist() == [1.0, 5.0]
    with pytest.raises(ValueError, match="nothing to average"):
        interquartile_mean(np.array([]))


def test_bootstrap_draws_the_seeds_of_each_task() -> None:
    assert bootstrap_interval([[0.5, 0.5], [0.5]]) == (0.5, 0.5)
    # Tasks are kept: that one is easy and one is hard is no uncertainty. Drawing from all cells would spread from 0 to 1.
    assert bootstrap_interval([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]], mean_of_tasks) == (0.5, 0.5)
    # Tasks weigh the same, however many of their seeds are finished.
    assert mean_of_tasks([[0.0, 0.0, 0.0], [1.0]]) == 0.5
    assert bootstrap_interval([[0.0, 0.0, 0.0], [1.0]], mean_of_tasks) == (0.5, 0.5)
    low, high = bootstrap_interval([[0.0, 1.0]], mean_of_tasks)
    assert (low, high) == (0.0, 1.0)  # 0, 1/2 and 1 with 1/4, 1/2 and 1/4
    rng = np.random.default_rng(0)
    low, high = bootstrap_interval([rng.normal(size=400).tolist()], mean_of_tasks)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)
    with pytest.raises(ValueError, match="each task"):
        bootstrap_interval([[1.0], []])


def test_ranks() -> None:
    assert ranks([0.9, 0.5, 0.7]) == [1.0, 3.0, 2.0]
    assert ranks([0.5, 0.9, 0.5, 0.1]) == [2.5, 1.0, 2.5, 4.0]


# ---------------------------------------------------------------------- methods and grids


def study(grid: str = "table1", **changes: Any) -> Study:
    settings: dict[str, Any] = {"config": TrainConfig(), "envs": ENVS, "methods": GRIDS[grid].methods, "seeds": (0, 1)}
    return Study(grid, **(settings | changes))


def test_every_method_is_a_valid_configuration() -> None:
    base = TrainConfig()
    for method in [*METHODS, *(method for grid in GRIDS.values() for method in grid.methods)]:
        changed = base.updated(settings_of(method, base))
        assert changed.algorithm.total_timesteps == base.algorithm.total_timesteps
        assert TrainConfig.from_dict(changed.to_dict()) == changed
    grpo = base.updated(settings_of("GRPO", base)).algorithm
    assert (grpo.alpha_step, grpo.alpha_traj, grpo.outcome_reward, grpo.stop_on) == (0.0, 1.0, "success", "never")
    assert base.updated(settings_of("TGRPO", base)) == base  # the defaults of the package
    assert settings_of("TGRPO-alpha=0.1", base) == {"alpha_step": 0.1, "alpha_traj": 0.9}
    assert settings_of("TGRPO-groups_per_update=4", base) == {"groups_per_update": 4}
    assert settings_of("TGRPO-stop_on=success@3", base) == {
        "stop_on": "success",
        "learning_rate": 3e-4,  # not 0.00030000000000000003
    }
    assert settings_of("PPO@3", base) == {"algo": "ppo", "learning_rate": 3e-4}
    assert settings_of("PPO-n_epochs=2", base) == {"algo": "ppo", "n_epochs": 2}
    assert settings_of("GRPO-kl_coef=0.04-learning_rate=1e-5@3", base) == {
        **settings_of("GRPO", base),
        "kl_coef": 0.04,
        "learning_rate": 3e-5,  # three times what the name says before
    }
    assert settings_of("TGRPO-step-compare_ended=true", base) == {
        "alpha_step": 1.0, "alpha_traj": 0.0, "compare_ended": True,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("TGPRO", "Unknown method 'TGPRO'. Available: SFT, PPO"),
        ("TGRPO-speed", "Unknown method 'TGRPO-speed'"),
        ("TGRPO-reward=a/b", "Unknown method"),
        ("TGRPO-N=x", "Method 'TGRPO-N=x': N=x must be a whole number"),
        ("TGRPO-N=1", "N=1 must be .* 2 or more"),
        ("PPO@fast", "Method 'PPO@fast': what follows @"),
        ("TGRPO-speed=1", "Method 'TGRPO-speed=1': Unknown setting 'speed'"),
        ("TGRPO-n_epochs=many", "Method 'TGRPO-n_epochs=many': n_epochs must be"),
        ("PPO-kl_coef=0.04", "PPO does not use kl_coef. Its settings: .*ent_coef"),
        ("PPO-N=4", "PPO does not use group_size, groups_per_update, parallel_groups"),
        ("DPO-alpha=0.5", "DPO does not use alpha_step, alpha_traj. .*beta"),
        ("TGRPO-beta=1", "TGRPO does not use beta"),
        ("TGRPO-algo=ppo", "TGRPO does not use algo"),
        ("SFT@3", "SFT does not use learning_rate. Its settings: none, being the start policy"),
        ("TRPO@3", "TRPO does not use learning_rate"),
        ("TGRPO-n_epochs=2-n_epochs=3", "n_epochs is set twice"),
        ("TGRPO-N=4-group_size=6", "group_size is set twice"),
    ],
)
def test_methods_that_there_are_not(method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(method, TrainConfig())


@pytest.mark.parametrize("algo", [algo for algo in USED_SETTINGS if algo != "sft"])
def test_settings_that_a_method_uses(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each setting of the algorithms changes what is built or for how long it learns, or is not among those used."""

    def built(config: TrainConfig) -> list[Any]:
        calls: list[Any] = []

        def note(*arguments: Any, **settings: Any) -> Any:
            calls.append((repr(arguments), sorted((name, repr(value)) for name, value in settings.items())))
            return SimpleNamespace(num_envs=8)

        for module, name in [
            (tgrpo, "TGRPO"), (baselines, "PPO"), (envs, "make_group_env"), (train_stages, "make_ungrouped_env"),
        ]:  # fmt: skip
            monkeypatch.setattr(module, name, note)
        monkeypatch.setattr(baselines, "algorithm_class", lambda algo: note)
        setup = train_stages.Setup("start", "its hash", "light", "light", 128, "a reward", None, None, None)
        env = train_stages.make_training_env(config, setup)
        train_stages.make_model(config, setup, RunFolder(tmp_path), env)
        return [*calls, config.algorithm.total_timesteps]  # what learn() is told

    base = TrainConfig().updated({"algo": algo, "stop_on": "never", "alpha_step": 0.0, "reward": "sparse"})
    assert built(base) == built(base)
    other: dict[str, Any] = {"stop_on": "success", "outcome_reward": "success", "compare_ended": True, "parallel_groups": 1}
    names = [item.name for part in (AlgorithmConfig, BaselineConfig) for item in fields(part) if item.name != "algo"]
    used = set()
    for name in names:
        if algo in ("dpo", "tpo") and name == "stop_on":  # has only one value there
            used.add(name)
            continue
        if name not in other:
            value = getattr(base.algorithm, name, getattr(base.baseline, name, None))
            other[name] = 2 * value if isinstance(value, int) else value / 2 or 0.25
        if built(base) != built(base.updated({name: other[name]})):
            used.add(name)
    assert used == USED_SETTINGS[algo]


@pytest.mark.parametrize("parallel", [1, 2, 4])
@pytest.mark.parametrize("size", [2, 3, 4, 6, 8])
def test_group_size_keeps_the_batch(size: int, parallel: int) -> None:
    base = TrainConfig().updated({"group_size": 4, "groups_per_update": 16, "parallel_groups": parallel})
    changed = base.updated(settings_of(f"TGRPO-N={size}", base)).algorithm
    assert changed.group_size == size and abs(changed.groups_per_update * size - 64) <= size * changed.parallel_groups / 2
    assert changed.parallel_groups * size <= max(4 * parallel, size)


def test_tasks() -> None:
    assert env_ids(["libero_goal-2", "LIBERO/libero_goal-2-v0", "CartPole-v1"]) == ["LIBERO/libero_goal-2-v0", "CartPole-v1"]
    assert env_ids(["libero_spatial"]) == [f"LIBERO/libero_spatial-{k}-v0" for k in range(10)]


def test_cells() -> None:
    cells = study(checkpoints={ENVS[1]: "there"}).cells()
    assert len(cells) == 2 * 2 * 4 and [cell.method for cell in cells[:4]] == ["SFT"] * 4  # the start policy first
    assert {cell.config.start.checkpoint for cell in cells if cell.env == ENVS[1]} == {"there"}
    assert len({cell.name for cell in cells}) == len(cells)
    assert [cell.method for cell in study(methods=("TGRPO",)).cells()][:4] == ["SFT"] * 4  # even if not asked for
    base = TrainConfig().updated({"alpha_step": 0.3, "alpha_traj": 0.7})
    alphas = {cell.method: cell for cell in study("alpha", config=base).cells()}
    assert alphas["TGRPO-alpha=0.3"].name.endswith("/TGRPO/seed_1")  # the same run has one folder
    assert alphas["TGRPO-alpha=0.5"].name.endswith("/TGRPO-alpha=0.5/seed_1")


def test_overrides_of_tgrpo_are_those_of_its_variants() -> None:
    tuned = study("ablation", overrides={"TGRPO": {"learning_rate": 7e-5}, "TGRPO-step": {"kl_coef": 0.5}})
    found = {cell.method: cell.config.algorithm for cell in tuned.cells()}
    assert found["TGRPO-never"].learning_rate == found["TGRPO-step"].learning_rate == 7e-5
    assert found["TGRPO-step"].kl_coef == 0.5 and found["SFT"].learning_rate == TrainConfig().algorithm.learning_rate


def test_variants_change_what_tgrpo_has_in_the_study() -> None:
    usual = {"kl_coef": 0.1, "learning_rate": 5e-5, "alpha_step": 0.6, "alpha_traj": 0.4, "group_size": 6}
    methods = ("TGRPO", "TGRPO-kl_coef=0.02", "TGRPO@3", "TGRPO-alpha=0.9", "TGRPO-N=4", "TGRPO-step", "GRPO")
    own = {"TGRPO-step": {"alpha_step": 0.8}, "GRPO": {"outcome_reward": "return"}}  # of single methods, so the last word
    found = {cell.method: cell for cell in study(methods=methods, overrides={"TGRPO": usual, **own}).cells()}
    algorithm = {method: cell.config.algorithm for method, cell in found.items()}
    base = TrainConfig().updated(usual).algorithm
    assert algorithm["TGRPO"] == base
    assert algorithm["TGRPO-kl_coef=0.02"] == replace(base, kl_coef=0.02)
    assert algorithm["TGRPO@3"] == replace(base, learning_rate=1.5e-4)
    assert algorithm["TGRPO-alpha=0.9"] == replace(base, alpha_step=0.9, alpha_traj=0.1)
    assert algorithm["TGRPO-N=4"] == replace(base, group_size=4, parallel_groups=3, groups_per_update=3)  # of 2 groups of 6
    assert algorithm["TGRPO-step"] == replace(base, alpha_step=0.8, alpha_traj=0.0)
    assert algorithm["GRPO"].outcome_reward == "return" and algorithm["GRPO"].kl_coef == 0.0
    assert {cell.place for cell in found.values()} == {"SFT", *methods}  # none is another's copy


def test_a_setting_for_a_method_that_does_not_use_it_is_refused() -> None:
    """It would do nothing, and the table would say that it was set."""
    with pytest.raises(ValueError, match=r"PPO does not use kl_coef\. Its settings: "):
        study(overrides={"PPO": {"kl_coef": 0.1}}).cells()
    with pytest.raises(ValueError, match="PPO does not use kl_coef"):  # which a variant would have from it
        study(methods=("PPO@3",), overrides={"PPO": {"kl_coef": 0.1}}).cells()
    with pytest.raises(ValueError, match="PPO@3 does not use kl_coef"):
        study(methods=("PPO@3",), overrides={"PPO@3": {"kl_coef": 0.1}}).cells()
    with pytest.raises(ValueError, match="SFT does not use learning_rate"):
        study(overrides={"SFT": {"learning_rate": 0.1}}).cells()


PROTOCOL_HOLES: list[tuple[dict[str, Any], str]] = [
    ({"methods": ("TGRPO-seed=5",)}, "TGRPO-seed=5 changes .* .seed was 0, is 5."),
    ({"methods": ("TGRPO-eval_starts=10",)}, "evaluation.eval_starts was 50, is 10"),
    ({"methods": ("TGRPO-start_noise=0.1",)}, "task.start_noise was 0.0, is 0.1"),
    ({"overrides": {"PPO": {"checkpoint": "/other"}}}, "PPO changes .* .start.checkpoint was None, is '/other'.*leave it out"),
    ({"overrides": {"PPO": {"eval_starts": 10}}}, "evaluation.eval_starts was 50, is 10"),
    ({"overrides": {"PPO": {"env": ENVS[1]}}}, "task.env was"),
    ({"overrides": {"TGRPO": {"max_episode_steps": 9}}}, "task.max_episode_steps was None, is 9"),
    ({"overrides": {"SFT": {"eval_temperatures": (0.0,)}}}, "evaluation.eval_temperatures was"),
]


@pytest.mark.parametrize(("changes", "message"), PROTOCOL_HOLES)
def test_what_all_methods_have_in_common(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes).cells()


def test_methods_may_have_rewards_of_their_own() -> None:
    cells = study(methods=("TGRPO-sparse",), overrides={"SFT": {"payment": "potential"}}).cells()
    assert {(cell.config.task.reward, cell.config.task.payment) for cell in cells} == {
        ("shipped", "potential"),
        ("sparse", "latched"),
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": (1, 1)}, "seeds must be one or more different"),
        ({"envs": ()}, "tasks must be one or more different"),
        ({"config": TrainConfig().updated({"from_scratch": True})}, "make it first"),
        ({"checkpoints": {"LIBERO/libero_goal-1-v0": "x"}}, "not part of this study"),
        ({"overrides": {"DPO": {"beta": 1.0}}}, "settings are given for DPO"),
        ({"overrides": {"PPO": {"total_timesteps": 7}}}, "total_timesteps was 40000, is 7"),
        ({"overrides": {"PPO": {"gama": 0.9}}}, "gama"),
    ],
)
def test_bad_studies(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        study(**changes).cells()


def test_settings_from_text() -> None:
    assert parse_setting("kl_coef", "1") == 1.0 and parse_setting("target_kl", "none") is None
    assert parse_setting("stop_on", "never") == "never" and parse_setting("eval_temperatures", "[0, 0.5]") == (0.0, 0.5)
    with pytest.raises(ValueError, match="Unknown setting 'kl'"):
        parse_setting("kl", "1")
    with pytest.raises(ValueError, match="must be one of"):
        parse_setting("stop_on", "always")


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


# ---------------------------------------------------------------------- tables


def evaluation(outcomes: list[int], env: str = ENVS[0]) -> Evaluation:
    task = env.removeprefix("LIBERO/").removesuffix("-v0")
    # Successes take 10, 11, ... steps, failures 280.
    episodes = [EvalEpisode(task, k, 0, bool(won), 10 + k if won else 280, 0.0) for k, won in enumerate(outcomes)]
    return Evaluation("policy", [env], True, None, "light", {}, episodes)


def found(these: Study, outcomes: dict[tuple[str, str, int], list[int]]) -> dict[Any, Evaluation]:
    cells = {(cell.method, cell.env, cell.seed): cell for cell in these.cells()}
    return {cells[key]: evaluation(value, key[1]) for key, value in outcomes.items()}


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
    paired = tgrpo["vs_sft"]["start"]
    assert (paired["only_before"], paired["only_after"], paired["n_pairs"]) == (1, 6, 16)
    assert paired["difference"] == 5 / 16 and tgrpo["vs_sft"]["evaluation"]["unit"] == "evaluation"
    # A method without one of the tasks has no overall figures, and takes no rank from others.
    assert rows["PPO"]["iqm"] is None and rows["PPO"]["rank"] is None and rows["PPO"]["tasks"][a]["rate"] == 0.0
    head, body = table_rows(rows, these.envs)
    assert head[:3] == ["method", "libero_object-3", "libero_object-9"] and body[2][1].startswith("62.5 [")
    assert body[1][2:] == ["-", "-", "-", "-", "-25.0 [-75.0, +0.0]", "- / -"]
    # Of TGRPO's four runs gains are 0.25 and 0.5 on the first task, 0 and 0.5 on the second.
    assert tgrpo["vs_sft"]["evaluation"]["interval"] == (0.125, 0.5) and tgrpo["vs_sft"]["seeds"] == 2
    assert body[2][6].startswith("+31.2 [") and "runs" not in body[2][6]  # two seeds say little of others
    # PPO has one cell, so against it there is one.
    assert rows["SFT"]["versus"] == {} and list(tgrpo["versus"]) == ["PPO"]
    pair = tgrpo["versus"]["PPO"]["start"]
    assert (pair["n_pairs"], pair["only_after"], pair["difference"]) == (4, 2, 0.5)
    assert "evaluation" not in tgrpo["versus"]["PPO"]
    # Of TGRPO on the first task 10, 11, 11, 12 and 13 steps, on the second twice 10 and 11, then 12 and 13.
    assert body[2][-1] == "11 / 11" and body[0][-1] == "10 / 10.5"
    head, body = versus_rows(rows)
    assert head == ["", "PPO", "TGRPO"]
    assert body == [["PPO", "-", "-50.0 [-100.0, +0.0], 1"], ["TGRPO", "+50.0 [+0.0, +100.0], 1", "-"]]
    assert plot(rows, "", "greedy").startswith(b"\x89PNG") and plot(rows, "alpha_1", "greedy").startswith(b"\x89PNG")


def test_the_interval_over_runs_keeps_the_tasks() -> None:
    """Each run gains half on one task and nothing on the other: other trainings would give the same."""
    a, b = ENVS
    these = study(methods=("SFT", "TGRPO"), seeds=(0, 1, 2))
    outcomes = {("SFT", a): [1, 0, 0, 0], ("TGRPO", a): [1, 1, 1, 0], ("SFT", b): [1, 0, 0, 0], ("TGRPO", b): [1, 0, 0, 0]}
    rows = summarise(found(these, {(m, env, k): won for (m, env), won in outcomes.items() for k in these.seeds}), these)
    assert rows["TGRPO"]["vs_sft"]["evaluation"]["interval"] == (0.25, 0.25) and rows["TGRPO"]["vs_sft"]["seeds"] == 3
    low, high = rows["TGRPO"]["vs_sft"]["start"]["interval"]
    assert low < 0.25 < high
    _, body = table_rows(rows, these.envs)
    assert body[1][6].startswith("+25.0 [") and body[1][6].endswith("], runs [+25.0, +25.0]")


@pytest.mark.parametrize("deterministic", [True, False])
def test_copies_of_an_evaluation_count_once(deterministic: bool) -> None:
    """Greedy play of the start policy is copied to every seed; sampled play is each seed's own, whatever comes out."""
    seeds = (0, 1, 2, 3, 4)
    these = study(methods=("SFT", "TGRPO"), seeds=seeds)
    outcomes = {ENVS[0]: [1] * 23 + [0] * 27, ENVS[1]: [1] * 40 + [0] * 10}
    played = {cell: replace(evaluation(outcomes[cell.env], cell.env), deterministic=deterministic) for cell in these.cells()}
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
    assert rows["TGRPO"]["vs_sft"]["start"]["n_pairs"] == 500


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


def tuning_results(
    folder: Path,
    rates: dict[str, float],
    env: str = "LIBERO/libero_object-1-v0",
    missing: Any = (),
    mode: str = "T=1",
    overrides: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    rows = {name: {"mean": score} for name, score in {"SFT": 0.9, **rates}.items()}
    greedy = {name: {"mean": 1 - row["mean"]} for name, row in rows.items()}
    common = {"envs": [env], "seeds": [0]}
    results = {**common, "modes": {mode: rows, "greedy": greedy}, "missing": list(missing)}
    RunFolder(folder).write("tuning/results.json", results)
    config = TrainConfig().updated({"env": env, **settings}).to_dict()
    record = {**common, "methods": list(rows), "overrides": overrides or {}, "config": config}
    RunFolder(folder).write("tuning/study.json", record)
    return folder


def test_tuning(tmp_path: Path) -> None:
    scores = {"PPO@0.3": 0.2, "PPO@1": 0.4, "PPO@3": 0.1, "TGRPO@0.3": 0.1, "TGRPO@1": 0.2, "TGRPO@3": 0.3}
    tuned = tuned_overrides(tuning_results(tmp_path / "a", scores), study())
    rate = TrainConfig().algorithm.learning_rate
    assert tuned.overrides == {"PPO": {"learning_rate": rate}, "TGRPO": {"learning_rate": 3e-4}}
    assert tuned.tuning is not None and tuned.tuning["chosen"] == {"PPO": 1.0, "TGRPO": 3.0}
    assert tuned.tuning["learning_rates"] == {"PPO": rate, "TGRPO": 3e-4} and tuned.tuning["mode"] == "T=1"
    with pytest.raises(ValueError, match="tune on other tasks"):
        tuned_overrides(tuning_results(tmp_path / "b", scores, ENVS[0]), study())
    del scores["PPO@3"]
    with pytest.raises(ValueError, match="unequal numbers of trials"):
        tuned_overrides(tuning_results(tmp_path / "c", scores), study())
    with pytest.raises(ValueError, match="not finished"):
        tuned_overrides(tuning_results(tmp_path / "d", {"PPO@1": 0.1}, missing=["PPO@3"]), study())
    with pytest.raises(ValueError, match="no finished tuning"):
        tuned_overrides(tmp_path / "e", study())
    with pytest.raises(ValueError, match=r"evaluated by T=0.5, greedy, .* chosen by T=1: tune with 1.0"):
        tuned_overrides(tuning_results(tmp_path / "f", scores, mode="T=0.5"), study())


def test_tuning_gives_the_rate_that_was_tried(tmp_path: Path) -> None:
    scores = {"PPO@1": 0.2, "PPO@3": 0.1, "TGRPO@1": 0.2, "TGRPO@3": 0.3}
    own = {"TGRPO": {"learning_rate": 2e-3}}  # of the tuning
    folder = tuning_results(tmp_path, scores, learning_rate=1e-3, overrides=own)
    tuned = tuned_overrides(folder, study(methods=("PPO", "TGRPO", "TGRPO@3")))
    assert tuned.config.algorithm.learning_rate == 1e-4
    found = {cell.method: cell.config.algorithm.learning_rate for cell in tuned.cells()}
    assert (found["PPO"], found["TGRPO"], found["TGRPO@3"]) == (1e-3, 6e-3, 1.8e-2)


# ---------------------------------------------------------------------- other methods in the main job


def test_rollouts_make_up_the_budget() -> None:
    for total, n_envs, wanted in ((60_000, 4, 256), (100, 2, 20), (24_000, 64, 256), (10, 4, 256)):
        steps = rollout_steps(total, n_envs, wanted)
        rollouts = -(-total // (steps * n_envs))
        assert 0 <= rollouts * steps * n_envs - total <= max(rollouts * n_envs, 2 * n_envs)
    assert rollout_steps(60_000, 4, 256) == 255  # 59 rollouts


def test_minibatches_leave_no_small_rest() -> None:
    assert [even_batch_size(*sizes) for sizes in ((2056, 256), (64, 256), (2048, 256), (257, 256))] == [229, 64, 256, 129]
    for n_steps in range(500, 3000, 7):
        size = even_batch_size(n_steps, 256)
        rest = n_steps % size
        assert size <= 256 and (rest == 0 or rest > 0.9 * size)
    assert even_batch_size(1602, 32) == 31  # of 32, two steps would be left, of 31 there are 21
    for n_steps in range(1, 3000, 7):
        size = even_batch_size(n_steps, 32)
        rest = n_steps % size
        assert size <= 32 and (rest == 0 or rest >= size / 2)
    for n_steps in range(500, 4001, 7):  # those of large minibatches stay as even as they can be
        assert all(even_batch_size(n_steps, most) == -(-n_steps // -(-n_steps // most)) for most in (256, 512))


def test_drawn_starts_depend_on_the_seed_alone() -> None:
    env = DrawnStarts(ScriptEnv(), lambda rng: {"init_state_id": int(rng.integers(50))})

    def starts(seed: int) -> list[Any]:
        found = [env.reset(seed=seed), env.reset(), env.reset()]
        return [(obs.tolist(), info["options"]) for obs, info in found]

    first = starts(3)
    assert len({str(start) for start in first}) == 3 and starts(3) == first and starts(4) != first
    assert all(0 <= options["init_state_id"] < 50 for _, options in first)


def test_runs_of_neighbouring_seeds_share_no_starts() -> None:
    """Stable-Baselines3 seeds the i-th environment with seed + i."""
    envs = [DrawnStarts(ScriptEnv(), place=place) for place in range(4)]

    def first_starts(seed: int) -> set[float]:
        return {float(env.reset(seed=seed + place)[0][0]) for place, env in enumerate(envs)}

    assert len(first_starts(0) | first_starts(1) | first_starts(2)) == 12


def test_ungrouped_environments_go_their_own_ways() -> None:
    env = make_ungrouped_env(ScriptEnv, 2)
    try:
        env.seed(5)
        starts = env.reset()[:, 0].tolist()
        assert starts[0] != starts[1]
        _, rewards, _, _ = env.step(np.array([1, 2]))
        assert rewards.tolist() == [1.0, 2.0]
        env.seed(5)
        assert env.reset()[:, 0].tolist() == starts
    finally:
        env.close()


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Un-grouped environments without processes, which take seconds to start."""

    def make(one: Callable[[], gym.Env], n_envs: int, start_options: Any = None) -> VecEnv:
        return DummyVecEnv([partial(DrawnStarts, one(), start_options, place) for place in range(n_envs)])

    monkeypatch.setattr("sb3_tgrpo.train.stages.make_ungrouped_env", make)
    for name in ("film", "show_videos"):
        monkeypatch.setattr(f"sb3_tgrpo.train.job.{name}", lambda *args: None)
    yield


def toy(**changes: Any) -> TrainConfig:
    return TrainConfig().updated({**TOY, "eval_temperatures": (1.0,), **changes})


def check_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_tgrpo.train.job._write_report", lambda *args: None)


@pytest.mark.parametrize("algo", ["ppo", "dpo", "tpo", "trpo", "recurrent_ppo"])
def test_other_methods(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> None:
    check_report(monkeypatch)
    stop_on = "never" if algo in ("dpo", "tpo") else "success"
    results = run_training(toy(algo=algo, stop_on=stop_on), tmp_path)
    rows = JsonLines(tmp_path / "metrics.jsonl").read()
    assert rows and results["timesteps"] == rows[-1]["timesteps"]
    assert 40 <= results["timesteps"] <= (60 if algo in ("dpo", "tpo") else 40)  # whole groups, whole rollouts
    assert results["modes"]["T=1"]["after"]["episodes"] == 2
    for part in ("rollout", "update"):
        spent = [row[f"time/{part}_seconds"] for row in rows]
        assert max(spent) > 0 or (algo, part) == ("dpo", "update")  # no pairs, no update
        assert results["seconds"][f"{part}s"] == pytest.approx(sum(spent))
    assert results["seconds"]["total"] >= results["seconds"]["rollouts"] + results["seconds"]["updates"]
    model = algorithm_class(algo).load(tmp_path / "model.zip", device="cpu")
    is_vla = hasattr(model.policy, "export_merged")
    assert is_vla == (algo in ("ppo", "dpo", "tpo")) == (tmp_path / "checkpoint" / "config.json").is_file()
    if algo == "ppo":
        assert model.policy.value_net is not None


def test_references_see_what_their_network_was_made_for() -> None:
    image = spaces.Box(0, 255, (3, 128, 128), np.uint8)
    extractor = SceneExtractor(
        spaces.Dict({"image": image, "small": spaces.Box(0, 255, (3, 64, 64), np.uint8), "instruction": spaces.MultiBinary(9)})
    )
    assert {
        key: next(part.in_features for part in net.modules() if isinstance(part, th.nn.Linear))
        for key, net in extractor.extractors.items()
    } == {
        "image": 64 * 7 * 7,  # Mnih et al.'s
        "small": 64 * 4 * 4,
    }
    seen = {"image": th.rand(2, 3, 128, 128), "small": th.rand(2, 3, 64, 64), "instruction": th.zeros(2, 9)}
    assert extractor(seen).shape == (2, extractor.features_dim)
    whole = functional.adaptive_avg_pool2d(seen["image"], 84)
    assert th.equal(extractor(seen), extractor({**seen, "image": whole}))
    assert not th.equal(extractor(seen), extractor({**seen, "image": whole.flip(-1)}))


def test_ppo_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> None:
    check_report(monkeypatch)
    config = toy(algo="ppo", total_timesteps=80)
    updates = []

    def interrupted(self: PPO) -> None:
        if len(updates) == 2:
            raise KeyboardInterrupt
        updates.append(self.num_timesteps)
        train(self)

    train = PPO.train
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(PPO, "train", interrupted)
        run_training(config, tmp_path)
    assert (tmp_path / "resume.zip").is_file()
    assert run_training(config, tmp_path)["timesteps"] == 80
    steps = [row["timesteps"] for row in JsonLines(tmp_path / "metrics.jsonl").read()]
    assert steps == sorted(set(steps)) and steps[:2] == updates


@pytest.mark.parametrize(("workers", "given", "threads"), [(1, None, None), (2, None, 1), (2, 3, 3)])
def test_cells_at_once_share_the_cores(
    workers: int, given: int | None, threads: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_tgrpo.study.runner.subprocess.Popen", lambda *args, **kwargs: None)
    cell = Study("table1", toy(update_threads=given), ("vla_toy:Toy-v0",), ("SFT",)).cells()[0]
    study_module._start(cell, None, RunFolder(tmp_path), workers)
    assert RunFolder(tmp_path).read(f"{cell.name}/cell.json")["update_threads"] == threads


def test_start_policy_alone_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None) -> None:
    check_report(monkeypatch)
    results = run_training(toy(algo="sft"), tmp_path)
    mode = results["modes"]["T=1"]
    assert mode["before"] == mode["after"] and results["timesteps"] == 0 and not (tmp_path / "model.zip").exists()


def test_preferences_need_whole_episodes() -> None:
    with pytest.raises(ValueError, match=r"set stop_on='never' .now 'success'"):
        toy(algo="dpo", stop_on="success")


# ---------------------------------------------------------------------- a study, and interruption


def study_arguments(folder: Path) -> list[str]:
    settings = [f"{name}={'none' if value is None else value}" for name, value in TOY.items()]
    given = [text for text in settings if not text.startswith(("env=", "checkpoint=", "total_timesteps="))]
    return ["study", "table1", "--tasks", TOY["env"], "--methods", "TGRPO", "--seeds", "0", "--checkpoint", "tiny",
            "--budget", "40", "--workers", "1", "--out", str(folder), "--set", *given]  # fmt: skip


def environ(pause: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "VLA_TOY_PAUSE": pause, "PYTHONPATH": str(HELPERS)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of the toy."""
    folder = tmp_path_factory.mktemp("study")
    command = [sys.executable, "-m", "sb3_tgrpo", *study_arguments(folder)]
    done = subprocess.run(command, env=environ("0"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TGRPO" in done.stdout and "table.md" in done.stdout
    return folder


CELL = "cells/vla_toy_Toy/TGRPO/seed_0"


def test_study_folder(finished: Path) -> None:
    results = RunFolder(finished).read("table1/results.json")
    assert results["budget"] == 40 and not results["missing"] and [c["method"] for c in results["cells"]] == ["SFT", "TGRPO"]
    assert results["cells"][0]["timesteps"] == 0 and results["cells"][1]["timesteps"] >= 40
    assert set(results["modes"]) == {"greedy", "T=1"} and set(results["modes"]["greedy"]) == {"SFT", "TGRPO"}
    record = RunFolder(finished).read("table1/study.json")
    (call,) = record["calls"]
    assert call["command"].startswith("sb3-tgrpo study table1") and call["hardware"]["cpu"] and call["versions"]["torch"]
    text = (finished / "table1/table.md").read_text()
    assert "| TGRPO |" in text and "Tuning: none" in text and "Start policy: vla_toy_Toy: tiny" in text
    assert (finished / "table1/greedy.png").is_file() and (finished / "table1/T1.png").is_file()
    # The start policy was played once; the other cell has taken its outcomes over.
    copies = [finished / f"cells/vla_toy_Toy/{m}/seed_0/evaluations/before_T1/evaluation.json" for m in ("SFT", "TGRPO")]
    assert copies[0].read_bytes() == copies[1].read_bytes()
    assert "evaluate before, greedy" in (finished / CELL / "log.txt").read_text()
    assert "(done before)" in (finished / CELL / "log.txt").read_text()
    assert json.loads((finished / CELL / "config.json").read_text())["seed"] == 0
    assert json.loads((finished / CELL / "setup.json").read_text()) == {"start": "tiny", "assets": "none", "reward": None}


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
    assert "TGRPO/seed_0 is of other settings (algorithm.kl_coef was 0.0, is 0.5)" in refusal
    assert main([*study_arguments(finished), "max_episode_steps=7"]) == 1
    assert "SFT/seed_0 is of other settings (task.max_episode_steps was" in capsys.readouterr().err


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
        with pytest.raises(ValueError, match=f"{wrong.method}/seed_0 is of other settings"):
            check_cells([wrong], root)
    ppo = cells()["PPO"]
    root.write(f"{ppo.name}/config.json", ppo.config.updated({"algo": "trpo"}).to_dict())
    with pytest.raises(ValueError, match=r"algorithm\.algo was 'trpo', is 'ppo'"):
        check_cells([ppo], root)
    root.write(f"{ppo.name}/config.json", ppo.config.to_dict())
    (root / ppo.name / "results.json").unlink()
    check_cells([cells(kl_coef=0.5)["PPO"]], root)  # nothing of it was played
    (root / ppo.name / "evaluations").mkdir()
    with pytest.raises(ValueError, match="kl_coef was"):  # to go on it would have to be the same in all
        check_cells([cells(kl_coef=0.5)["PPO"]], root)


def test_a_checkpoint_that_was_replaced_is_noticed(tmp_path: Path) -> None:
    root = RunFolder(tmp_path)
    study = Study("table1", TrainConfig(), ("LIBERO/libero_object-8-v0",), ("TGRPO",), (0,))
    cell = study.cells()[0]
    root.write(f"{cell.name}/config.json", cell.config.to_dict())
    (root / cell.name / "evaluations").mkdir()  # an episode was played
    root.write(f"{cell.name}/setup.json", {"start": checkpoint_identity(shipped_start()), "assets": "light"})
    check_cells([cell], root)
    root.write(f"{cell.name}/setup.json", {"start": "an earlier one", "assets": "light"})
    with pytest.raises(ValueError, match=r"SFT/seed_0 started from another policy than .* holds now"):
        check_cells([cell], root)


def test_cells_of_an_earlier_reward_are_tabled_and_not_added_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = RunFolder(tmp_path)
    study = Study("table1", TrainConfig(), ("LIBERO/libero_object-8-v0",), ("TGRPO", "TGRPO-sparse"), (0,))
    started: list[Cell] = []
    monkeypatch.setattr(study_module, "_run", lambda cells, *args: started.extend(cells) or {})
    monkeypatch.setattr("sb3_tgrpo.study.tables.write_results", lambda study, root: {})
    cells = study.cells()
    rewards = [None if cell.method == "TGRPO-sparse" else load_reward("libero_object-8").sha256 for cell in cells]
    for newer, runs in (("", True), ("an older one", False), (None, True)):
        for cell, reward in zip(cells, rewards, strict=True):
            root.write(f"{cell.name}/config.json", cell.config.to_dict())
            (root / cell.name / "evaluations").mkdir(exist_ok=True)
            setup = {"start": checkpoint_identity(shipped_start()), "assets": "light", "reward": reward}
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
            with pytest.raises(ValueError, match=r"was paid by another version of the reward, an older"):
                run_study(study, tmp_path)
            assert not started


def test_a_run_goes_on_with_its_reward_alone(tmp_path: Path) -> None:
    setup = train_stages.Setup("start", "its hash", "light", "light", 128, "a reward", "its digest", None, None)
    main_job._record_setup(setup, RunFolder(tmp_path))
    main_job._record_setup(setup, RunFolder(tmp_path))
    with pytest.raises(ValueError, match="reward was 'its digest', is 'another'"):
        main_job._record_setup(replace(setup, reward="another"), RunFolder(tmp_path))
    RunFolder(tmp_path).write("setup.json", {"start": "its hash", "assets": "light"})  # by an earlier version
    main_job._record_setup(replace(setup, reward="another"), RunFolder(tmp_path))


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


class Recorder(StudyView):
    """A view that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[StudyProgress] = []

    def print(self, text: str) -> None:
        pass

    def refresh(self, progress: StudyProgress) -> None:
        self.seen.append(progress)


def test_a_view_is_told_how_cells_stand(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(study_module, "_start", partial(start_pretended, tmp_path / "study", finished / CELL))
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


def test_tables_of_what_is_there(finished: Path, tmp_path: Path) -> None:
    these = Study("table1", TrainConfig().updated(TOY), (TOY["env"],), ("TGRPO",), (0, 1))
    os.symlink(finished / "cells", tmp_path / "cells")
    results = write_results(these, RunFolder(tmp_path))
    assert results["missing"] == ["SFT, vla_toy_Toy, seed 1", "TGRPO, vla_toy_Toy, seed 1"]
    assert "Not finished, so not in the tables: SFT" in markdown(results, these, RunFolder(tmp_path))


def copy_of_tables(finished: Path, folder: Path, **record: Any) -> Path:
    """The finished study with other things in its record."""
    shutil.copytree(finished / "table1", folder / "table1")
    os.symlink(finished / "cells", folder / "cells")
    stored = RunFolder(folder).read("table1/study.json")
    RunFolder(folder).write("table1/study.json", {**stored, **record})
    return folder


def test_tables_are_of_the_settings_asked_for(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy_of_tables(finished, tmp_path)
    before = (folder / "table1/table.md").read_text()
    assert main([*study_arguments(folder), "--tables", "--budget", "50"]) == 1
    assert "TGRPO/seed_0 is of other settings (algorithm.total_timesteps was 40, is 50)" in capsys.readouterr().err
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
    assert "settings of TGRPO are {'learning_rate': 0.001}, given are {'learning_rate': 0.1}" in capsys.readouterr().err
    other = tuning_results(tmp_path / "other", {"TGRPO@1": 0.3}, learning_rate=1e-3)
    assert main([*arguments, "--tables", "--tuning", str(other)]) == 1
    assert "tuning is {'envs'" in capsys.readouterr().err
    untuned = copy_of_tables(finished, tmp_path / "untuned")
    assert main([*study_arguments(untuned), "--tables", "--tuning", str(same)]) == 1
    assert "study.json has other settings than those given" in capsys.readouterr().err


def test_tables_of_cells_that_another_grid_ran(finished: Path, tmp_path: Path) -> None:
    os.symlink(finished / "cells", tmp_path / "cells")
    these = Study("ablation", TrainConfig().updated(TOY), (TOY["env"],), ("TGRPO",), (0,))
    assert not write_tables(these, tmp_path)["missing"]  # no record of this grid


def test_commit_is_that_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of a repository that the environment with the package lies in."""

    def git(*arguments: str) -> str:
        named = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org", "-C", str(tmp_path), *arguments]
        return subprocess.run(named, capture_output=True, text=True, check=True).stdout.strip()

    installed = tmp_path / "venv/site-packages/sb3_tgrpo/study.py"
    installed.parent.mkdir(parents=True)
    installed.write_text("")
    (tmp_path / "thesis.tex").write_text("")
    monkeypatch.setattr(study_module, "__file__", str(installed))
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


def test_a_cell_that_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = study_arguments(tmp_path)
    arguments[arguments.index("tiny")] = str(tmp_path / "nothing")
    save_tiny(tmp_path / "nothing", 32)
    (tmp_path / "nothing" / "model.safetensors.index.json").unlink()  # its weights can't be found
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert "2 of 2 cells failed" in output.err and "the start policy could not be evaluated" in output.err
    assert "nothing" in output.err and "Traceback" not in output.err
