"""Two policies compared on the same initial states."""

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation
from sb3_tgrpo.evaluation.statistics import Rate, clustered_interval, mcnemar_p_value

Resample = Literal["initial_state", "pair", "evaluation"]

FEWEST = {"initial_state": 10, "pair": 10, "evaluation": 3}
"""With fewer units than these a bootstrap interval is far too narrow: outcomes that did not occur are never drawn."""


@dataclass(frozen=True)
class PairedComparison:
    """
    Two policies on identical initial states.

    :param before: Name of the first policy.
    :param after: Name of the second policy.
    :param both: Pairs in which both succeed.
    :param only_before: Pairs in which only the first succeeds.
    :param only_after: Pairs in which only the second succeeds.
    :param neither: Pairs in which neither succeeds.
    :param n_evaluations: Evaluations pooled on either side.
    :param n_initial_states: Different initial states among the pairs.
    :param resample: What the bootstrap drew.
    :param interval: 95 % bootstrap interval of :attr:`difference`.
    """

    before: str
    after: str
    both: int
    only_before: int
    only_after: int
    neither: int
    n_evaluations: int
    n_initial_states: int
    resample: Resample
    interval: tuple[float, float]

    @property
    def n_pairs(self) -> int:
        """Number of pairs."""
        return self.both + self.only_before + self.only_after + self.neither

    @property
    def n_resampled(self) -> int:
        """Number of units that the bootstrap drew from."""
        return {"initial_state": self.n_initial_states, "pair": self.n_pairs, "evaluation": self.n_evaluations}[self.resample]

    @property
    def is_crude(self) -> bool:
        """Whether the interval comes from so few units, or units so alike, that it is far too narrow."""
        return self.n_resampled < FEWEST[self.resample] or (self.difference != 0 and self.interval[0] == self.interval[1])

    @property
    def difference(self) -> float:
        """Success rate of the second minus that of the first."""
        return (self.only_after - self.only_before) / self.n_pairs

    @property
    def p_value(self) -> float | None:
        """Exact McNemar test; None where pairs share an initial state (several evaluations, repetitions): not independent."""
        return mcnemar_p_value(self.only_before, self.only_after) if self.n_initial_states == self.n_pairs else None

    def to_dict(self) -> dict[str, Any]:
        """Counts and results, for JSON."""
        names = ("n_pairs", "n_resampled", "is_crude", "difference", "p_value")
        return {**asdict(self), **{name: getattr(self, name) for name in names}}

    def __str__(self) -> str:
        low, high = (100 * bound for bound in self.interval)
        rates = (
            Rate(self.both + self.only_before, self.n_pairs),
            Rate(self.both + self.only_after, self.n_pairs),
        )
        pooled = f", {self.n_evaluations} evaluations pooled" if self.n_evaluations > 1 else ""
        units = self.resample.replace("_", " ") + ("" if self.n_resampled == 1 else "s")
        crude = "; too narrow: so few say little of others" if self.is_crude else ""
        return "\n".join(
            [
                f"before      {rates[0]}  {self.before}",
                f"after       {rates[1]}  {self.after}",
                f"pairs       {self.n_pairs}{pooled}: both succeed {self.both}, only before {self.only_before}, "
                f"only after {self.only_after}, neither {self.neither}",
                f"difference  {100 * self.difference:+.1f} percentage points, 95 % bootstrap interval "
                f"[{low:+.1f}, {high:+.1f}] ({self.n_resampled} {units} resampled{crude})",
                *([] if self.p_value is None else [f"McNemar     exact p = {self.p_value:.3g}"]),
            ]
        )


