"""Success rates and tables of scores: intervals, a paired test, interquartile means, ranks."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000

Scores = Sequence[Sequence[float]]
"""One row per task with a score per seed; rows may differ in length."""

Rows = Sequence[Sequence[float] | np.ndarray]
"""The same, or one array of resampled rows per task."""


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """
    Wilson's interval of a success rate.

    :param successes: Number of successes.
    :param trials: Number of independent trials, at least 1.
    :param z: Quantile of the normal distribution; 1.96 gives 95 %.
    :return: Lower and upper bound, from 0 to 1.
    """
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True)
class Rate:
    """A success rate: so many successes in so many episodes."""

    successes: int
    trials: int

    @property
    def rate(self) -> float:
        """Successes over episodes."""
        return self.successes / self.trials

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson_interval(self.successes, self.trials)

    def __str__(self) -> str:
        low, high = self.interval()
        return f"{self.successes}/{self.trials} = {self.rate:.0%} [{low:.0%}, {high:.0%}]"


def mcnemar_p_value(only_before: int, only_after: int) -> float:
    """
    Exact two-sided McNemar test: were pairs that differ as likely to differ one way as the other?

    :param only_before: Number of pairs in which only the first succeeded.
    :param only_after: Number of pairs in which only the second succeeded.
    :return: The p-value; 1 without a pair that differs.
    """
    n = only_before + only_after
    tail = sum(math.comb(n, k) for k in range(min(only_before, only_after) + 1))
    return min(1.0, 2 * tail / 2**n)


def interquartile_mean(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half (arXiv 2108.13264): a quarter of the scores, rounded down, is left out at each end."""
    ordered = np.moveaxis(np.sort(np.asarray(scores, dtype=np.float64), axis=axis), axis, -1)
    n = ordered.shape[-1]
    if n == 0:
        raise ValueError("scores is empty: there is nothing to average.")
    cut = n // 4
    return ordered[..., cut : n - cut].mean(axis=-1)


def iqm_of_cells(scores: Rows) -> np.ndarray:
    """Interquartile mean over the cells of all tasks: one array per task, seeds along the last axis."""
    return interquartile_mean(np.concatenate(scores, axis=-1))


def mean_of_tasks(scores: Rows) -> np.ndarray:
    """Mean over tasks of the mean over seeds: each task weighs the same, however many of its seeds are finished."""
    return np.mean([np.mean(row, axis=-1) for row in scores], axis=0)


def bootstrap_interval(
    scores: Scores, statistic: Callable[[Rows], np.ndarray] = iqm_of_cells, *, seed: int = 0
) -> tuple[float, float]:
    """
    95 % percentile interval of a statistic of all scores, where the seeds of each task are drawn with replacement and the
    tasks are kept (stratified, as in arXiv 2108.13264): what other training runs on these tasks would have given.

    :param scores: One row per task with a score per seed.
    :param statistic: Function of one array per task, ``(n_resamples, n_seeds)``; :func:`iqm_of_cells` or
        :func:`mean_of_tasks`.
    :param seed: Seed of the resampling.
    :raises ValueError: If a task has no score.
    """
    if not len(scores) or not all(len(row) for row in scores):
        raise ValueError("scores must hold at least one score of each task.")
    rng = np.random.default_rng(seed)
    drawn = [np.asarray(row, dtype=np.float64)[rng.integers(len(row), size=(RESAMPLES, len(row)))] for row in scores]
    return _middle(statistic(drawn))


def clustered_interval(
    values: np.ndarray, units: Sequence[Hashable], strata: Sequence[Hashable], *, seed: int = 0
) -> tuple[float, float]:
    """
    95 % percentile interval of a mean when whole units are drawn with replacement, within each stratum as many as it has.

    :param values: Values to average.
    :param units: Unit of each value, such as the initial state that two episodes share.
    :param strata: Stratum of each value, such as its task; a unit lies in one stratum.
    :param seed: Seed of the resampling.
    """
    index = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    members = np.array([index[unit] for unit in units])
    sums, sizes = np.bincount(members, values), np.bincount(members)
    stratum_of = dict(zip(units, strata, strict=True))
    blocks = [np.array([index[unit] for unit in index if stratum_of[unit] == stratum]) for stratum in dict.fromkeys(strata)]
    # One row per resample: for each place in it, the block that it is drawn from and how many units that has.
    counts = np.concatenate([np.full(len(block), len(block)) for block in blocks])
    firsts = np.cumsum([0, *map(len, blocks[:-1])])
    offsets = np.concatenate([np.full(len(block), first) for block, first in zip(blocks, firsts, strict=True)])
    drawn = np.concatenate(blocks)[offsets + np.random.default_rng(seed).integers(counts, size=(RESAMPLES, len(counts)))]
    return _middle(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))


def _middle(values: np.ndarray) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def ranks(scores: Sequence[float]) -> list[float]:
    """Rank of each score, 1 for the highest; equal ones share the mean of their ranks."""
    values = np.asarray(scores, dtype=np.float64)
    return [float((values > value).sum() + ((values == value).sum() + 1) / 2) for value in values]
