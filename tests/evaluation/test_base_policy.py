"""The four numbers of a base policy."""

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import FloatSchedule

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.base_policy import BasePolicyReport, describe_base_policy
from sb3_tgrpo.evaluation.protocol import Protocol
from sb3_tgrpo.openvla.policy import OpenVLAPolicy

STATES = Protocol(seeds=(0, 1, 2, 5, 6), repetitions=4, decoding=Decoding(1.0))
INSTRUCTION = b"pick up the milk".ljust(256, b"\x00")


class Coin(gym.Env):
    """Two steps long. Seeds below 2 succeed, 2 fails, others succeed if the second action's first number is positive."""

    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8), "instruction": spaces.Box(0, 255, (256,), np.uint8)}
    )
    action_space = spaces.Box(-1, 1, (7,), np.float32)
    resets: list[tuple[int | None, Any]]

    def __init__(self) -> None:
        self.resets = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        self.resets.append((seed, options))
        self.start = (options or {}).get("init_state_id", seed)
        self.steps = 0
        return self.observe(), {"is_success": False}

    def observe(self) -> dict[str, np.ndarray]:
        image = np.full((64, 64, 3), 10 * self.start, np.uint8)
        return {"image": image, "instruction": np.frombuffer(INSTRUCTION, np.uint8).copy()}

    def step(self, action: np.ndarray):
        assert self.action_space.contains(action)
        self.steps += 1
        success = self.steps == 2 and (self.start < 2 or (self.start > 2 and action[0] > 0))
        return self.observe(), 0.0, success, self.steps == 2, {"is_success": success}


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    spaces_ = Coin.observation_space, Coin.action_space
    return OpenVLAPolicy(*spaces_, FloatSchedule(0.0), checkpoint="tiny", lora=None, value_head=False, temperature=0.7)


def test_numbers(policy: OpenVLAPolicy):
    env = Coin()
    seen: list[tuple[int, str, bool, int]] = []
    state = th.get_rng_state()
    report = describe_base_policy(policy, env, STATES, on_episode=lambda *episode: seen.append(episode))
    assert [group == [True] * 4 for group in report.sampled[:2]] == [True, True] and report.sampled[2] == [False] * 4
    assert report.greedy[:3] == [True, True, False] and len(seen) == 25 and {length for *_, length in seen} == {2}
    assert report.mixed_groups == sum(0 < sum(group) < 4 for group in report.sampled[3:]) / 5
    assert report.sampled_rate == np.mean(report.sampled) and report.lengths == (2.0, 2.0)
    # An untrained tiny is nearly uniform over 256 bins: ln 256 = 5.55 nats.
    assert all(5.0 < value < 5.56 for value in report.entropy.values()) and next(iter(report.entropy)) == "x"
    assert policy.temperature == 0.7 and th.equal(state, th.get_rng_state())
    assert [seed for seed, _ in env.resets[:10]] == [0, 1, 2, 5, 6, 0, 0, 0, 0, 1]
    assert report == describe_base_policy(policy, Coin(), STATES)


def test_numbers_do_not_depend_on_the_number_of_environments(policy: OpenVLAPolicy):
    two = replace(STATES, seeds=(5, 6))
    assert describe_base_policy(policy, Coin, two) == describe_base_policy(policy, Coin, two, n_envs=2)


def test_stored_initial_states_and_lower_temperature(policy: OpenVLAPolicy):
    env = Coin()
    protocol = Protocol(init_state_ids=[5], repetitions=4, decoding=Decoding(0.02), start_noise=0.01, seed=3)
    report = describe_base_policy(policy, env, protocol)
    assert env.resets[0] == (0, {"init_state_id": 5, "start_noise": 0.01, "noise_seed": 3}) and report.temperature == 0.02
    assert max(report.entropy.values()) < 5.0


def test_report_names_shortcomings():
    mixed = [[True, False, True, False]] * 4
    good = BasePolicyReport([True, False, True, False], mixed, {"x": 0.9}, (10.0, 10.0), 1.0)
    assert good.shortcomings() == [] and str(good).endswith("a good base policy")
    # The first experiment of the facts: greedy far below sampled, wide distributions, whole groups alike.
    bad = BasePolicyReport([False] * 4, [[True] * 4] * 3 + [[False] * 4], {"x": 2.1}, (10.0, 10.0), 1.0)
    found = " ".join(bad.shortcomings())
    for words in ("not within 30% to 60%", "differ by 75 percentage points", "above 1 nat in x", "0% of the groups"):
        assert words in found


def test_bad_input(policy: OpenVLAPolicy):
    with pytest.raises(ValueError, match="n_envs=2 needs a function"):
        describe_base_policy(policy, Coin(), STATES, n_envs=2)
    with pytest.raises(ValueError, match="repetitions=1 must be at least 2"):
        describe_base_policy(policy, Coin(), Protocol(seeds=[1]))
