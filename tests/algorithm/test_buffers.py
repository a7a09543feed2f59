"""GroupedRolloutBuffer: layout, weights, memory, minibatches."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_tgrpo import GroupedRolloutBuffer
from sb3_tgrpo.advantages import tgrpo_advantages
from sb3_tgrpo.buffers import PagedRows

OBS = spaces.Box(-np.inf, np.inf, (1,), dtype=np.float32)
ACT = spaces.Discrete(9)


def filled() -> tuple[GroupedRolloutBuffer, np.ndarray]:
    """Two groups of two: the first of lengths 2 and 1 (held at its second step), the second of 3 steps."""
    buffer = GroupedRolloutBuffer(1, OBS, ACT, "cpu", n_envs=4, group_size=2)
    mask = np.zeros((3, 2, 2), dtype=bool)
    mask[:2, 0, 0] = mask[:1, 0, 1] = mask[:, 1] = True
    for t in range(3):
        number = 10.0 * t + np.arange(4)
        valid = mask[t].ravel()
        buffer.add(
            number[:, None].astype(np.float32), number.astype(np.int64)[:, None], number**2, -number[:, None] - 1.0, valid
        )
        if t == 1:
            buffer.end_group(0)
    buffer.end_group(1)
    buffer.compute_advantages(0.3, 0.7)
    return buffer, mask


def test_layout_mask_and_weight() -> None:
    buffer, mask = filled()
    np.testing.assert_array_equal(buffer.mask, mask)
    assert buffer.size() == mask.sum() == 9
    rewards = np.where(mask, ((10.0 * np.arange(3)[:, None] + np.arange(4)) ** 2).reshape(3, 2, 2), 0.0)
    np.testing.assert_array_equal(buffer.rewards, rewards)
    np.testing.assert_allclose(buffer.advantages, tgrpo_advantages(rewards, mask=mask))
    # 1 / (groups * N * |o_i|)
    np.testing.assert_allclose(buffer.weight[:, 0], [[1 / 8, 1 / 4], [1 / 8, 0], [0, 0]])
    np.testing.assert_allclose(buffer.weight[:, 1], np.full((3, 2), 1 / 12))
    assert buffer.weight.sum() == pytest.approx(1.0)


def test_samples_belong_together() -> None:
    buffer, _ = filled()
    seen = []
    for batch in buffer.minibatches(4, np.random.default_rng(0)):
        for samples in buffer.samples(batch, micro_batch_size=3):
            number = samples.observations.squeeze(1)  # type: ignore[union-attr]
            assert th.equal(samples.actions.squeeze(1).float(), number)
            assert th.equal(samples.old_log_prob.squeeze(1), -number - 1.0)
            for value, advantage in zip(number.tolist(), samples.advantages.tolist(), strict=True):
                t, i = divmod(int(value), 10)
                assert advantage == pytest.approx(buffer.advantages.reshape(3, 4)[t, i], abs=1e-6)
            seen += number.tolist()
    assert sorted(seen) == [0, 1, 2, 3, 10, 12, 13, 22, 23]


def test_minibatches_add_up_to_the_objective() -> None:
    """However the rollout is split, a step has the same weight in the mean over the minibatches: that of eq. (6)."""
    buffer, _ = filled()
    numbers = buffer._observations[None].take(buffer._rows[buffer.mask]).squeeze(1)
    expected = dict(zip(numbers.tolist(), buffer.weight[buffer.mask].tolist(), strict=True))
    for batch_size, micro in ((None, None), (None, 2), (4, 3), (5, 2), (100, 1)):
        found: dict[float, float] = {}
        minibatches = buffer.minibatches(batch_size, np.random.default_rng(1))
        for batch in minibatches:
            for samples in buffer.samples(batch, micro, len(minibatches)):
                shares = (samples.weight / len(minibatches)).tolist()
                found |= dict(zip(samples.observations.squeeze(1).tolist(), shares, strict=True))  # type: ignore[union-attr]
        assert found == pytest.approx(expected, abs=1e-7)


def test_minibatches_are_groups_or_of_even_size() -> None:
    buffer, _ = filled()
    sizes = {n: sorted(map(len, buffer.minibatches(n, np.random.default_rng(1)))) for n in (None, 4, 8, 9, 100)}
    assert sizes == {None: [3, 6], 4: [3, 3, 3], 8: [4, 5], 9: [9], 100: [9]}  # not 8 and a rest of 1


def test_outcomes_replace_rewards() -> None:
    buffer = GroupedRolloutBuffer(1, OBS, ACT, "cpu", n_envs=2, group_size=2)
    for t in range(2):
        ones = np.ones((2, 1), dtype=np.float32)
        buffer.add(ones, ones.astype(np.int64), np.array([5.0, 100.0]), ones, np.array([True, t == 0]))
    buffer.end_group(0, outcomes=np.array([1.0, 0.0]))
    buffer.compute_advantages(0.0, 1.0)
    half = 0.5**0.5
    np.testing.assert_allclose(buffer.advantages[:, 0], [[half, -half], [half, 0.0]])


def test_discount() -> None:
    """Of rewards and of outcomes, which are paid with a member's last step; ``returns`` are not discounted."""
    buffer = GroupedRolloutBuffer(1, OBS, ACT, "cpu", gamma=0.5, n_envs=4, group_size=2)
    for t in range(3):
        ones = np.ones((4, 1), dtype=np.float32)
        rewards = np.array([float(t == 0), 3.0 * (t == 2), 1.0, 1.0])  # 1 at once beats 3 two steps later
        buffer.add(ones, ones.astype(np.int64), rewards, ones, np.array([True, True, True, t == 0]))
    buffer.end_group(0)
    buffer.end_group(1, outcomes=np.array([2.0, 1.0]))  # 2 / 4 against 1
    buffer.compute_advantages(0.0, 1.0)
    half = 0.5**0.5
    np.testing.assert_allclose(buffer.advantages[:, 0], [[half, -half]] * 3)
    np.testing.assert_allclose(buffer.advantages[:, 1], [[-half, half], [-half, 0.0], [-half, 0.0]])
    np.testing.assert_array_equal(buffer.returns, [[1.0, 3.0], [2.0, 1.0]])


