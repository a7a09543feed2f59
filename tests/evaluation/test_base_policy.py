"""The four numbers of a start policy."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import FloatSchedule

from sb3_tgrpo.evaluation.base_policy import StartPolicyReport, describe_start_policy, wilson_interval
from sb3_tgrpo.openvla.policy import OpenVLAPolicy

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
        self.start = seed if seed is not None else options["init_state_id"]
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
    report = describe_start_policy(policy, env, [0, 1, 2, 5, 6], on_episode=lambda *episode: seen.append(episode))
    assert [group == [True] * 4 for group in report.sampled[:2]] == [True, True] and report.sampled[2] == [False] * 4
    assert report.greedy[:3] == [True, True, False] and len(seen) == 25 and {length for *_, length in seen} == {2}
    assert report.mixed_groups == sum(0 < sum(group) < 4 for group in report.sampled[3:]) / 5
    assert report.sampled_rate == np.mean(report.sampled) and report.lengths == (2.0, 2.0)
    # An untrained tiny is nearly uniform over 256 bins: ln 256 = 5.55 nats.
    assert all(5.0 < value < 5.56 for value in report.entropy.values()) and next(iter(report.entropy)) == "x"
    assert policy.temperature == 0.7 and th.equal(state, th.get_rng_state())
    assert [seed for seed, _ in env.resets[:10]] == [0, 1, 2, 5, 6, 0, 0, 0, 0, 1]
    assert report == describe_start_policy(policy, Coin(), [0, 1, 2, 5, 6])


def test_numbers_do_not_depend_on_the_number_of_environments(policy: OpenVLAPolicy):
    assert describe_start_policy(policy, Coin, [5, 6]) == describe_start_policy(policy, Coin, [5, 6], n_envs=2)


def test_stored_starts_and_lower_temperature(policy: OpenVLAPolicy):
    env = Coin()
    report = describe_start_policy(policy, env, [5], stored=True, temperature=0.02, max_steps=1)
    assert env.resets[0] == (None, {"init_state_id": 5}) and report.lengths == (1.0, 1.0)
    assert max(report.entropy.values()) < 5.0


def test_report_names_shortcomings():
    mixed = [[True, False, True, False]] * 4
    good = StartPolicyReport([True, False, True, False], mixed, {"x": 0.9}, (10.0, 10.0), 1.0)
    assert good.shortcomings() == [] and str(good).endswith("a good start")
    # The first experiment of the facts: greedy far below sampled, wide distributions, whole groups alike.
    bad = StartPolicyReport([False] * 4, [[True] * 4] * 3 + [[False] * 4], {"x": 2.1}, (10.0, 10.0), 1.0)
    found = " ".join(bad.shortcomings())
    assert all(
        words in found for words in ("not within 30% to 60%", "differ by 75 points", "above 1 nat in x", "0% of the groups")
    )


def test_wilson_by_hand():
    # 30 of 50 at z = 1.96: centre (0.6 + 3.8416 / 100) / 1.076832, half width 1.96 / 1.076832 * sqrt(0.0048 + 0.00038416).
    assert wilson_interval(30, 50) == pytest.approx((0.46181, 0.72391), abs=1e-4)
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0


def test_bad_input(policy: OpenVLAPolicy):
    with pytest.raises(ValueError, match="starts must not be empty"):
        describe_start_policy(policy, Coin(), [])
    with pytest.raises(ValueError, match="n_envs=2 needs a function"):
        describe_start_policy(policy, Coin(), [1], n_envs=2)
    with pytest.raises(ValueError, match="group_size at least 2"):
        describe_start_policy(policy, Coin(), [1], group_size=1)
