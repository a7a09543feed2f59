"""Statistics of success rates: intervals, and two policies compared on the same starts."""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from sb3_tgrpo.evaluation.protocol import EvalEpisode, Evaluation

Unit = Literal["start", "pair", "evaluation"]

_RESAMPLES = 10_000


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """
    Wilson's interval of a success rate.

    :param successes: Number of successes.
    :param trials: Number of independent trials, at least 1.
    :param z: 1.96 for 95 %.
    """
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True)
class Rate:
    """
    A success rate.

    :param successes: Number of successes.
    :param trials: Number of episodes.
    """

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
    Exact two-sided McNemar test: were the pairs that differ as likely to differ one way as the other?

    :param only_before: Pairs in which only the first succeeds.
    :param only_after: Pairs in which only the second does.
    :return: p-value, 1 without a pair that differs.
    """
    n = only_before + only_after
    tail = sum(math.comb(n, k) for k in range(min(only_before, only_after) + 1))
    return min(1.0, 2 * tail / 2**n)


@dataclass(frozen=True)
class PairedComparison:
    """
    Two policies on identical starts.

    :param before: Name of the first policy.
    :param after: Name of the second.
    :param both: Pairs in which both succeed.
    :param only_before: Only the first does.
    :param only_after: Only the second does.
    :param neither: Neither does.
    :param n_evaluations: Evaluations pooled on either side.
    :param n_starts: Different starts among the pairs.
    :param unit: What the bootstrap resampled.
    :param interval: 95 % bootstrap interval of :attr:`difference`.
    """

    before: str
    after: str
    both: int
    only_before: int
    only_after: int
    neither: int
    n_evaluations: int
    n_starts: int
    unit: Unit
    interval: tuple[float, float]

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return self.both + self.only_before + self.only_after + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the second minus that of the first."""
        return (self.only_after - self.only_before) / self.n_pairs

    @property
    def p_value(self) -> float | None:
        """Exact McNemar test; None where pairs share a start (several evaluations, repetitions): they are not independent."""
        return mcnemar_p_value(self.only_before, self.only_after) if self.n_starts == self.n_pairs else None

    def to_dict(self) -> dict[str, Any]:
        """Counts and results, for JSON."""
        return {**asdict(self), "n_pairs": self.n_pairs, "difference": self.difference, "p_value": self.p_value}

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.interval)
        rates = (
            Rate(self.both + self.only_before, self.n_pairs),
            Rate(self.both + self.only_after, self.n_pairs),
        )
        pooled = f", {self.n_evaluations} evaluations pooled" if self.n_evaluations > 1 else ""
        return "\n".join(
            [
                f"before      {rates[0]}  {self.before}",
                f"after       {rates[1]}  {self.after}",
                f"pairs       {self.n_pairs}{pooled}: both succeed {self.both}, only before {self.only_before}, "
                f"only after {self.only_after}, neither {self.neither}",
                f"difference  {100 * self.difference:+.1f} points, 95 % bootstrap interval [{low:+.1f}, {high:+.1f}] "
                f"(resampled: {self.unit}s)",
                *([] if self.p_value is None else [f"McNemar     exact p = {self.p_value:.3g}"]),
            ]
        )


