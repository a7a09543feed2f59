"""Names of methods, and what they change."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sb3_tgrpo.envs.registration import env_ids
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.study.methods import GRIDS, METHODS, settings_of
from sb3_tgrpo.train import model as train_model
from sb3_tgrpo.train.config import USED_SETTINGS, AlgorithmConfig, BaselineConfig, TrainConfig, parse_setting
from sb3_tgrpo.train.setup import Setup


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
        ("TGRPO-n_epochs=many", "Method 'TGRPO-n_epochs=many': n_epochs"),
        ("PPO-kl_coef=0.04", "PPO does not use kl_coef. Its settings: .*ent_coef"),
        ("PPO-N=4", "PPO does not use group_size, groups_per_update, parallel_groups"),
        ("DPO-alpha=0.5", "DPO does not use alpha_step, alpha_traj. .*beta"),
        ("TGRPO-beta=1", "TGRPO does not use beta"),
        ("TGRPO-algo=ppo", "TGRPO does not use algo"),
        ("SFT@3", "SFT does not use learning_rate. Its settings: none, being the base policy"),
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

        monkeypatch.setattr("sb3_tgrpo.envs.make_group_env", note)
        monkeypatch.setattr(train_model, "make_ungrouped_env", note)
        monkeypatch.setattr(train_model, "algorithm_class", lambda algo: note)
        nothing: dict[str, Any] = dict.fromkeys(item.name for item in fields(Setup))
        setup = Setup(**{**nothing, "env_kwargs": {}, "policy_kwargs": {}})
        env = train_model.make_training_env(config, setup)
        train_model.make_model(config, setup, RunFolder(tmp_path), env)
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


def test_settings_from_text() -> None:
    assert parse_setting("kl_coef", "1") == 1.0 and parse_setting("target_kl", "none") is None
    assert parse_setting("stop_on", "never") == "never" and parse_setting("eval_temperatures", "[0, 0.5]") == (0.0, 0.5)
    with pytest.raises(ValueError, match="Unknown setting 'kl'"):
        parse_setting("kl", "1")
    with pytest.raises(ValueError, match="must be one of"):
        parse_setting("stop_on", "always")
