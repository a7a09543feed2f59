"""What an evaluation found: episodes, success rates by task and suite, files."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sb3_tgrpo.evaluation.comparison import Rate
from sb3_tgrpo.files import atomic_write


@dataclass(frozen=True)
class EvalEpisode:
    """
    One evaluated episode.

    :param task: Such as ``libero_object-3``.
    :param init_state_id: Stored start, None for a drawn one.
    :param seed: What the start depends on besides: the reset's seed of a drawn start, the noise's of a widened stored start,
        0 of a stored one (fixtures are placed by seed 0, as in OpenVLA's evaluation).
    :param success: Whether it succeeded.
    :param length: Steps.
    :param reward: Sum of rewards.
    :param max_stage: Highest stage of the reward program, None without one.
    :param n_stages: Number of its stages.
    :param progress: Highest progress, 0 to 1.
    :param repetition: Number of the episode among those from this start.
    """

    task: str
    init_state_id: int | None
    seed: int
    success: bool
    length: int
    reward: float
    max_stage: int | None = None
    n_stages: int | None = None
    progress: float | None = None
    repetition: int = 0

    @property
    def key(self) -> tuple[str, int | None, int, int]:
        """What tells episodes of one evaluation apart."""
        return self.task, self.init_state_id, self.seed, self.repetition


@dataclass
class Evaluation:
    """
    Outcomes of a policy and how they came about.

    :param policy: Its name.
    :param env_ids: Environments.
    :param deterministic: Greedy or sampled.
    :param temperature: Of sampling, None where greedy or not the policy's to have.
    :param assets: ``"full"`` or ``"light"``, None outside LIBERO.
    :param protocol: Starts, step caps, seeds, versions: all that the outcomes depend on.
    :param episodes: In the order of tasks and starts, whatever order they were played in.
    """

    policy: str
    env_ids: list[str]
    deterministic: bool
    temperature: float | None
    assets: str | None
    protocol: dict[str, Any]
    episodes: list[EvalEpisode] = field(default_factory=list)

    @property
    def rate(self) -> Rate:
        """Successes among all episodes."""
        return _rate(self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of successes."""
        return self.rate.rate

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of :attr:`success_rate`; takes episodes as independent."""
        return self.rate.interval()

    @property
    def mean_length(self) -> float:
        """Mean number of steps."""
        return float(np.mean([episode.length for episode in self.episodes]))

    def per_task(self) -> dict[str, Rate]:
        """Success by task."""
        return _group(self.episodes, lambda episode: episode.task)

    def per_suite(self) -> dict[str, Rate]:
        """Success by suite."""
        return _group(self.episodes, lambda episode: suite_of(episode.task))

    def to_dict(self) -> dict[str, Any]:
        """Everything, with the rates, for JSON."""
        rates = {
            name: {"successes": rate.successes, "episodes": rate.trials, "rate": rate.rate, "interval": list(rate.interval())}
            for name, rate in {"all": self.rate, **self.per_suite(), **self.per_task()}.items()
        }
        return {**asdict(self), "rates": rates}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Evaluation":
        """
        The inverse of :meth:`to_dict`.

        :raises ValueError: If something is missing.
        """
        try:
            episodes = [EvalEpisode(**episode) for episode in content["episodes"]]
            names = ("policy", "env_ids", "deterministic", "temperature", "assets", "protocol")
            return cls(**{name: content[name] for name in names}, episodes=episodes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is not an evaluation: {error!r}.") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON; the file appears when it is complete."""
        write_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """
        Read what :meth:`save` wrote.

        :raises ValueError: If there is no such file, or it is something else.
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ValueError(f"{path} can't be read as an evaluation: {error.strerror}.") from error
        except ValueError as error:
            raise ValueError(f"{path} can't be read as an evaluation ({error}).") from error

    def __str__(self) -> str:
        rows = {**self.per_task(), **(self.per_suite() if len(self.env_ids) > 1 else {}), "all": self.rate}
        width = max(map(len, rows))
        how = "greedy" if self.deterministic else f"sampled at T={self.temperature:g}" if self.temperature else "sampled"
        lines = [f"{self.policy}, {how}" + (f", {self.assets} assets" if self.assets else "")]
        return "\n".join([*lines, *(f"{name:{width}}  {rate}" for name, rate in rows.items())])


def task_name(env_id: str) -> str:
    """``libero_object-3`` of ``LIBERO/libero_object-3-v0``; other ids as they are."""
    return env_id.removeprefix("LIBERO/").removesuffix("-v0") if env_id.startswith("LIBERO/") else env_id


def suite_of(task: str) -> str:
    """``libero_object`` of ``libero_object-3``."""
    suite, _, index = task.rpartition("-")
    return suite if suite and index.isdigit() else task


def _rate(episodes: Sequence[EvalEpisode]) -> Rate:
    return Rate(sum(episode.success for episode in episodes), len(episodes))


def _group(episodes: Sequence[EvalEpisode], key: Callable[[EvalEpisode], str]) -> dict[str, Rate]:
    groups: dict[str, list[EvalEpisode]] = {}
    for episode in episodes:
        groups.setdefault(key(episode), []).append(episode)
    return {name: _rate(group) for name, group in groups.items()}


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Write JSON; the file appears when it is complete."""
    atomic_write(Path(path), json.dumps(content, indent=1) + "\n")
