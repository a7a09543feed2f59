"""Success before and after training, pooled over seeds."""

from collections.abc import Sequence
from typing import Any

from sb3_tgrpo.evaluation.comparison import paired_comparison
from sb3_tgrpo.evaluation.results import Evaluation


def pooled(before: Sequence[Evaluation], after: Sequence[Evaluation], seeds: Sequence[int]) -> dict[str, Any]:
    """Success of the base policy and of trained ones, of each seed and together, with bootstrap intervals."""
    units: list[Any] = ["initial_state", *(["evaluation"] if len(before) > 1 else [])]
    found: dict[str, Any] = {
        "per_seed": [
            {
                "seed": seed,
                "before": _counts(first),
                "after": _counts(second),
                "paired": paired_comparison(first, second).to_dict(),
            }
            for seed, first, second in zip(seeds, before, after, strict=True)
        ],
        "paired": {unit: paired_comparison(list(before), list(after), resample=unit).to_dict() for unit in units},
    }
    for name, evaluations in (("before", before), ("after", after)):
        # Greedy play of the base policy is one evaluation, common to all seeds, however often it is paired.
        distinct = {(e.protocol["seed"], e.protocol["policy_fingerprint"]): e.episodes for e in evaluations}
        episodes = [episode for played in distinct.values() for episode in played]
        found[name] = {
            "successes": sum(episode.success for episode in episodes),
            "episodes": len(episodes),
            "length": sum(episode.length for episode in episodes) / len(episodes),
            "furthest": [episode.max_stage for episode in episodes],
            "n_stages": episodes[0].n_stages,
        }
    return found


def _counts(evaluation: Evaluation) -> dict[str, Any]:
    rate = evaluation.rate
    return {"successes": rate.successes, "episodes": rate.trials, "interval": list(rate.interval())}
