"""Statistics over a table of scores, one per (task, seed): interquartile mean, stratified bootstrap, ranks."""

from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 10_000

Scores = Sequence[Sequence[float]]
"""One row per task with a score per seed; rows may differ in length."""

Rows = Sequence[Sequence[float] | np.ndarray]
"""The same, or one array of resampled rows per task."""


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """
    Mean of the middle half (Agarwal et al., arXiv 2108.13264): a quarter of the scores, rounded down, is left out at each end.

    :param scores: any shape, not empty along ``axis``.
    :param axis: to average over.
    """
    ordered = np.moveaxis(np.sort(np.asarray(scores, dtype=np.float64), axis=axis), axis, -1)
    n = ordered.shape[-1]
    if n == 0:
        raise ValueError("scores is empty: there is nothing to average.")
    cut = n // 4
    return ordered[..., cut : n - cut].mean(axis=-1)


def iqm_of_cells(scores: Rows) -> np.ndarray:
    """
    Interquartile mean over the cells of all tasks.

    :param scores: one array per task, seeds along the last axis.
    """
    return interquartile_mean(np.concatenate(scores, axis=-1))


def mean_of_tasks(scores: Rows) -> np.ndarray:
    """
    Mean over tasks of the mean over seeds: each task weighs the same, however many of its seeds are finished.

    :param scores: one array per task, seeds along the last axis.
    """
    return np.mean([np.mean(row, axis=-1) for row in scores], axis=0)


def bootstrap_interval(
    scores: Scores, statistic: Callable[[Rows], np.ndarray] = iqm_of_cells, *, seed: int = 0
) -> tuple[float, float]:
    """
    95 % percentile interval of a statistic of all scores, where the seeds of each task are drawn with replacement and the
    tasks are kept (stratified, as in arXiv 2108.13264): what other training runs on these tasks would have given.

    :param scores: one row per task with a score per seed.
    :param statistic: of one array per task, ``(n_resamples, n_seeds)``; :func:`iqm_of_cells` or :func:`mean_of_tasks`.
    :param seed: of the resampling.
    :raises ValueError: if a task has no score.
    """
    if not len(scores) or not all(len(row) for row in scores):
        raise ValueError("scores must hold at least one score of each task.")
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(row, dtype=np.float64)[rng.integers(len(row), size=(RESAMPLES, len(row)))] for row in scores]
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    return float(low), float(high)


def ranks(scores: Sequence[float]) -> list[float]:
    """
    Rank of each score, 1 for the highest; equal ones share the mean of their ranks.

    :param scores: one per method.
    """
    values = np.asarray(scores, dtype=np.float64)
    return [float((values > value).sum() + ((values == value).sum() + 1) / 2) for value in values]
