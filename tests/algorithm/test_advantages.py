"""Eq. (2)-(4) against numbers worked out by hand."""

import numpy as np
import pytest
import torch as th

from sb3_tgrpo.advantages import step_advantages, tgrpo_advantages, trajectory_advantages

# Two steps of three members. Step 0: mean 2, deviations -1 0 1, sample variance (1 + 0 + 1) / 2 = 1.
# Step 1: mean 1, deviations -1 -1 2, sample variance (1 + 1 + 4) / 2 = 3. Returns 1 2 6: mean 3, variance (4 + 1 + 9) / 2 = 7.
REWARDS = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
STEP = np.array([[-1.0, 0.0, 1.0], [-1 / 3**0.5, -1 / 3**0.5, 2 / 3**0.5]])
TRAJECTORY = np.array([-2.0, -1.0, 3.0]) / 7**0.5


def test_hand_computed() -> None:
    np.testing.assert_allclose(step_advantages(REWARDS), STEP, rtol=1e-12)
    np.testing.assert_allclose(trajectory_advantages(REWARDS), TRAJECTORY, rtol=1e-12)
    np.testing.assert_allclose(tgrpo_advantages(REWARDS), 0.3 * STEP + 0.7 * TRAJECTORY, rtol=1e-12)
    np.testing.assert_allclose(tgrpo_advantages(REWARDS, 1.0, 0.0), STEP, rtol=1e-12)
    np.testing.assert_allclose(tgrpo_advantages(REWARDS, 0.0, 1.0), np.stack([TRAJECTORY] * 2), rtol=1e-12)


def test_discount_of_the_trajectory_level() -> None:
    # With 1/2 the returns are 1, 2 and 4.5: deviations -1.5, -0.5 and 2, sample variance (2.25 + 0.25 + 4) / 2 = 3.25.
    relative = np.array([-1.5, -0.5, 2.0]) / 3.25**0.5
    np.testing.assert_allclose(trajectory_advantages(REWARDS, gamma=0.5), relative, rtol=1e-12)
    np.testing.assert_allclose(tgrpo_advantages(REWARDS, gamma=0.5), 0.3 * STEP + 0.7 * relative, rtol=1e-12)
    # Success sooner, later, never: alike without a discount.
    success = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    first, second, never = trajectory_advantages(success, gamma=0.9)
    assert first > second > 0 > never
    assert len(set(trajectory_advantages(success)[:2])) == 1


def test_groups_do_not_mix() -> None:
    rewards = np.stack([REWARDS, 100.0 + 10.0 * REWARDS[:, ::-1]], axis=1)
    assert rewards.shape == (2, 2, 3)
    fused = tgrpo_advantages(rewards)
    np.testing.assert_allclose(fused[:, 0], tgrpo_advantages(REWARDS), rtol=1e-12)
    np.testing.assert_allclose(fused[:, 1], tgrpo_advantages(REWARDS)[:, ::-1], rtol=1e-9)
    assert trajectory_advantages(rewards).shape == (2, 3)


def test_two_members_are_plus_minus_inverse_root_two() -> None:
    np.testing.assert_allclose(step_advantages(np.array([[3.0, 7.0]])), [[-(0.5**0.5), 0.5**0.5]], rtol=1e-12)
    np.testing.assert_allclose(trajectory_advantages(np.array([[3.0, 7.0]])), [-(0.5**0.5), 0.5**0.5], rtol=1e-12)


def test_zero_spread_is_zero_not_noise() -> None:
    for rewards in (np.full((4, 3), 0.1), np.full((4, 3), 1e6 / 3), np.full((4, 3), 912842821.700444)):
        assert not tgrpo_advantages(rewards).any()
    nearly = np.array([[1.0, 1.0 + 1e-9, 1.0]])
    assert not step_advantages(nearly).any()
    assert step_advantages(nearly, min_spread=1e-12).any()


def test_mask() -> None:
    mask = np.array([[True, True, True], [True, False, True]])
    rewards = np.where(mask, REWARDS, np.nan)  # what is masked may hold anything
    step = step_advantages(rewards, mask)
    np.testing.assert_allclose(step[0], STEP[0], rtol=1e-12)
    np.testing.assert_allclose(step[1], [-(0.5**0.5), 0.0, 0.5**0.5], rtol=1e-12)  # 0 and 3: two members are left
    np.testing.assert_allclose(trajectory_advantages(rewards, mask), TRAJECTORY, rtol=1e-12)  # its return is 2 with or without
    assert tgrpo_advantages(rewards, mask=mask)[1, 1] == 0.0


def test_one_valid_member_and_absent_member() -> None:
    mask = np.array([[True, True, False], [False, True, False]])
    step = step_advantages(REWARDS, mask)
    np.testing.assert_allclose(step, [[-(0.5**0.5), 0.5**0.5, 0.0], [0.0, 0.0, 0.0]], rtol=1e-12)
    # The third member has no step at all, so it is no member: returns 1 and 2.
    np.testing.assert_allclose(trajectory_advantages(REWARDS, mask), [-(0.5**0.5), 0.5**0.5, 0.0], rtol=1e-12)
    alone = np.array([[False, True, False], [False, True, False]])
    assert not tgrpo_advantages(REWARDS, mask=alone).any()


