"""Other methods than TGRPO as training runs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from studies import toy
from torch.nn import functional
from toy_envs import ScriptEnv

from sb3_tgrpo import envs
from sb3_tgrpo.baselines.ungrouped import (
    DrawnStarts,
    SceneExtractor,
    algorithm_class,
    even_batch_size,
    make_ungrouped_env,
    rollout_steps,
)
from sb3_tgrpo.evaluation.player import EpisodePlayer
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.train.job import run_training


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
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments without processes, which take seconds to start; neither videos nor a report."""

    def make(one: Callable[[], gym.Env], n_envs: int, start_options: Any = None) -> VecEnv:
        return DummyVecEnv([partial(DrawnStarts, one(), start_options, place) for place in range(n_envs)])

    monkeypatch.setattr("sb3_tgrpo.train.model.make_ungrouped_env", make)
    grouped, init = envs.make_group_env, EpisodePlayer.__init__
    monkeypatch.setattr(envs, "make_group_env", lambda *args, **how: grouped(*args, **{**how, "subprocess": False}))
    monkeypatch.setattr(EpisodePlayer, "__init__", lambda *args, **how: init(*args, **{**how, "subprocess": False}))
    for name in ("_film", "write_report"):
        monkeypatch.setattr(f"sb3_tgrpo.train.job.{name}", lambda *args: {})


@pytest.mark.parametrize("algo", ["ppo", "dpo", "tpo", "trpo", "recurrent_ppo"])
def test_other_methods(algo: str, tmp_path: Path, in_this_process: None) -> None:
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


def test_base_policy_alone_is_evaluated_once(tmp_path: Path, in_this_process: None) -> None:
    results = run_training(toy(algo="sft"), tmp_path)
    mode = results["modes"]["T=1"]
    assert mode["before"] == mode["after"] and results["timesteps"] == 0 and not (tmp_path / "model.zip").exists()


def test_preferences_need_whole_episodes() -> None:
    with pytest.raises(ValueError, match=r"set stop_on='never' .now 'success'"):
        toy(algo="dpo", stop_on="success")
