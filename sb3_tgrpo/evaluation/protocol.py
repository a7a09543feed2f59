"""What an evaluation is: initial states, decoding, seeds, environments. Without torch: what can't be is refused at once."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.results import EvalEpisode
from sb3_tgrpo.settings import setting

if TYPE_CHECKING:
    from sb3_tgrpo.envs.groups.worker import WorkerPool

GREEDY = Decoding()

Videos = Literal["failures", "all", "none"] | int
Progress = Callable[[EvalEpisode, int, int], None]

OFFICIAL_SEED = 0
"""What OpenVLA's evaluation seeds LIBERO with, whatever its own seed is: the placement of fixtures depends on it."""


@dataclass(frozen=True)
class EpisodeRequest:
    """
    An episode to play.

    :param task: Name of the environment.
    :param seed: Seed of its reset.
    :param options: Options of its reset.
    :param key: Identity of the episode for the caller; a policy adapter may seed its sampling with it.
    """

    task: str
    seed: int | None
    options: dict[str, Any] | None
    key: Any = None


@dataclass(frozen=True)
class Protocol:
    """
    What the outcomes of an evaluation depend on besides policy and environments; ``settings.json`` of its folder records it.

    :param init_state_ids: Numbers of the stored initial states to play.
    :param seeds: Seeds of drawn initial states to play instead of stored ones.
    :param repetitions: Episodes from each initial state. More than one is for sampled actions: a greedy episode would come out
        the same.
    :param decoding: Greedy actions, or sampled at a temperature; :func:`~sb3_tgrpo.evaluation.adapters.sampled` gives the
        policy's own.
    :param seed: Seed of the sampling, and of the noise on stored initial states.
    :param start_noise: Metres by which initial states are widened, stored ones too.
    :param official_order: Replay OpenVLA's evaluation loop: LIBERO is seeded with 0 once per task and reset before each
        stored initial state, so that in the k-th episode fixtures stand where the random numbers of k + 1 resets put them.
    :param env_kwargs: Keyword arguments of the environments, such as ``assets`` or ``image_size``.
    :param batch_size: Observations per forward pass of an ``OpenVLAPolicy``; None: 4 on CPU, 8 on CUDA.
    :raises ValueError: If the values do not fit together.
    """

    init_state_ids: Sequence[int] = tuple(range(50))
    seeds: Sequence[int] | None = None
    repetitions: int = setting(1, "episodes per initial state, for --sampled")
    decoding: Decoding = GREEDY
    seed: int = setting(0, "seed of sampling and of the noise on stored initial states")
    start_noise: float = setting(0.0, "metres by which initial states are widened, stored ones too")
    official_order: bool = setting(False, "replay OpenVLA's loop: fixtures as it places them")
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = setting(None, "observations per forward pass; none: 4, on CUDA 8")

    def __post_init__(self) -> None:
        name = "init_state_ids" if self.seeds is None else "seeds"
        chosen = list(getattr(self, name))
        if not chosen or len(set(chosen)) < len(chosen) or min(chosen) < 0:
            raise ValueError(f"{name}={chosen} must be one or more different numbers, 0 or above.")
        if self.repetitions < 1:
            raise ValueError(f"repetitions={self.repetitions} must be at least 1.")
        if self.repetitions > 1 and self.decoding.greedy:
            raise ValueError(
                f"repetitions={self.repetitions} would count one greedy episode several times: leave it at 1, or sample "
                "actions (decoding=Decoding(1.0))."
            )
        if not 0 <= self.start_noise < 1:
            raise ValueError(f"start_noise={self.start_noise} must be a distance in metres, from 0 up to 1.")
        if self.official_order and (name == "seeds" or self.repetitions > 1 or chosen != list(range(len(chosen)))):
            raise ValueError(
                "official_order=True replays the stored initial states 0, 1, 2, ... once each: leave the other settings of "
                "initial states as they are."
            )
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1.")

    @property
    def n_initial_states(self) -> int:
        """Number of initial states of each task."""
        return len(self.init_state_ids if self.seeds is None else self.seeds)

    @property
    def kwargs(self) -> dict[str, Any]:
        """Keyword arguments of the environments, with the noise on drawn initial states."""
        noise = {"start_noise": self.start_noise} if self.start_noise and self.seeds is not None else {}
        return {**self.env_kwargs, **noise}

    def requests(self, tasks: Sequence[str]) -> dict[tuple[Any, ...], EpisodeRequest]:
        """All episodes of the named environments, by :attr:`~sb3_tgrpo.evaluation.results.EvalEpisode.key`."""
        if self.seeds is not None:
            states: list[tuple[int | None, int]] = [(None, seed) for seed in self.seeds]
        else:
            states = [(k, self.seed if self.start_noise else 0) for k in self.init_state_ids]
        return {
            (task, init_state_id, seed, repetition): EpisodeRequest(
                task, *self._reset(init_state_id, seed, number), key=(init_state_id, seed, repetition)
            )
            for task in tasks
            for number, (init_state_id, seed) in enumerate(states)
            for repetition in range(self.repetitions)
        }

    def _reset(self, init_state_id: int | None, seed: int, number: int) -> tuple[int, dict[str, Any] | None]:
        """Seed and options of an environment's reset."""
        if init_state_id is None:
            return seed, None
        options: dict[str, Any] = {"init_state_id": init_state_id}
        if self.start_noise:
            options |= {"start_noise": self.start_noise, "noise_seed": seed}
        if self.official_order:
            options["earlier_resets"] = number
        return OFFICIAL_SEED, options

    def record(self, tasks: Sequence[str]) -> dict[str, Any]:
        """The settings for JSON; ``assets="auto"`` of LIBERO's tasks is recorded as what it stands for here."""
        kwargs = {name: plain(value) for name, value in self.env_kwargs.items()}
        if any(task.startswith("libero_") for task in tasks) and kwargs.get("assets", "auto") == "auto":
            from sb3_tgrpo.envs.libero.assets import resolve_assets

            kwargs["assets"] = resolve_assets("auto").kind  # full ones may turn up before the evaluation goes on
        states = list(self.init_state_ids) if self.seeds is None else None
        seeds = None if self.seeds is None else list(self.seeds)
        return {**asdict(replace(self, env_kwargs={})), "init_state_ids": states, "seeds": seeds, "env_kwargs": kwargs}


