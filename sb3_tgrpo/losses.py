"""
The objective of TGRPO (arXiv 2506.08440v3, eq. 5-7), as pure functions.

NumPy in, NumPy out; tensors in, tensors out. A log-probability is either of the whole action, shape ``(batch,)``, or of each
of its tokens, shape ``(batch, n_tokens)``; advantages and weights are per action and are shared by its tokens.
"""

from typing import TypeVar

import numpy as np
import torch as th

from sb3_tgrpo import defaults

Array = TypeVar("Array", np.ndarray, th.Tensor)


def k3_kl(log_prob: Array, ref_log_prob: Array) -> Array:
    """
    Estimate of ``KL(pi_theta || pi_ref)`` from a sampled action, eq. (7): ``r - log r - 1`` with ``r = pi_ref / pi_theta``.
    Unbiased for actions sampled from ``pi_theta``, never negative, zero where the two agree.

    :param log_prob: Logarithm of pi_theta of the sampled actions, any shape.
    :param ref_log_prob: Logarithm of pi_ref of the same actions, same shape.
    :return: Elementwise estimate, same shape.
    """
    log_ratio = ref_log_prob - log_prob
    if isinstance(log_ratio, th.Tensor):
        return th.expm1(log_ratio) - log_ratio  # type: ignore[return-value]
    return np.expm1(log_ratio) - log_ratio


def tgrpo_loss(
    log_prob: Array,
    old_log_prob: Array,
    advantages: Array,
    *,
    clip_range: float = defaults.CLIP_RANGE,
    clip_range_high: float | None = None,
    ref_log_prob: Array | None = None,
    kl_coef: float = 0.0,
    weight: Array | None = None,
) -> Array:
    """
    The negative of the objective, eq. (6): ``-sum weight * (min(rho A, clip(rho, 1 - eps, 1 + eps) A) - beta KL)``.

    :param log_prob: Logarithm of pi_theta of the stored actions, ``(batch,)`` or ``(batch, n_tokens)``, at least float32.
    :param old_log_prob: Log-probability recorded when the actions were sampled, same shape.
    :param advantages: Advantages, eq. (4), ``(batch,)``.
    :param clip_range: Clip range eps below (and above, unless ``clip_range_high`` is given).
    :param clip_range_high: Clip range above, for an asymmetric clip.
    :param ref_log_prob: Logarithm of pi_ref of the stored actions, same shape as ``log_prob``; needed if ``kl_coef`` is not 0.
    :param kl_coef: Weight beta of the KL term.
    :param weight: ``(batch,)``, the ``1 / (N |o_i|)`` of each step, so that any split into minibatches adds up to eq. (6);
        0 leaves a step out, whatever its other entries hold. None weighs all steps alike (a mean).
    :return: Scalar to minimise.
    :raises ValueError: On shapes that do not fit, or ``kl_coef`` without ``ref_log_prob``.
    :raises TypeError: On half-precision log-probabilities, whose rounding alone moves the ratio by percents.
    """
    if isinstance(log_prob, np.ndarray):
        loss = tgrpo_loss(
            _tensor(log_prob),
            _tensor(old_log_prob),
            _tensor(advantages),
            clip_range=clip_range,
            clip_range_high=clip_range_high,
            ref_log_prob=None if ref_log_prob is None else _tensor(ref_log_prob),
            kl_coef=kl_coef,
            weight=None if weight is None else _tensor(weight),
        )
        return loss.numpy()
    _check_log_probs(log_prob=log_prob, old_log_prob=old_log_prob, ref_log_prob=ref_log_prob)
    if advantages.shape != log_prob.shape[:1]:
        raise ValueError(f"advantages has shape {tuple(advantages.shape)}, expected (batch,) = {tuple(log_prob.shape[:1])}.")
    if kl_coef != 0.0 and ref_log_prob is None:
        raise ValueError(f"kl_coef={kl_coef} needs ref_log_prob, the log-probabilities under the reference policy.")
    if weight is None:
        weight = th.full_like(advantages, 1.0 / max(len(advantages), 1), dtype=log_prob.dtype)
    elif weight.shape != advantages.shape:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected {tuple(advantages.shape)}.")

    counts = weight != 0
    log_prob, old_log_prob = log_prob[counts], old_log_prob[counts]
    weight, advantages = (_per_token(x[counts], log_prob) for x in (weight, advantages))
    ratio = th.exp(log_prob - old_log_prob)  # eq. (5)
    high = clip_range if clip_range_high is None else clip_range_high
    objective = th.min(ratio * advantages, th.clamp(ratio, 1.0 - clip_range, 1.0 + high) * advantages)
    if kl_coef != 0.0 and ref_log_prob is not None:
        objective = objective - kl_coef * k3_kl(log_prob, ref_log_prob[counts])
    n_tokens = log_prob.shape[1] if log_prob.dim() == 2 else 1
    return -(weight * objective).sum() / n_tokens


@th.no_grad()
def ratio_statistics(
    log_prob: th.Tensor, old_log_prob: th.Tensor, clip_range: float, clip_range_high: float | None = None
) -> dict[str, float]:
    """
    What to watch during an update.

    :return: ``approx_kl`` (k3 estimate of the KL between the sampling and the current policy, nats per entry),
        ``clip_fraction`` (share of ratios outside the clip range) and ``ratio_error`` (largest ``|rho - 1|``).
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    high = clip_range if clip_range_high is None else clip_range_high
    return {
        "approx_kl": (ratio - 1.0 - log_ratio).mean().item(),
        "clip_fraction": ((ratio < 1.0 - clip_range) | (ratio > 1.0 + high)).float().mean().item(),
        "ratio_error": (ratio - 1.0).abs().max().item(),
    }


def _tensor(array: np.ndarray) -> th.Tensor:
    return th.as_tensor(np.ascontiguousarray(array))  # torch has no negative strides


def _per_token(x: th.Tensor, log_prob: th.Tensor) -> th.Tensor:
    return x.unsqueeze(-1) if log_prob.dim() == 2 else x


def _check_log_probs(**log_probs: th.Tensor | None) -> None:
    shape = None
    for name, value in log_probs.items():
        if value is None:
            continue
        if value.dtype in (th.float16, th.bfloat16):
            raise TypeError(f"{name} is {value.dtype}: compute log-probabilities in float32 or better.")
        if value.dim() not in (1, 2):
            raise ValueError(f"{name} must have shape (batch,) or (batch, n_tokens), not {tuple(value.shape)}.")
        if shape is not None and value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, log_prob {tuple(shape)}: they must be equal.")
        shape = value.shape
