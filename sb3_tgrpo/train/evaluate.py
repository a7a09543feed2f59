"""Success before and after training: pooled over seeds, and shown."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sb3_tgrpo.evaluation.comparison import paired_comparison
from sb3_tgrpo.evaluation.results import Evaluation
from sb3_tgrpo.files import atomic_write


def pooled(before: Sequence[Evaluation], after: Sequence[Evaluation], seeds: Sequence[int]) -> dict[str, Any]:
    """
    Success before and after, of each seed and together, with bootstrap intervals.

    :param before: Evaluations of the base policy, one per seed.
    :param after: Evaluations of the trained policies, one per seed.
    :param seeds: Seeds of the runs.
    """
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
    return {
        "successes": evaluation.rate.successes,
        "episodes": evaluation.rate.trials,
        "interval": list(evaluation.interval()),
    }


def show_videos(videos: Mapping[str, Path], file: Path) -> None:
    """
    Write a picture of videos, a row each.

    :param videos: Videos by name.
    :param file: The picture.
    """
    from sb3_tgrpo.envs.demos.pictures import read_pictures
    from sb3_tgrpo.train.plots import plot_episodes

    atomic_write(file, plot_episodes({name: read_pictures(video) for name, video in videos.items()}))