@dataclass(frozen=True)
class Execution:
    """
    How an evaluation is carried out. Outcomes do not depend on it.

    :param n_envs: Environments at once.
    :param subprocess: Whether each environment has a process of its own; None: where observations hold an image.
    :param timeout: Seconds to wait for a step or a reset of such a process.
    :param pool: Where such processes are taken from and kept for the next evaluation of the same environment; None: each
        evaluation starts its own.
    :param videos: Videos to write into the evaluation's folder: ``"failures"``, ``"all"``, ``"none"``, or the number of
        episodes per task, the first ones.
    :param progress: Function called after each episode with it, the number of episodes done, and of all.
    :raises ValueError: If a value is out of its range.
    """

    n_envs: int = 2
    subprocess: bool | None = None
    timeout: float | None = 60.0
    pool: "WorkerPool | None" = None
    videos: Videos = "failures"
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.n_envs < 1:
            raise ValueError(f"n_envs={self.n_envs} must be at least 1.")
        if isinstance(self.videos, str) and self.videos not in ("failures", "all", "none"):
            raise ValueError(f"videos={self.videos!r} must be 'failures', 'all', 'none' or a number of episodes.")

    def filmed(self, keys: Sequence[tuple[Any, ...]]) -> set[tuple[Any, ...]]:
        """Episodes whose pictures are kept while they are played, of all in their order."""
        if isinstance(self.videos, str):
            return set() if self.videos == "none" else set(keys)
        by_task: dict[str, list[tuple[Any, ...]]] = {}
        for key in keys:
            by_task.setdefault(key[0], []).append(key)
        return {key for first in by_task.values() for key in first[: self.videos]}


LIBERO_PROTOCOL = Protocol()
EXECUTION = Execution()


def plain(value: Any) -> Any:
    """A setting, environment or reward program as JSON can hold it, the same in another process."""
    if isinstance(value, partial):
        keywords = {name: plain(part) for name, part in value.keywords.items()}
        return {"function": plain(value.func), "arguments": [*map(plain, value.args)], **keywords}
    if (digest := getattr(value, "sha256", None)) is not None:  # a reward program
        return digest
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return repr(value) if type(value).__repr__ is not object.__repr__ else type(value).__qualname__
