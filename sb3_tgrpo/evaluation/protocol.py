"""
Evaluation by LIBERO's protocol: every stored initial state, official step limits, greedy, each episode alone to its own end.

The same function evaluates drawn initial states, sampled policies and other environments. What was done is recorded with the
outcomes.
"""

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.adapters import GREEDY, Policy, check_spaces, make_adapter, sb3_policy
from sb3_tgrpo.evaluation.identity import policy_name, policy_record
from sb3_tgrpo.evaluation.player import EpisodePlayer, EpisodeRequest, PlayedEpisode, env_maker
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation, read_episodes, task_name
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.run_folder import RunFolder, versions

if TYPE_CHECKING:
    from sb3_tgrpo.envs.groups.worker import WorkerPool

Envs = str | Sequence[str] | Mapping[str, str | Callable[..., gym.Env]]
Videos = Literal["failures", "all", "none"] | int
Progress = Callable[[EvalEpisode, int, int], None]

OFFICIAL_SEED = 0
"""What OpenVLA's evaluation seeds LIBERO with, whatever its own seed is: the placement of fixtures depends on it."""


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
    repetitions: int = 1
    decoding: Decoding = GREEDY
    seed: int = 0
    start_noise: float = 0.0
    official_order: bool = False
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int | None = None

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
        """
        All episodes, by :attr:`EvalEpisode.key <sb3_tgrpo.evaluation.results.EvalEpisode.key>`.

        :param tasks: Names of the environments.
        """
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
        """
        The settings for JSON.

        :param tasks: Names of the environments. For LIBERO's, ``assets="auto"`` is recorded as what it stands for here.
        """
        kwargs = {name: _plain(value) for name, value in self.env_kwargs.items()}
        if any(task.startswith("libero_") for task in tasks) and kwargs.get("assets", "auto") == "auto":
            from sb3_tgrpo.envs.libero.assets import resolve_assets

            kwargs["assets"] = resolve_assets("auto").kind  # full ones may turn up before the evaluation goes on
        return {
            "init_state_ids": list(self.init_state_ids) if self.seeds is None else None,
            "seeds": None if self.seeds is None else list(self.seeds),
            "repetitions": self.repetitions,
            "decoding": asdict(self.decoding),
            "seed": self.seed,
            "start_noise": self.start_noise,
            "official_order": self.official_order,
            "env_kwargs": kwargs,
            "batch_size": self.batch_size,
        }


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
        """
        Episodes whose pictures are kept while they are played.

        :param keys: All episodes, in their order.
        """
        if isinstance(self.videos, str):
            return set() if self.videos == "none" else set(keys)
        by_task: dict[str, list[tuple[Any, ...]]] = {}
        for key in keys:
            by_task.setdefault(key[0], []).append(key)
        return {key for first in by_task.values() for key in first[: self.videos]}


def evaluate_policy(
    policy: Policy,
    envs: Envs,
    protocol: Protocol = Protocol(),
    *,
    folder: str | os.PathLike[str] | None = None,
    name: str | None = None,
    execution: Execution = Execution(),
) -> Evaluation:
    """
    Play a policy from given initial states and record every episode.

    Outcomes do not depend on :class:`Execution`, on the order in which environments answer, or on an interruption: forward
    passes have a fixed size, and each episode samples with a generator that follows from the protocol's seed, its task and its
    initial state.

    With a folder, ``episodes.jsonl`` grows by a line per episode, ``evaluation.json`` appears at the end, and videos lie in
    ``videos/``. After an interruption of any kind the same call goes on, with the same result.

    :param policy: Algorithm of Stable-Baselines3 (TGRPO, PPO, ...) or policy such as
        :class:`~sb3_tgrpo.openvla.policy.OpenVLAPolicy`.
    :param envs: Gymnasium ids, or ids and functions that make environments by task name. Each is un-grouped, with its own
        step limit.
    :param protocol: What the outcomes depend on.
    :param folder: Folder of the evaluation, made if needed; None: nothing is kept.
    :param name: Name of the policy in the record; None: its checkpoint or class.
    :param execution: What the outcomes do not depend on.
    :return: The outcomes.
    :raises ValueError: On a policy made for other spaces or assets, or a folder of another policy or other settings.
    """
    named = _named(envs)
    tasks = list(named)
    settings = {
        "envs": {task: _plain(env) for task, env in named.items()},
        "policy": policy_record(policy),
        "protocol": protocol.record(tasks),
    }
    adapter = make_adapter(policy, protocol.decoding, protocol.seed, protocol.batch_size)
    place = None if folder is None else RunFolder(folder)
    requests = protocol.requests(tasks)
    finished: dict[tuple[Any, ...], EvalEpisode] = {}
    if place is not None:
        place.claim("settings.json", settings, results=("episodes.jsonl", "evaluation.json"))
        if (earlier := _finished(place / "evaluation.json")) is not None:
            return earlier
        finished = {episode.key: episode for episode in read_episodes(place / "episodes.jsonl")}
        JsonLines(place / "episodes.jsonl").rewrite([asdict(episode) for episode in finished.values()])
    facts = {task: _env_facts(policy, task, env_maker(env, protocol.kwargs)) for task, env in named.items()}
    first = next(iter(facts.values()))
    filmed = execution.filmed(list(requests)) if place is not None else set()
    render = bool(filmed) and not first["upright_image"]
    kwargs = {**protocol.kwargs, "render_mode": "rgb_array"} if render else protocol.kwargs
    player = EpisodePlayer(
        {task: env_maker(env, kwargs, render) for task, env in named.items()},
        adapter,
        n_envs=execution.n_envs,
        subprocess=bool(first["has_image"]) if execution.subprocess is None else execution.subprocess,
        timeout=execution.timeout,
        pool=execution.pool,
        picture=(_rendered if render else _upright) if filmed else None,
        wants_pictures=lambda request: (request.task, *request.key) in filmed,
    )
    sb3_policy(policy).set_training_mode(False)
    for played in player.play([request for key, request in requests.items() if key not in finished]):
        episode = _episode(played)
        finished[episode.key] = episode
        if place is not None:
            _keep(played, episode, place, execution.videos)
        if execution.progress is not None:
            execution.progress(episode, len(finished), len(requests))
    evaluation = Evaluation(
        policy=name or policy_name(policy),
        env_ids=[env if isinstance(env, str) else task for task, env in named.items()],
        decoding=protocol.decoding,
        assets=first["assets"],
        protocol={
            **settings["protocol"],
            "step_limits": {task: fact["step_limit"] for task, fact in facts.items()},
            "policy_fingerprint": settings["policy"]["fingerprint"],
            "versions": versions(),
        },
        episodes=[finished[key] for key in requests],
    )
    if place is not None:
        evaluation.save(place / "evaluation.json")
    return evaluation