def paired_comparison(
    before: Evaluation | Sequence[Evaluation],
    after: Evaluation | Sequence[Evaluation],
    *,
    resample: Resample = "initial_state",
    seed: int = 0,
) -> PairedComparison:
    """
    Compare two policies episode by episode on identical initial states.

    Several evaluations can be pooled, such as one of each training seed: the k-th of ``before`` is paired with the k-th of
    ``after`` (a base policy common to all is repeated). What the interval generalises to depends on what is resampled:

    - ``"initial_state"``: initial states of each task, each with its episodes of all evaluations. It generalises to other
      initial states of these trained policies. The default.
    - ``"pair"``: pairs as if all were independent; with one evaluation and one episode per initial state the same.
    - ``"evaluation"``: whole evaluations, for training seeds. It generalises to another training run on these initial states,
      crudely if there are few. Evaluations of other initial states, such as another task's, are drawn among themselves.

    :param before: One evaluation or several.
    :param after: As many evaluations as ``before``.
    :param resample: What the bootstrap draws.
    :param seed: Seed of the bootstrap.
    :raises ValueError: If the initial states differ (with an example), or assets, step limits or numbers of evaluations do.
    """
    befores, afters = _as_list(before), _as_list(after)
    if resample not in get_args(Resample):
        raise ValueError(f"resample={resample!r} must be one of {', '.join(get_args(Resample))}.")
    if not befores or len(befores) != len(afters):
        raise ValueError(f"before and after must be as many evaluations, got {len(befores)} and {len(afters)}.")
    outcomes: list[tuple[bool, bool]] = []
    units: list[Hashable] = []
    states: set[Hashable] = set()
    strata: list[Hashable] = []
    played: list[frozenset[Hashable]] = []
    for k, (first, second) in enumerate(zip(befores, afters, strict=True)):
        _check_comparable(first, second)
        earlier, later = _by_initial_state(first), _by_initial_state(second)
        if earlier.keys() != later.keys():
            raise ValueError(_difference(earlier, later))
        played.append(frozenset(earlier))
        for key, episode in earlier.items():
            outcomes.append((episode.success, later[key].success))
            states.add(key[:-1])
            units.append({"initial_state": key[:-1], "pair": (k, key), "evaluation": k}[resample])
            strata.append(played[-1] if resample == "evaluation" else key[0])
    if resample == "evaluation" and min(Counter(played).values()) < 2:
        raise ValueError("resample='evaluation' needs at least two evaluations of the same initial states on either side.")
    pairs = np.array(outcomes, dtype=bool)
    kinds = ((True, True), (True, False), (False, True), (False, False))
    both, only_before, only_after, neither = (int((pairs == kind).all(axis=1).sum()) for kind in kinds)
    interval = clustered_interval(pairs[:, 1].astype(float) - pairs[:, 0], units, strata, seed=seed)
    same_decoding = len({evaluation.decoding for evaluation in (*befores, *afters)}) == 1
    names = _names(befores, same_decoding), _names(afters, same_decoding)
    return PairedComparison(*names, both, only_before, only_after, neither, len(befores), len(states), resample, interval)


def _as_list(evaluations: Evaluation | Sequence[Evaluation]) -> list[Evaluation]:
    return list(evaluations) if isinstance(evaluations, Sequence) else [evaluations]


def _by_initial_state(evaluation: Evaluation) -> dict[tuple[Any, ...], EvalEpisode]:
    episodes = {episode.key: episode for episode in evaluation.episodes}
    if not episodes or len(episodes) < len(evaluation.episodes):
        raise ValueError(f"The evaluation of {evaluation.policy} has no episodes, or one of them twice.")
    noise, official = evaluation.protocol.get("start_noise"), evaluation.protocol.get("official_order")
    if noise or official:
        return {(key[0], noise, official, *key[1:]): episode for key, episode in episodes.items()}
    return {**episodes}


def _difference(earlier: dict[tuple[Any, ...], Any], later: dict[tuple[Any, ...], Any]) -> str:
    alone = sorted(earlier.keys() ^ later.keys(), key=str)
    return (
        f"The initial states differ, so the episodes can't be paired: {len(earlier)} and {len(later)} episodes, {len(alone)} "
        f"without a partner, such as {alone[0]} (task, init_state_id, seed, repetition). Evaluate both policies with the same "
        "settings."
    )


def _check_comparable(first: Evaluation, second: Evaluation) -> None:
    """Other pictures or other step limits make another task; greedy against sampled play may be what is asked."""
    played = [(evaluation.assets, _step_limits(evaluation)) for evaluation in (first, second)]
    for name, earlier, later in zip(("assets", "step limits"), *played, strict=True):
        if earlier != later:
            raise ValueError(
                f"The {name} differ, {earlier} and {later}, so the episodes can't be paired: evaluate both with the same."
            )


def _step_limits(evaluation: Evaluation) -> Any:
    return evaluation.protocol.get("step_limits", evaluation.protocol.get("step_caps"))  # the name before 0.2


def _names(evaluations: Sequence[Evaluation], same_decoding: bool) -> str:
    names = (evaluation.policy + ("" if same_decoding else f" ({evaluation.decoding})") for evaluation in evaluations)
    return ", ".join(dict.fromkeys(names))
