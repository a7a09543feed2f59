"""Eq. (5)-(7) against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch as th

from sb3_tgrpo.losses import k3_kl, ratio_statistics, tgrpo_loss


def log(*values: float) -> th.Tensor:
    return th.tensor([math.log(v) for v in values], dtype=th.float64)


def test_clipped_objective_by_hand() -> None:
    # ratio, advantage -> min(ratio A, clip(ratio, 0.8, 1.2) A)
    cases = [(1.5, 1.0, 1.2), (1.5, -1.0, -1.5), (0.5, 1.0, 0.5), (0.5, -1.0, -0.8), (1.1, 2.0, 2.2)]
    ratios, advantages, objectives = zip(*cases, strict=True)
    old = log(0.1, 0.2, 0.3, 0.4, 0.5)
    loss = tgrpo_loss(old + log(*ratios), old, th.tensor(advantages, dtype=th.float64))
    assert loss.item() == pytest.approx(-sum(objectives) / 5)


@pytest.mark.parametrize("kind", [np.array, th.tensor])
def test_whole_numbers_as_advantages(kind) -> None:
    new, old = kind([-1.0, -2.0, -1.0]), kind([-1.1, -2.0, -1.2])
    loss = tgrpo_loss(new, old, kind([1, -1, 2]))
    assert float(loss) == pytest.approx(-(math.exp(0.1) - 1.0 + 2 * 1.2) / 3)


def test_asymmetric_clip() -> None:
    loss = tgrpo_loss(log(1.5, 0.5), log(1.0, 1.0), th.ones(2, dtype=th.float64), clip_range=0.2, clip_range_high=0.3)
    assert loss.item() == pytest.approx(-(1.3 + 0.5) / 2)


def test_kl_by_hand() -> None:
    # r = pi_ref / pi = 2 and 1/2: r - log r - 1
    np.testing.assert_allclose(k3_kl(log(0.25, 0.5), log(0.5, 0.25)), [1 - math.log(2), math.log(2) - 0.5])
    assert k3_kl(np.array([-1.0, -1.0]), np.array([-1.0, -1.0])).tolist() == [0.0, 0.0]
    loss = tgrpo_loss(log(0.25), log(0.25), th.ones(1, dtype=th.float64), ref_log_prob=log(0.5), kl_coef=0.1)
    assert loss.item() == pytest.approx(-1.0 + 0.1 * (1 - math.log(2)))


def test_kl_is_unbiased() -> None:
    p, q = th.tensor([0.5, 0.3, 0.2], dtype=th.float64), th.tensor([0.2, 0.2, 0.6], dtype=th.float64)
    expectation = (p * k3_kl(p.log(), q.log())).sum()
    assert expectation.item() == pytest.approx((p * (p / q).log()).sum().item())


def test_weights_make_eq_6_independent_of_batching() -> None:
    generator = th.Generator().manual_seed(0)
    new, old, ref = (th.randn(10, generator=generator) * 0.3 - 1.0 for _ in range(3))
    advantages = th.randn(10, generator=generator)
    # Two trajectories, of 3 and 7 steps: 1 / (N |o_i|)
    weight = th.tensor([1 / 6] * 3 + [1 / 14] * 7)
    whole = tgrpo_loss(new, old, advantages, ref_log_prob=ref, kl_coef=0.1, weight=weight)
    by_hand = 0.0
    for part in (slice(0, 3), slice(3, 10)):
        rho = (new[part] - old[part]).exp()
        gain = th.min(rho * advantages[part], rho.clamp(0.8, 1.2) * advantages[part])
        kl = (ref[part] - new[part]).exp() - (ref[part] - new[part]) - 1
        by_hand += 0.5 * (gain - 0.1 * kl).mean().item()
    assert whole.item() == pytest.approx(-by_hand, rel=1e-6)
    pieces = [th.tensor([0, 9, 4]), th.tensor([1, 2, 3, 5, 6, 7, 8])]
    parts = [tgrpo_loss(new[i], old[i], advantages[i], ref_log_prob=ref[i], kl_coef=0.1, weight=weight[i]) for i in pieces]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


def test_zero_weight_leaves_out_whatever_is_there() -> None:
    new = th.tensor([0.0, float("nan"), 500.0], requires_grad=True)
    loss = tgrpo_loss(new, th.zeros(3), th.tensor([1.0, float("inf"), 1.0]), weight=th.tensor([1.0, 0.0, 0.0]))
    loss.backward()
    assert loss.item() == -1.0
    assert new.grad is not None and new.grad.tolist() == [-1.0, 0.0, 0.0]


def test_gradient_vanishes_where_clipped() -> None:
    new = log(1.5, 1.1, 0.5).requires_grad_()
    tgrpo_loss(new, log(1.0, 1.0, 1.0), th.tensor([1.0, 1.0, -1.0], dtype=th.float64)).backward()
    np.testing.assert_allclose(new.grad, [0.0, -1.1 / 3, 0.0])


def test_token_level() -> None:
    new, old = log(1.5, 1.0).reshape(1, 2), log(1.0, 1.0).reshape(1, 2)
    assert tgrpo_loss(new, old, th.ones(1, dtype=th.float64)).item() == pytest.approx(-(1.2 + 1.0) / 2)
    both = tgrpo_loss(th.cat([new, old]), th.cat([old, old]), th.tensor([1.0, 5.0]), weight=th.tensor([1.0, 0.0]))
    assert both.item() == pytest.approx(-1.1)


def test_numpy_in_numpy_out() -> None:
    loss = tgrpo_loss(
        np.log([1.5]), np.log([1.0]), np.array([1.0]), ref_log_prob=np.log([1.5]), kl_coef=1.0, weight=np.ones(1)
    )
    assert isinstance(loss, np.ndarray) and float(loss) == pytest.approx(-1.2)
    assert isinstance(k3_kl(np.zeros(2), np.ones(2)), np.ndarray)
    log_prob, advantages = np.log([1.1, 0.9]), np.array([2.0, -1.0])
    straight = tgrpo_loss(log_prob, np.zeros(2), advantages)
    assert tgrpo_loss(log_prob[::-1], np.zeros(2), advantages[::-1]) == pytest.approx(straight)


def test_ratio_statistics() -> None:
    stats = ratio_statistics(log(1.5, 1.0), log(1.0, 1.0), 0.2)
    assert stats["clip_fraction"] == 0.5
    assert stats["ratio_error"] == pytest.approx(0.5)
    assert stats["approx_kl"] == pytest.approx((0.5 - math.log(1.5)) / 2)


def test_bad_input() -> None:
    one = th.zeros(1)
    with pytest.raises(ValueError, match=r"kl_coef=0\.1 needs ref_log_prob"):
        tgrpo_loss(one, one, one, kl_coef=0.1)
    with pytest.raises(TypeError, match=r"old_log_prob is torch\.bfloat16"):
        tgrpo_loss(one, one.bfloat16(), one)
    with pytest.raises(ValueError, match="advantages has shape"):
        tgrpo_loss(th.zeros(2, 7), th.zeros(2, 7), th.zeros(2, 7))
    with pytest.raises(ValueError, match="old_log_prob has shape"):
        tgrpo_loss(th.zeros(2), th.zeros(2, 7), th.zeros(2))
    with pytest.raises(ValueError, match="weight has shape"):
        tgrpo_loss(th.zeros(2), th.zeros(2), th.zeros(2), weight=th.ones(1))