def test_ended_members_may_stay_in_the_comparison() -> None:
    # The first member ends after one step, at 3. Step 1: 3, 2 and 1 with it, whose mean is 2 and spread 1; 2 and 1 without.
    levels = np.array([[3.0, 0.0, 0.0], [np.nan, 2.0, 1.0], [np.nan, 4.0, np.nan]])
    mask = np.isfinite(levels)
    third = 3**0.5
    first = [2 / third, -1 / third, -1 / third]
    half = 0.5**0.5
    expected = np.array([first, [0.0, 0.0, -1.0], [0.0, (4 - 8 / 3) / (7 / 3) ** 0.5, 0.0]])  # step 2: 3, 4 and 1
    np.testing.assert_allclose(step_advantages(levels, mask, compare_ended=True), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(step_advantages(levels, mask), [first, [0.0, half, -half], [0.0] * 3], rtol=1e-12)
    fused = tgrpo_advantages(np.zeros((3, 3)), mask=mask, step_signal=levels, compare_ended=True)
    np.testing.assert_allclose(fused, 0.3 * expected, rtol=1e-12, atol=1e-12)


def test_ended_members_stay_in_their_own_group_alone() -> None:
    levels, mask = np.zeros((4, 2, 3)), np.zeros((4, 2, 3), dtype=bool)
    levels[:2, 0], mask[:2, 0] = REWARDS, True  # a shorter group, padded
    levels[:, 1], mask[:, 1] = np.arange(12.0).reshape(4, 3) ** 2, True
    mask[:, 1, 2] = False  # no member at all, so it enters nothing
    found = step_advantages(levels, mask, compare_ended=True)
    np.testing.assert_allclose(found, step_advantages(levels, mask), rtol=1e-12)  # nobody ends before the others
    np.testing.assert_allclose(found[:2, 0], STEP, rtol=1e-12)
    mask[2:, 1, 0] = False
    found = step_advantages(levels, mask, compare_ended=True)
    np.testing.assert_allclose(found[2:, 1], [[0.0, 0.5**0.5, 0.0]] * 2, rtol=1e-12)  # against what the first had last
    np.testing.assert_allclose(found[:2, 0], STEP, rtol=1e-12)


def test_no_step() -> None:
    for compare_ended in (False, True):
        assert tgrpo_advantages(np.zeros((0, 2, 3)), compare_ended=compare_ended).shape == (0, 2, 3)


def test_one_step() -> None:
    np.testing.assert_allclose(tgrpo_advantages(REWARDS[:1]), STEP[:1], rtol=1e-12)  # both levels agree, 0.3 + 0.7 = 1


def test_step_signal_replaces_rewards_at_the_step_level_only() -> None:
    fused = tgrpo_advantages(np.tile([0.0, 1.0, 2.0], (2, 1)), step_signal=REWARDS)
    np.testing.assert_allclose(fused, 0.3 * STEP + 0.7 * np.array([-1.0, 0.0, 1.0]), rtol=1e-12)


def test_float32_is_computed_in_float64() -> None:
    rewards = np.array([[1000.0, 1000.001, 1000.002]], dtype=np.float32)
    result = step_advantages(rewards)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, step_advantages(rewards.astype(np.float64)), atol=1e-6)
    # In float32 the mean of these is off by a thirtieth of the spread
    np.testing.assert_allclose(result.astype(np.float64).sum(), 0.0, atol=1e-6)


def test_tensors_in_tensors_out() -> None:
    for dtype in (th.bfloat16, th.float16, th.float32, th.float64):
        result = tgrpo_advantages(th.as_tensor(REWARDS, dtype=dtype), mask=th.ones(2, 3, dtype=th.bool))
        assert isinstance(result, th.Tensor) and result.dtype == dtype
        th.testing.assert_close(result, th.as_tensor(tgrpo_advantages(REWARDS), dtype=dtype))
    assert tgrpo_advantages(th.tensor([[1, 2]])).dtype == th.float64
    assert isinstance(tgrpo_advantages(REWARDS), np.ndarray)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"rewards must have shape .* not \(3,\)"):
        step_advantages(np.zeros(3))
    with pytest.raises(ValueError, match=r"mask has shape \(2, 2\), rewards \(2, 3\)"):
        tgrpo_advantages(REWARDS, mask=np.ones((2, 2), dtype=bool))
    with pytest.raises(ValueError, match=r"rewards\[1, 2\] is nan"):
        trajectory_advantages(np.array([[1.0, 2.0, 3.0], [1.0, 2.0, np.nan]]))
    with pytest.raises(ValueError, match=r"step_signal\[0, 0\] is inf"):
        tgrpo_advantages(REWARDS, step_signal=np.full((2, 3), np.inf))
    with pytest.raises(ValueError, match="step_signal has shape"):
        tgrpo_advantages(REWARDS, step_signal=np.zeros((1, 3)))