def paired_comparison(
    before: "Evaluation | Sequence[Evaluation]",
    after: "Evaluation | Sequence[Evaluation]",
    *,
    unit: Unit = "start",
    seed: int = 0,
) -> PairedComparison:
    """
    Compare two policies episode by episode on identical starts.

    Several evaluations can be pooled, such as those of five training seeds: the k-th of ``before`` is paired with the k-th of
    ``after`` (a start policy common to all is simply repeated). What the interval generalises to depends on what is resampled:

    - ``"start"``: starts of each task, each with its episodes of all evaluations: other starts, these trained policies. The
      default.
    - ``"pair"``: pairs as if all were independent; with one evaluation and one episode per start the same as ``"start"``.
    - ``"evaluation"``: whole evaluations, for training seeds: another training run on these starts. Few make it crude.
      Evaluations of other starts, such as those of other tasks, are drawn among themselves.

    :param before: One evaluation or several.
    :param after: As many.
    :param unit: What the bootstrap resamples.
    :param seed: Of the bootstrap.
    :raises ValueError: If the starts differ, with an example, or the assets, the step caps or the numbers of evaluations do.
    """
    befores, afters = _as_list(before), _as_list(after)
    if unit not in get_args(Unit):
        raise ValueError(f"unit must be one of {', '.join(get_args(Unit))}, got {unit!r}.")
    if not befores or len(befores) != len(afters):
        raise ValueError(f"before and after must be as many evaluations, got {len(befores)} and {len(afters)}.")
    outcomes: list[tuple[bool, bool]] = []
    units: list[Hashable] = []
    starts: set[Hashable] = set()
    strata: list[Hashable] = []
    played: list[frozenset[Hashable]] = []
    for k, (first, second) in enumerate(zip(befores, afters, strict=True)):
        _check_comparable(first, second)
        ours, theirs = _by_start(first), _by_start(second)
        if ours.keys() != theirs.keys():
            raise ValueError(_difference(ours, theirs))
        played.append(frozenset(ours))
        for key, episode in ours.items():
            outcomes.append((episode.success, theirs[key].success))
            starts.add(key[:-1])
            units.append({"start": key[:-1], "pair": (k, key), "evaluation": k}[unit])
            strata.append(played[-1] if unit == "evaluation" else key[0])
    if unit == "evaluation" and min(Counter(played).values()) < 2:
        raise ValueError("unit='evaluation' resamples evaluations of the same starts: pass at least two on either side.")
    pairs = np.array(outcomes, dtype=bool)
    states = ((True, True), (True, False), (False, True), (False, False))
    both, only_before, only_after, neither = (int((pairs == state).all(axis=1).sum()) for state in states)
    gain = pairs[:, 1].astype(float) - pairs[:, 0]
    interval = _bootstrap_interval(gain, units, strata, seed)
    same_way = len({_way(evaluation) for evaluation in (*befores, *afters)}) == 1
    names = _names(befores, same_way), _names(afters, same_way)
    return PairedComparison(*names, both, only_before, only_after, neither, len(befores), len(starts), unit, interval)


def _as_list(evaluations: "Evaluation | Sequence[Evaluation]") -> "list[Evaluation]":
    return list(evaluations) if isinstance(evaluations, Sequence) else [evaluations]


def _by_start(evaluation: "Evaluation") -> "dict[tuple[Any, ...], EvalEpisode]":
    episodes = {(e.task, e.init_state_id, e.seed, e.repetition): e for e in evaluation.episodes}
    if not episodes or len(episodes) < len(evaluation.episodes):
        raise ValueError(f"The evaluation of {evaluation.policy} has no episodes, or one of them twice.")
    if evaluation.protocol.get("start_noise") or evaluation.protocol.get("official_order"):
        noise, official = evaluation.protocol.get("start_noise"), evaluation.protocol.get("official_order")
        return {(key[0], noise, official, *key[1:]): episode for key, episode in episodes.items()}
    return episodes


def _difference(ours: dict[tuple[Any, ...], Any], theirs: dict[tuple[Any, ...], Any]) -> str:
    alone = sorted(ours.keys() ^ theirs.keys(), key=str)
    return (
        f"The starts differ, so the episodes can't be paired: {len(ours)} and {len(theirs)} episodes, {len(alone)} without a "
        f"partner, such as {alone[0]} (task, start, seed, repetition). Evaluate both policies with the same settings."
    )


def _check_comparable(first: "Evaluation", second: "Evaluation") -> None:
    """Other pictures or other step caps make another task; greedy against sampled play may be what is asked."""
    played = [(evaluation.assets, evaluation.protocol.get("step_caps")) for evaluation in (first, second)]
    for name, ours, theirs in zip(("assets", "step caps"), *played, strict=True):
        if ours != theirs:
            raise ValueError(
                f"The {name} differ, {ours} and {theirs}, so the episodes can't be paired: evaluate both with the same."
            )


def _way(evaluation: "Evaluation") -> str:
    return "greedy" if evaluation.deterministic else f"T={evaluation.temperature:g}" if evaluation.temperature else "sampled"


def _names(evaluations: "Sequence[Evaluation]", same_way: bool) -> str:
    names = (evaluation.policy + ("" if same_way else f" ({_way(evaluation)})") for evaluation in evaluations)
    return ", ".join(dict.fromkeys(names))


def _bootstrap_interval(
    gain: np.ndarray, units: Sequence[Hashable], strata: Sequence[Hashable], seed: int
) -> tuple[float, float]:
    """
    95 % percentile interval of the mean of ``gain`` when whole units are drawn with replacement, within each stratum as many
    as it has.
    """
    index = {unit: i for i, unit in enumerate(dict.fromkeys(units))}
    members = np.array([index[unit] for unit in units])
    sums = np.bincount(members, gain)
    sizes = np.bincount(members)
    stratum_of = dict(zip(units, strata, strict=True))
    blocks = [np.array([index[unit] for unit in index if stratum_of[unit] == stratum]) for stratum in dict.fromkeys(strata)]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(_RESAMPLES):
        drawn = np.concatenate([block[rng.integers(len(block), size=len(block))] for block in blocks])
        means.append(sums[drawn].sum() / sizes[drawn].sum())
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
