"""
Group-relative advantages of TGRPO (arXiv 2506.08440v3, eq. 2-4).

Pure functions. The group is always the last axis: ``rewards[t, g, i]`` is step ``t`` of member ``i`` of group ``g``.
Everything is computed in float64 and returned in the input's own floating type; NumPy in, NumPy out, tensors in, tensors out.
"""

from typing import TypeVar

import numpy as np
import torch as th

from sb3_tgrpo import defaults

Array = TypeVar("Array", np.ndarray, th.Tensor)

MIN_SPREAD = 1e-8
"""A group whose standard deviation is not above this has nothing to compare: its advantages are 0."""


def step_advantages(
    rewards: Array, mask: Array | None = None, min_spread: float = MIN_SPREAD, compare_ended: bool = False
) -> Array:
    """
    Step-level relative advantage, eq. (2): each step against the same step of the other members,
    ``(R[i,t] - mean_i R[.,t]) / std_i R[.,t]`` with the sample standard deviation (N - 1).

    :param rewards: ``(n_steps, n_groups, group_size)`` or ``(n_steps, group_size)``.
    :param mask: True where a step counts, same shape; masked entries enter no mean or spread and are 0 in the result.
    :param min_spread: Largest spread that gives 0, as do fewer than two valid members. Nothing is added to the divisor.
    :param compare_ended: Whether members that have ended stay in the comparison with the value of their last step. The paper
        has no such members: its groups end at their first success. Where each runs to its own end, and what is compared is
        a level, members that succeed drop out, and one that waits just short of success ranks first among those left.
    :return: Same shape as ``rewards``.
    :raises ValueError: On a wrong shape, or a reward that counts and is not finite.
    """
    values, valid = _checked(rewards, mask)
    return _like(rewards, _step_level(values, valid, min_spread, compare_ended))


def trajectory_advantages(
    rewards: Array, mask: Array | None = None, min_spread: float = MIN_SPREAD, gamma: float = 1.0
) -> Array:
    """
    Trajectory-level relative advantage, eq. (3): the return of each member against the returns of its group,
    ``(R_i - mean R) / std R`` with ``R_i = sum_t gamma^t R[i,t]`` over the steps that count.

    :param rewards: ``(n_steps, n_groups, group_size)`` or ``(n_steps, group_size)``.
    :param mask: True where a step counts, same shape. A member without any valid step is no member.
    :param min_spread: Largest spread that gives 0, see :func:`step_advantages`.
    :param gamma: Discount; 1 in the paper (section III), where a success counts the same however long it took.
    :return: ``(n_groups, group_size)`` or ``(group_size,)``.
    :raises ValueError: On a wrong shape, or a reward that counts and is not finite.
    """
    values, valid = _checked(rewards, mask)
    return _like(rewards, _standardise(discounted_returns(values, gamma), np.any(valid, axis=0), min_spread))


def tgrpo_advantages(
    rewards: Array,
    alpha_step: float = defaults.ALPHA_STEP,
    alpha_traj: float = defaults.ALPHA_TRAJ,
    mask: Array | None = None,
    step_signal: Array | None = None,
    min_spread: float = MIN_SPREAD,
    gamma: float = 1.0,
    compare_ended: bool = False,
) -> Array:
    """
    The fused advantage, eq. (4): ``Adv[i,t] = alpha_1 A[i,t] + alpha_2 A_i``.

    :param rewards: ``(n_steps, n_groups, group_size)`` or ``(n_steps, group_size)``.
    :param alpha_step: Weight of the step level, alpha_1 (paper, section IV-B: 0.3).
    :param alpha_traj: Weight of the trajectory level, alpha_2 (paper: 0.7; alpha_1 + alpha_2 = 1 there).
    :param mask: True where a step counts, same shape.
    :param step_signal: Values that the step level compares in place of rewards (latched rewards are zero at almost
        every step, so they put the progress here); same shape.
    :param min_spread: Largest spread that gives 0, see :func:`step_advantages`.
    :param gamma: Discount of the trajectory level, see :func:`trajectory_advantages`.
    :param compare_ended: Whether ended members stay in the step level, see :func:`step_advantages`.
    :return: Same shape as ``rewards``.
    :raises ValueError: On a wrong shape, or a value that counts and is not finite.
    """
    values, valid = _checked(rewards, mask)
    signal = values if step_signal is None else _checked(step_signal, mask, "step_signal")[0]
    if signal.shape != values.shape:
        raise ValueError(f"step_signal has shape {signal.shape}, rewards {values.shape}: they must be equal.")
    step_level = _step_level(signal, valid, min_spread, compare_ended)
    trajectory_level = _standardise(discounted_returns(values, gamma), np.any(valid, axis=0), min_spread)
    return _like(rewards, np.where(valid, alpha_step * step_level + alpha_traj * trajectory_level, 0.0))


