"""Cells of a study: what all methods have in common, and what is theirs alone."""

from dataclasses import replace
from typing import Any

import pytest
from studies import ENVS, study

from sb3_tgrpo.train.config import TrainConfig


def test_cells() -> None:
    cells = study(checkpoints={ENVS[1]: "there"}).cells()
    assert len(cells) == 2 * 2 * 4 and [cell.method for cell in cells[:4]] == ["SFT"] * 4  # the start policy first
    assert {cell.config.base_policy.checkpoint for cell in cells if cell.env == ENVS[1]} == {"there"}
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
    assert {cell.folder_method for cell in found.values()} == {"SFT", *methods}  # none is another's copy


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
    ({"methods": ("TGRPO-eval_initial_states=10",)}, "evaluation.eval_initial_states was 50, is 10"),
    ({"methods": ("TGRPO-start_noise=0.1",)}, "task.start_noise was 0.0, is 0.1"),
    (
        {"overrides": {"PPO": {"checkpoint": "/other"}}},
        "PPO changes .*checkpoint was None, is '/other'.*leave it out",
    ),
    ({"overrides": {"PPO": {"eval_initial_states": 10}}}, "evaluation.eval_initial_states was 50, is 10"),
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
        ({"seeds": (1, 1)}, "seeds=\\[1, 1\\] must be one or more"),
        ({"seeds": (0, -1)}, "must be 0 or above"),
        ({"envs": ()}, "tasks=\\[\\] must be one or more"),
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
