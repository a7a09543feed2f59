"""Between actions and token ids: bins, un-normalisation, and LIBERO's gripper convention."""

from collections.abc import Sequence
from typing import Any

import numpy as np

BOX_KEY = "action_space"
"""Name of the statistics of a checkpoint that came without any: the action space's bounds."""
_LIBERO_DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def dimension_names(n: int) -> Sequence[str]:
    """
    Names of action dimensions for logs.

    :param n: Number of dimensions.
    """
    return _LIBERO_DIMENSIONS if n == len(_LIBERO_DIMENSIONS) else [str(k) for k in range(n)]


def bin_values(tokens: np.ndarray, vocab_end: int, n_bins: int) -> np.ndarray:
    """
    Values in [-1, 1] of action tokens. Ids count down from the end of the vocabulary; ``n_bins`` edges leave
    ``n_bins - 1`` centres, so the two ids at the top of the range share one value.

    :param vocab_end: One past the last action id (32000 upstream).
    :param n_bins: Number of action ids (256 upstream).
    :return: Bin centres, float64, of the tokens' shape. Ids outside the range give the nearest end.
    """
    index = np.clip(vocab_end - np.asarray(tokens, dtype=np.int64) - 1, 0, n_bins - 2)
    return -1.0 + (2.0 * index + 1.0) / (n_bins - 1)


def bin_tokens(values: np.ndarray, vocab_end: int, n_bins: int) -> np.ndarray:
    """int64 ids in ``[vocab_end - n_bins, vocab_end)`` of values clipped to [-1, 1], as upstream encoded its training data."""
    edges = np.linspace(-1.0, 1.0, n_bins)
    return vocab_end - np.digitize(np.clip(values, -1.0, 1.0), edges).astype(np.int64)


def _bounds(statistics: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    action = statistics["action"]
    low, high = np.asarray(action["q01"], dtype=np.float64), np.asarray(action["q99"], dtype=np.float64)
    mask = np.asarray(action.get("mask", np.ones(len(low))), dtype=bool)
    return low, high, mask


def check_statistics(statistics: Any, source: str) -> None:
    """
    Refuse statistics by dataset name of which none is as :func:`unnormalise` reads them. Of several datasets' one must do:
    the others may be of no interest.
    """
    expected = '{dataset: {"action": {"q01": [...], "q99": [...]}}} with numbers, one per dimension of the action'
    if not isinstance(statistics, dict):
        raise ValueError(f"{source} must be {expected}, got {statistics!r:.60}.")
    unfit = {name: entry for name, entry in statistics.items() if not _fits(entry)}
    if unfit and len(unfit) == len(statistics):
        name, entry = next(iter(unfit.items()))
        raise ValueError(f"{source} must be {expected}; {name!r} has {entry!r:.60}.")


def _fits(entry: Any) -> bool:
    try:
        low, high, mask = _bounds(entry)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return low.ndim == 1 and low.shape == high.shape == mask.shape and bool(np.isfinite([low, high]).all())


def unnormalise(values: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """
    Stretch values in [-1, 1] to ``[q01, q99]`` where the statistics' mask is set. A dimension with ``q01 == q99``
    decodes to exactly that constant.

    :param values: ``(..., K)`` float64.
    :param statistics: One dataset's entry: ``{"action": {"q01": ..., "q99": ..., "mask": ...}}``.
    """
    low, high, mask = _bounds(statistics)
    return np.where(mask, 0.5 * (values + 1.0) * (high - low) + low, values)


def normalise(actions: np.ndarray, statistics: dict[str, Any]) -> np.ndarray:
    """The inverse of :func:`unnormalise` as used to encode training data; constant dimensions become 0."""
    low, high, mask = _bounds(statistics)
    scaled = np.clip(2.0 * (actions - low) / (high - low + 1e-8) - 1.0, -1.0, 1.0)
    return np.where(mask, np.where(low == high, 0.0, scaled), actions)


def action_dim(statistics: dict[str, Any]) -> int:
    """Number of action dimensions (= tokens) of one dataset's statistics."""
    return len(statistics["action"]["q01"])


def libero_gripper(actions: np.ndarray) -> np.ndarray:
    """
    The last step from OpenVLA's action to LIBERO's: the model's gripper is 0 (close) to 1 (open), LIBERO's is +1 (close)
    or -1 (open). The value is stretched to [-1, 1], reduced to its sign and negated, as upstream's evaluation does.

    :param actions: ``(..., K)``, gripper last.
    """
    actions = np.array(actions, copy=True)
    actions[..., -1] = -np.sign(2.0 * actions[..., -1] - 1.0)
    return actions


def libero_gripper_inverse(actions: np.ndarray) -> np.ndarray:
    """LIBERO's actions ``(..., K)`` with the gripper as OpenVLA's training data holds it (open 1, close 0)."""
    actions = np.array(actions, copy=True)
    actions[..., -1] = 1.0 - np.clip(actions[..., -1], 0.0, 1.0)
    return actions


def resolve_unnorm_key(
    available: Sequence[str], key: str | None = None, suite: str | None = None, recorded: str | None = None
) -> str:
    """
    Which dataset's statistics to use: the one asked for (or its ``_no_noops`` variant), the suite's, the one that the
    checkpoint was trained with if that is recorded, or the only one.

    :raises ValueError: If there is none, the choice is open, or the only ones are another robot's; the names are listed.
    """
    names = ", ".join(sorted(available)) or "none"
    if key is not None:
        if (found := _named(key, available)) is not None:
            return found
        raise ValueError(f"unnorm_key={key!r} is not among the checkpoint's action statistics: {names}.")
    own = _named(suite, available) if suite else None
    recorded = recorded if recorded in available else None
    if own is not None and recorded not in (None, own):
        raise ValueError(
            f"unnorm_key is needed: the checkpoint was trained with the action statistics {recorded!r}, the environment is of "
            f"{suite!r}. Pass one of: {names}."
        )
    if (chosen := own or recorded) is not None:
        return chosen
    if len(available) != 1:
        raise ValueError(
            f"unnorm_key is needed to choose among the checkpoint's action statistics (suite {suite!r}): {names}."
        )
    if suite is not None and not available[0].startswith("libero_") and available[0] != BOX_KEY:
        raise ValueError(
            f"unnorm_key is needed: the checkpoint's only action statistics are {names!r}, which is no suite of LIBERO's. "
            f"Another robot's actions are scaled differently: pass unnorm_key={names!r} if it was trained so."
        )
    return available[0]


def _named(name: str, available: Sequence[str]) -> str | None:
    return next((candidate for candidate in (name, f"{name}_no_noops") if candidate in available), None)