def _step_level(values: np.ndarray, valid: np.ndarray, min_spread: float, compare_ended: bool) -> np.ndarray:
    """Each step against the same step of the other members; 0 where not valid."""
    if not compare_ended or len(values) == 0:
        return _standardise(values, valid, min_spread)
    steps = np.arange(len(values)).reshape(-1, *[1] * (values.ndim - 1))
    last = np.where(valid, steps, -1).max(axis=0, keepdims=True, initial=-1)
    ended = (last >= 0) & (steps > last)
    held = np.where(ended, np.take_along_axis(values, last, axis=0), values)
    return np.where(valid, _standardise(held, valid | ended, min_spread), 0.0)


def discounted_returns(values: np.ndarray, gamma: float) -> np.ndarray:
    """Discounted sums over the first axis."""
    return values.sum(axis=0) if gamma == 1.0 else np.tensordot(gamma ** np.arange(len(values)), values, axes=1)


def _standardise(values: np.ndarray, valid: np.ndarray, min_spread: float) -> np.ndarray:
    """Standard scores over the last axis among valid entries, 0 elsewhere; ``values`` must be 0 where not valid."""
    count = valid.sum(axis=-1, keepdims=True)
    mean = values.sum(axis=-1, keepdims=True) / np.maximum(count, 1)
    deviation = np.where(valid, values - mean, 0.0)
    spread = np.sqrt((deviation**2).sum(axis=-1, keepdims=True) / np.maximum(count - 1, 1))
    highest = np.where(valid, values, -np.inf).max(axis=-1, keepdims=True, initial=-np.inf)
    lowest = np.where(valid, values, np.inf).min(axis=-1, keepdims=True, initial=np.inf)
    # Equal values that are large have a spread above 0, by the rounding of their mean.
    comparable = (count >= 2) & (spread > min_spread) & (highest > lowest)
    return np.where(comparable, deviation / np.where(comparable, spread, 1.0), 0.0)


def _checked(rewards: Array, mask: Array | None, name: str = "rewards") -> tuple[np.ndarray, np.ndarray]:
    """float64 values with zeros where masked, and the mask as a boolean array."""
    values = _numpy(rewards).astype(np.float64)
    if values.ndim not in (2, 3):
        raise ValueError(
            f"{name} must have shape (n_steps, n_groups, group_size) or (n_steps, group_size), not {values.shape}."
        )
    valid = np.ones(values.shape, dtype=bool) if mask is None else _numpy(mask).astype(bool)
    if valid.shape != values.shape:
        raise ValueError(f"mask has shape {valid.shape}, {name} {values.shape}: they must be equal.")
    broken = np.argwhere(valid & ~np.isfinite(values))
    if len(broken):
        raise ValueError(f"{name}{broken[0].tolist()} is {values[tuple(broken[0])]}: rewards that count must be finite.")
    return np.where(valid, values, 0.0), valid


def _numpy(array: np.ndarray | th.Tensor) -> np.ndarray:
    if not isinstance(array, th.Tensor):
        return np.asarray(array)
    array = array.detach().cpu()
    return (array.double() if array.is_floating_point() else array).numpy()  # NumPy has no bfloat16


def _like(template: Array, result: np.ndarray) -> Array:
    if isinstance(template, th.Tensor):
        dtype = template.dtype if template.is_floating_point() else th.float64
        return th.as_tensor(result, dtype=dtype, device=template.device)
    dtype = np.asarray(template).dtype
    return result.astype(dtype) if np.issubdtype(dtype, np.floating) else result
