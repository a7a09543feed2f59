"""What an evaluation found: episodes, success rates by task and suite, files."""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.statistics import Rate
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.rewards.facts.task_name import TaskName


@dataclass(frozen=True)
class EvalEpisode:
    """
    One evaluated episode.

    :param task: Task, such as ``libero_object-3``.
    :param init_state_id: Number of the stored initial state; None for a drawn one.
    :param seed: Seed of the reset for a drawn initial state, seed of the noise for a widened stored one. 0 for a stored one:
        fixtures are placed by seed 0, as in OpenVLA's evaluation.
    :param success: Whether the episode succeeded.
    :param length: Number of steps.
    :param reward: Sum of rewards.
    :param max_stage: Highest stage of the reward program; None without one.
    :param n_stages: Number of stages of the reward program; None without one.
    :param progress: Highest progress, 0 to 1; None without a reward program.
    :param repetition: Number of the episode among all from this initial state.
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
        """Identity of the episode within its evaluation."""
        return self.task, self.init_state_id, self.seed, self.repetition

    @property
    def name(self) -> str:
        """The episode in a file's name."""
        state = f"start{self.init_state_id:02d}" if self.init_state_id is not None else f"seed{self.seed}"
        repetition = f"-{self.repetition}" if self.repetition else ""
        return f"{self.task.replace('/', '_')}-{state}{repetition}-{'success' if self.success else 'failure'}"


@dataclass
class Evaluation:
    """
    Outcomes of a policy and how they came about.

    :param policy: Name of the policy.
    :param env_ids: Environments.
    :param decoding: Greedy or sampled actions.
    :param assets: ``"full"`` or ``"light"``; None outside LIBERO.
    :param protocol: Record of the :class:`~sb3_tgrpo.evaluation.protocol.Protocol`, step limits, policy and versions.
    :param episodes: Episodes in the order of tasks and initial states, whatever order they were played in.
    """

    policy: str
    env_ids: list[str]
    decoding: Decoding
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
        """Wilson's 95 % interval of :attr:`success_rate`, as if episodes were independent."""
        return self.rate.interval()

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
        """The inverse of :meth:`to_dict`; also reads what versions before 0.2 wrote."""
        try:
            episodes = [EvalEpisode(**episode) for episode in content["episodes"]]
            if "decoding" in content:
                decoding = Decoding(**content["decoding"])
            else:  # before 0.2; without a temperature where the policy has none of its own
                decoding = Decoding() if content["deterministic"] else Decoding(content["temperature"] or 1.0)
            names = ("policy", "env_ids", "assets", "protocol")
            return cls(**{name: content[name] for name in names}, decoding=decoding, episodes=episodes)
        except (KeyError, TypeError) as error:
            raise ValueError(f"This is not an evaluation: {error!r}.") from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON; the file appears when it is complete."""
        atomic_write(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Evaluation":
        """Read what :meth:`save` wrote; anything else is a ``ValueError``."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except OSError as error:
            raise ValueError(f"{path} can't be read as an evaluation: {error.strerror}.") from error
        except ValueError as error:
            raise ValueError(f"{path} can't be read as an evaluation ({error}).") from error

    def __str__(self) -> str:
        tasks = self.per_task()
        rows = {**tasks, **(self.per_suite() if len(tasks) > 1 else {}), "all": self.rate}
        states = "" if "seeds" not in self.protocol else "drawn" if self.protocol["seeds"] is not None else "stored"
        about = (str(self.decoding), self.assets and f"{self.assets} assets", states and f"{states} initial states")
        order = "official order" if self.protocol.get("official_order") else None
        head = ", ".join(filter(None, (self.policy, *about, order)))
        width = max(map(len, rows))
        lines = [f"{name:{width}}  {rate}  {self._progress(name)}" for name, rate in rows.items()]
        return "\n".join([f"{head}: successes [95 % interval], means of steps", *lines])

    def _progress(self, name: str) -> str:
        """How far the episodes of a task, a suite or all of them came."""
        episodes = [episode for episode in self.episodes if name in ("all", episode.task, suite_of(episode.task))]
        limits = sorted({str(self.protocol.get("step_limits", {}).get(episode.task, "?")) for episode in episodes})
        text = f"{sum(e.length for e in episodes) / len(episodes):.0f} of {' or '.join(limits)} steps"
        reached = [e.max_stage / e.n_stages for e in episodes if e.max_stage is not None and e.n_stages]
        return text + (f", {sum(reached) / len(reached):.0%} of the stages" if reached else "")


def read_episodes(path: str | os.PathLike[str]) -> list[EvalEpisode]:
    """Episodes of a file with a JSON object per line. A line that can't be read counts as not played, with a warning."""
    if not os.path.isfile(path):
        return []
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    episodes = []
    for line in lines:
        try:
            episodes.append(EvalEpisode(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    if lost := len(lines) - len(episodes):
        warnings.warn(f"{path}: {lost} of {len(lines)} lines can't be read. Their episodes are played again.", stacklevel=2)
    return episodes


def task_name(env_id: str) -> str:
    """``libero_object-3`` for ``LIBERO/libero_object-3-v0``; other ids as they are."""
    try:
        return str(TaskName.parse(env_id))
    except ValueError:
        return env_id


def suite_of(task: str) -> str:
    """``libero_object`` for ``libero_object-3``; other tasks as they are."""
    try:
        return TaskName.parse(task).suite
    except ValueError:
        return task


def _rate(episodes: Sequence[EvalEpisode]) -> Rate:
    return Rate(sum(episode.success for episode in episodes), len(episodes))


def _group(episodes: Sequence[EvalEpisode], key: Callable[[EvalEpisode], str]) -> dict[str, Rate]:
    groups: dict[str, list[EvalEpisode]] = {}
    for episode in episodes:
        groups.setdefault(key(episode), []).append(episode)
    return {name: _rate(group) for name, group in groups.items()}