def test_keeps_copies() -> None:
    buffer = GroupedRolloutBuffer(1, OBS, ACT, "cpu", n_envs=2, group_size=2)
    reward, signal, valid = np.zeros(2), np.zeros(2), np.ones(2, dtype=bool)
    for t in range(3):
        reward[:], signal[:], valid[1] = t, 10 * t, t < 2
        buffer.add(np.zeros((2, 1), np.float32), np.zeros((2, 1)), reward, np.zeros((2, 1)), valid, signal)
    buffer.end_group(0)
    buffer.compute_advantages()
    assert buffer.rewards[:, 0].tolist() == [[0, 0], [1, 1], [2, 0]]
    assert buffer.step_signal[:, 0].tolist() == [[0, 0], [10, 10], [20, 0]]
    assert buffer.mask[:, 0].tolist() == [[True, True], [True, True], [True, False]]


def test_discarded_group_leaves_no_trace() -> None:
    buffer = GroupedRolloutBuffer(1, OBS, ACT, "cpu", n_envs=2, group_size=2)
    for value in (1.0, 2.0, 3.0):
        if value == 3.0:
            assert buffer.discard_group(0) == 3 and buffer.discard_group(0) == 0
        row = np.full((2, 1), value, dtype=np.float32)
        buffer.add(row, row.astype(np.int64), row[:, 0], row, np.array([True, value != 2.0]))
    buffer.end_group(0)
    buffer.compute_advantages()
    (batch,) = buffer.minibatches(None, np.random.default_rng(0))
    (samples,) = buffer.samples(batch)
    assert samples.observations.tolist() == [[3.0], [3.0]]  # type: ignore[union-attr]


