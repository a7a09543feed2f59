"""Statistics of demonstrated actions, as OpenVLA's ``dataset_statistics.json`` holds them."""

from typing import Any, Literal

import numpy as np

from sb3_tgrpo.openvla.actions import libero_gripper_inverse
from sb3_tgrpo.settings import check_number

Gripper = Literal["libero", "none"]

_SAME_CONSTANT = 1e-6  # float32 files and float64 statistics round differently


def action_statistics(
    actions: np.ndarray,
    gripper: Gripper = "libero",
    n_trajectories: int | None = None,
    min_range: float = 0.0,
    symmetric: bool = False,
) -> dict[str, Any]:
    """
    Statistics of a dataset as OpenVLA's ``dataset_statistics.json`` holds them.

    A dimension that never changes gets ``q01 == q99``, which decodes to exactly that value. One that changes in less than
    1 % of the steps has equal quantiles as well; its minimum and maximum stand in for them, lest it be frozen.

    :param actions: ``(steps, K)`` in the environment's convention.
    :param gripper: ``"libero"``: the last dimension is LIBERO's gripper, stored as 1 open, 0 closed, and not scaled.
    :param n_trajectories: Number of episodes, stored with the statistics.
    :param min_range: A dimension with ``q99 - q01`` below this counts as constant, at 0 if 0 is in between, else at its
        median: a scripted controller's corrections of thousandths of a radian are noise that 256 bins would be spent on. In
        action units.
    :param symmetric: Widen every range to be symmetric about 0, so that the middle bin decodes to exactly 0: where q01 and q99
        differ in size, a policy that wants to stand still drifts.
    :return: ``{"action": {mask, max, mean, min, q01, q99, std}, "num_transitions": ..., "num_trajectories": ...}``.
    :raises ValueError: If no dimension ever changes.
    """
    values = np.asarray(actions, dtype=np.float64)
    if gripper == "libero":
        values = libero_gripper_inverse(values)
    low, high = np.quantile(values, 0.01, axis=0), np.quantile(values, 0.99, axis=0)
    least, most = values.min(axis=0), values.max(axis=0)
    constant = least == most
    check_number("min_range", min_range)
    if constant.all():
        raise ValueError("The actions never change in any dimension (all ranges are zero): there is nothing to imitate.")
    rare = (low == high) & ~constant
    low, high = np.where(rare | constant, least, low), np.where(rare | constant, most, high)
    narrow = ~constant & (high - low < min_range)
    if gripper == "libero":
        narrow[-1] = False
    # Exactly zero where that is possible: robosuite's controller holds the orientation only at a rotation of exactly zero.
    frozen = np.where((low <= 0) & (0 <= high), 0.0, np.median(values, axis=0))
    low, high = np.where(narrow, frozen, low), np.where(narrow, frozen, high)
    mask = np.ones(values.shape[1], dtype=bool)
    if gripper == "libero":
        mask[-1] = False
    if symmetric:
        widest = np.maximum(np.abs(low), np.abs(high))
        scaled = mask & (low < high)
        low, high = np.where(scaled, -widest, low), np.where(scaled, widest, high)
    mean = np.where(constant, least, values.mean(axis=0))
    std = np.where(constant, 0.0, values.std(axis=0))
    columns = {"mask": mask, "max": most, "mean": mean, "min": least, "q01": low, "q99": high, "std": std}
    statistics: dict[str, Any] = {"action": {key: column.tolist() for key, column in columns.items()}}
    statistics["num_transitions"] = len(values)
    if n_trajectories is not None:
        statistics["num_trajectories"] = n_trajectories
    return statistics


def check_range(statistics: dict[str, Any], actions: np.ndarray, gripper: Gripper, source: str) -> None:
    """
    Check that statistics can represent actions.

    :param statistics: One dataset's entry, not necessarily computed from ``actions``.
    :param actions: ``(steps, K)`` in the environment's convention.
    :param gripper: Gripper convention of ``actions``.
    :param source: Origin of the statistics, for the error.
    :raises ValueError: If they have another number of dimensions, or hold a constant where ``actions`` vary or have another.
    """
    bounds = statistics["action"]
    values = libero_gripper_inverse(actions) if gripper == "libero" else actions
    if len(bounds["q01"]) != values.shape[1]:
        raise ValueError(f"{source} has statistics for {len(bounds['q01'])} dimensions, the actions have {values.shape[1]}.")
    flat = np.asarray(bounds["q01"]) == np.asarray(bounds["q99"])
    flat &= np.asarray(bounds.get("mask", np.ones(len(flat))), dtype=bool)
    lost = np.flatnonzero(flat & (np.ptp(values, axis=0) > 0)).tolist()
    if lost:
        raise ValueError(
            f"{source} has statistics of zero range (q01 == q99) for dimension(s) {lost}, which vary in the demonstrations: "
            "they could not be imitated. Use statistics='data'."
        )
    held = np.asarray(bounds["q01"], dtype=np.float64)
    other = np.flatnonzero(flat & (np.abs(values[0] - held) > _SAME_CONSTANT))
    if len(other):
        raise ValueError(
            f"{source} has statistics that hold dimension(s) {other.tolist()} at {held[other].tolist()}, the demonstrations "
            f"have {values[0, other].tolist()} there: they could not be imitated. Use statistics='data'."
        )