def _named(envs: Envs) -> dict[str, str | Callable[..., gym.Env]]:
    listed = [envs] if isinstance(envs, str) else envs
    if not isinstance(listed, Mapping):
        if not isinstance(listed, Sequence) or not all(isinstance(env_id, str) for env_id in listed):
            raise TypeError(f"envs={envs!r} must be Gymnasium ids, or functions by task name: {{'my-task': make_env}}.")
        listed = {task_name(env_id): env_id for env_id in listed}
    if not listed:
        raise ValueError("envs is empty: name at least one environment.")
    return dict(listed)


def _plain(value: Any) -> Any:
    """A value as JSON can hold it, the same in another process."""
    if isinstance(value, partial):
        keywords = {name: _plain(part) for name, part in value.keywords.items()}
        return {"function": _plain(value.func), "arguments": [*map(_plain, value.args)], **keywords}
    if (digest := getattr(value, "sha256", None)) is not None:  # a reward program
        return digest
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    try:
        return json.loads(json.dumps(value))
    except TypeError:
        return repr(value) if type(value).__repr__ is not object.__repr__ else type(value).__qualname__


def _finished(file: Path) -> Evaluation | None:
    if not file.is_file():
        return None
    try:
        return Evaluation.load(file)
    except ValueError as error:
        warnings.warn(f"{error} It is written anew from the episodes that can be read.", stacklevel=3)
        return None


def _env_facts(policy: Policy, task: str, make: Callable[[], gym.Env]) -> dict[str, Any]:
    env = make()
    try:
        check_spaces(sb3_policy(policy), env.observation_space, env.action_space, task)
        parts = env.observation_space.spaces if isinstance(env.observation_space, spaces.Dict) else {"": env.observation_space}
        instruction = parts.get("instruction")
        assets = getattr(instruction, "assets", None) or getattr(getattr(env.unwrapped, "assets", None), "kind", None)
        _check_assets(policy, task, assets, bool(getattr(instruction, "assets_by_name", False)))
        limit = env.spec.max_episode_steps if env.spec is not None else None
        return {
            "assets": assets,
            "upright_image": "image" in parts and hasattr(instruction, "suite"),  # LIBERO's, upside down
            "has_image": any(isinstance(p, spaces.Box) and p.dtype == np.uint8 and len(p.shape) == 3 for p in parts.values()),
            "step_limit": limit if limit is not None else getattr(env.unwrapped, "_step_cap", None),
        }
    finally:
        env.close()


def _check_assets(policy: Policy, task: str, assets: str | None, by_name: bool) -> None:
    space = sb3_policy(policy).observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    trained = getattr(parts.get("instruction"), "assets", None)
    if assets is not None and trained not in (None, assets) and not by_name:
        raise ValueError(
            f"assets: the policy was made for {trained} assets, {task} would be played on {assets} ones. Ask for these by "
            f"name (assets={assets!r}) if that is meant, or pass assets={trained!r}."
        )


def _episode(played: PlayedEpisode) -> EvalEpisode:
    init_state_id, seed, repetition = played.request.key
    return EvalEpisode(
        played.request.task, init_state_id, seed, played.success, played.length, played.reward,
        played.max_stage, played.n_stages, played.progress, repetition,
    )  # fmt: skip


def _keep(played: PlayedEpisode, episode: EvalEpisode, place: RunFolder, videos: Videos) -> None:
    """Write an episode's video, then its line: what has its line needs not be played again."""
    if played.pictures and (videos != "failures" or not episode.success):
        from sb3_tgrpo.envs.demos.pictures import write_pictures

        write_pictures(played.pictures, place / "videos" / f"{episode.name}.mp4")
    JsonLines(place / "episodes.jsonl").append(asdict(episode))


def _upright(observation: dict[str, np.ndarray], info: dict[str, Any]) -> np.ndarray:
    return observation["image"][::-1].copy()


def _rendered(observation: Any, info: dict[str, Any]) -> np.ndarray:
    return info["picture"]