def test_discarding_counts_the_steps_of_this_group_since_its_start() -> None:
    buffer = GroupedRolloutBuffer(1, OBS, ACT, "cpu", n_envs=4, group_size=2)
    row = np.ones((4, 1), dtype=np.float32)
    for t in range(5):
        buffer.add(row, row.astype(np.int64), row[:, 0], row, np.array([True, t != 3, True, True]))
        if t == 1:
            buffer.end_group(0)
    assert buffer.discard_group(0) == 5 and buffer.discard_group(1) == 10


def test_a_group_of_images_takes_the_memory_of_its_frames() -> None:
    space = spaces.Dict(
        {"image": spaces.Box(0, 255, (256, 256, 3), dtype=np.uint8), "text": spaces.Box(0, 255, (8,), np.uint8)}
    )
    buffer = GroupedRolloutBuffer(1, space, spaces.Box(-1, 1, (7,)), "cpu", n_envs=4)
    frames = {"image": np.zeros((4, 256, 256, 3), dtype=np.uint8), "text": np.ones((4, 8), dtype=np.uint8)}
    for t in range(280):
        frames["image"][:, 0, 0, 0] = t % 256
        buffer.add(frames, np.zeros((4, 7), dtype=np.int64), np.zeros(4), np.zeros((4, 7), dtype=np.float32))
    buffer.end_group(0)
    buffer.compute_advantages()
    frame_bytes = 4 * 280 * 256 * 256 * 3
    assert frame_bytes == 220_200_960
    stores = (*buffer._observations.values(), buffer._actions, buffer._log_probs)
    assert (
        sum(page.nbytes for rows in stores for page in rows._pages) < frame_bytes + 40e6
    )  # pages of 8 MB for each of the four arrays
    (batch,) = buffer.minibatches(None, np.random.default_rng(0))
    assert len(batch) == 1120
    samples = next(buffer.samples(batch, micro_batch_size=16))
    assert samples.observations["image"].dtype == th.uint8 and samples.observations["image"].shape == (16, 256, 256, 3)  # type: ignore[index]
    assert samples.observations["image"][:, 0, 0, 0].tolist() == [t // 4 for t in range(16)]  # type: ignore[index]
    assert samples.actions.dtype == th.int64 and samples.old_log_prob.shape == (16, 7)


def test_paged_rows() -> None:
    rows = PagedRows()
    data = np.random.default_rng(0).random((1000, 5000))  # 40 MB, several pages
    for start in range(0, 1000, 7):
        rows.append(data[start : start + 7])
    rows.append(data[:0])
    assert len(rows) == 1000
    order = np.random.default_rng(1).permutation(1000)
    np.testing.assert_array_equal(rows.take(order), data[order])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="n_envs=3 is not a multiple of group_size=2"):
        GroupedRolloutBuffer(1, OBS, ACT, n_envs=3, group_size=2)
    buffer = GroupedRolloutBuffer(1, OBS, ACT, "cpu", n_envs=2, group_size=2)
    row = np.ones((2, 1), dtype=np.float32)
    with pytest.raises(RuntimeError, match="No group has ended yet"):
        buffer.compute_advantages()
    buffer.add(row, row.astype(np.int64), row[:, 0], row)
    buffer.add(row, row.astype(np.int64), np.array([1.0, np.nan]), row, np.array([True, False]))  # masked: not looked at
    with pytest.raises(ValueError, match="reward of environment 1 is nan at step 2 of its episode"):
        buffer.add(row, row.astype(np.int64), np.array([1.0, np.nan]), row)
    with pytest.raises(ValueError, match="step_signal of environment 0 is inf"):
        buffer.add(row, row.astype(np.int64), row[:, 0], row, None, np.array([np.inf, 1.0]))
