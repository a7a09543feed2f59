"""
Evaluation by LIBERO's protocol: every stored start, official step caps, greedy, each episode alone and to its own end.

The same function evaluates drawn starts, sampled policies and other environments; what was done is recorded with the outcomes.
"""

import hashlib
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_tgrpo.evaluation.adapters import PredictActor, TokenActor, check_spaces
from sb3_tgrpo.evaluation.comparison import PairedComparison, Rate, paired_comparison, wilson_interval
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation, suite_of, task_name, write_json
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.run_folder import versions

if TYPE_CHECKING:
    from sb3_tgrpo.envs.groups.worker import WorkerPool
    from sb3_tgrpo.evaluation.player import Actor, EpisodeRequest, PlayedEpisode
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

Policy = BaseAlgorithm | BasePolicy
EnvIds = str | Sequence[str] | Mapping[str, Callable[..., gym.Env]]
Record = Literal["failures", "all", "none"] | int
Progress = Callable[[EvalEpisode, int, int], None]

OFFICIAL_SEED = 0
"""What OpenVLA's evaluation seeds LIBERO with, whatever its own seed is: the placement of fixtures depends on it."""


def evaluate_policy(
    policy: Policy,
    env_ids: EnvIds,
    *,
    init_state_ids: Sequence[int] = range(50),
    seeds: Sequence[int] | None = None,
    episodes_per_start: int = 1,
    deterministic: bool = True,
    temperature: float | None = None,
    n_envs: int = 2,
    seed: int = 0,
    env_kwargs: Mapping[str, Any] | None = None,
    start_noise: float = 0.0,
    official_order: bool = False,
    video_folder: str | os.PathLike[str] | None = None,
    record: Record = "failures",
    progress: Progress | None = None,
    done: Sequence[EvalEpisode] = (),
    name: str | None = None,
    subprocess: bool | None = None,
    timeout: float | None = 60.0,
    batch_size: int | None = None,
    pool: "WorkerPool | None" = None,
) -> Evaluation:
    """
    Play a policy from given starts and record every episode.

    Outcomes do not depend on ``n_envs``, on the order in which environments answer, or on an interruption: forward passes have
    a fixed size, and each episode samples with a generator that follows from ``seed``, its task and its start.

    :param policy: An algorithm of Stable-Baselines3 (TGRPO, PPO, ...) or a policy such as
        :class:`~sb3_tgrpo.openvla.policy.OpenVLAPolicy`.
    :param env_ids: Gymnasium ids, or functions that make environments by task name. Each is un-grouped, with its own step cap.
    :param init_state_ids: Stored starts.
    :param seeds: Play drawn starts with these seeds instead of stored ones.
    :param episodes_per_start: More than one is for sampled actions: a greedy episode would come out the same.
    :param deterministic: The most likely action (greedy tokens) instead of a sampled one.
    :param temperature: Of sampling, by default the policy's own.
    :param n_envs: Environments at once.
    :param seed: Of sampling, and of the noise on stored starts.
    :param env_kwargs: Keyword arguments of the environments, such as ``assets`` or ``image_size``.
    :param start_noise: Metres by which starts are widened, stored ones too.
    :param official_order: Replay OpenVLA's evaluation loop: LIBERO is seeded with 0 once per task and reset before each
        stored start, so that in the k-th episode fixtures stand where the random numbers of k + 1 resets have put them.
    :param video_folder: Where videos go; None: no videos.
    :param record: Whose: ``"failures"``, ``"all"``, ``"none"``, or the number of episodes per task, the first ones.
    :param progress: Called after each episode with it, the number of episodes done, and of all.
    :param done: Episodes that need not be played again, from an interrupted evaluation of the same settings.
    :param name: Of the policy, for the record.
    :param subprocess: Each environment in a process of its own; None: where observations hold an image.
    :param timeout: Seconds to wait for a step or a reset of such a process.
    :param batch_size: Observations per forward pass of an ``OpenVLAPolicy``; None: 4 on CPU, 8 on CUDA.
    :param pool: Where such processes are taken from and kept for the next evaluation of the same environment; None: each
        evaluation starts its own.
    :return: The outcomes.
    :raises ValueError: On settings that do not fit together, or a policy made for other spaces or assets.
    """
    from sb3_tgrpo.evaluation.player import EpisodePlayer, env_maker

    envs = _named(env_ids)
    _check_arguments(
        init_state_ids, seeds, episodes_per_start, deterministic, temperature, start_noise, official_order, record
    )
    kwargs = dict(env_kwargs or {})
    if start_noise and seeds is not None:
        kwargs["start_noise"] = start_noise
    facts = {task: _env_facts(policy, task, env_maker(env, kwargs)) for task, env in envs.items()}
    first = next(iter(facts.values()))
    own_temperature = None if deterministic else temperature if temperature is not None else _temperature_of(policy)
    videos = video_folder is not None and record != "none" and record != 0
    render = videos and not first["upright_image"]
    makers = {
        task: env_maker(env, {**kwargs, "render_mode": "rgb_array"} if render else kwargs, render)
        for task, env in envs.items()
    }
    starts = [(None, s) for s in seeds] if seeds is not None else [(k, seed if start_noise else 0) for k in init_state_ids]
    keys = [(task, *start, repetition) for task in envs for start in starts for repetition in range(episodes_per_start)]
    requests = {key: _request(key, start_noise, official_order, number) for key, number in _numbered(keys, len(starts))}
    filmed = _filmed(keys, record) if videos else set()
    evaluation = Evaluation(
        policy=name or policy_name(policy),
        env_ids=[env if isinstance(env, str) else task for task, env in envs.items()],
        deterministic=deterministic,
        temperature=own_temperature,
        assets=first["assets"],
        protocol={
            "starts": "stored" if seeds is None else "drawn",
            "init_state_ids": list(init_state_ids) if seeds is None else None,
            "seeds": None if seeds is None else list(seeds),
            "episodes_per_start": episodes_per_start,
            "seed": seed,
            "start_noise": start_noise,
            "official_order": official_order,
            "step_caps": {task: fact["step_cap"] for task, fact in facts.items()},
            "env_kwargs": {key: value if _is_plain(value) else repr(value) for key, value in kwargs.items()},
            "policy_fingerprint": fingerprint(policy),
            "versions": versions(),
        },
    )
    finished = {episode.key: episode for episode in done if episode.key in requests}
    player = EpisodePlayer(
        makers,
        _actor(policy, deterministic, own_temperature, seed, batch_size),
        n_envs=n_envs,
        subprocess=bool(first["has_image"]) if subprocess is None else subprocess,
        timeout=timeout,
        pool=pool,
        picture=(_rendered if render else _upright) if videos else None,
        wants_pictures=lambda request: (request.task, *request.key) in filmed,
    )
    _policy_of(policy).set_training_mode(False)
    for played in player.play([request for key, request in requests.items() if key not in finished]):
        episode = _episode(played)
        if played.pictures and (record != "failures" or not episode.success):
            _write_video(played, episode, cast(str, video_folder))
        finished[episode.key] = episode
        if progress is not None:
            progress(episode, len(finished), len(requests))
    evaluation.episodes = [finished[key] for key in requests]
    return evaluation


def resumable_evaluation(folder: str | os.PathLike[str], policy: Policy, env_ids: EnvIds, **settings: Any) -> Evaluation:
    """
    :func:`evaluate_policy` with a folder: ``episodes.jsonl`` grows by a line per episode, ``evaluation.json`` appears at the
    end, ``videos/`` holds the videos. After an interruption of any kind the same call goes on, with the same result.

    :param folder: Created if needed.
    :param policy: As for :func:`evaluate_policy`.
    :param env_ids: Likewise.
    :param settings: Other arguments of :func:`evaluate_policy` except ``done``.
    :raises ValueError: If the folder is of another policy or other settings; the differences are named.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    given = _resume_settings(policy, env_ids, settings)
    file = folder / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text(encoding="utf-8"))
        # Older folders say nothing of a policy but its weights.
        differing = [
            key
            for key in {**before, **given}
            if before.get(key) != given.get(key) and (key in before or not key.startswith("policy."))
        ]
        changed = [f"{key}: {before.get(key)} then, {given.get(key)} now" for key in differing]
        if changed:
            raise ValueError(f"{folder} holds another evaluation ({'; '.join(changed)}). Choose another folder.")
    else:
        write_json(file, given)
    if (folder / "evaluation.json").is_file():
        return Evaluation.load(folder / "evaluation.json")
    lines = JsonLines(folder / "episodes.jsonl")
    rows = lines.read()
    lines.rewrite(rows)  # without one that an interruption has cut short
    done = [EvalEpisode(**row) for row in rows]
    report: Progress | None = settings.pop("progress", None)

    def note(episode: EvalEpisode, n_done: int, n_all: int) -> None:
        lines.append(asdict(episode))
        if report is not None:
            report(episode, n_done, n_all)

    settings.setdefault("video_folder", folder / "videos")
    evaluation = evaluate_policy(policy, env_ids, progress=note, done=done, **settings)
    evaluation.save(folder / "evaluation.json")
    return evaluation


def _resume_settings(policy: Policy, env_ids: EnvIds, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a folder's outcomes depend on, as JSON holds it."""
    from sb3_tgrpo.envs.libero.assets import resolve_assets

    irrelevant = ("progress", "n_envs", "timeout", "subprocess", "video_folder", "record", "pool")
    kept = {key: value for key, value in settings.items() if key not in irrelevant}
    env_kwargs = dict(settings.get("env_kwargs") or {})
    if any(task.startswith("libero_") for task in _named(env_ids)) and env_kwargs.get("assets", "auto") == "auto":
        env_kwargs["assets"] = resolve_assets("auto").kind  # full ones may turn up before it goes on
    given = {"env_ids": list(_named(env_ids)), "policy_fingerprint": fingerprint(policy), **kept, "env_kwargs": env_kwargs}
    given |= {f"policy.{name}": value for name, value in _beside_weights(policy).items()}
    if not settings.get("deterministic", True) and settings.get("temperature") is None:
        given["policy.temperature"] = _temperature_of(policy)
    return json.loads(json.dumps(given, default=lambda value: list(value) if isinstance(value, range) else repr(value)))


# ---------------------------------------------------------------------- names and facts


def policy_name(policy: Policy) -> str:
    """The checkpoint with the adapter merged into it, or the class."""
    inner = _policy_of(policy)
    checkpoint = getattr(inner, "checkpoint", None)
    own = type(policy).__name__
    if (start := getattr(inner, "start_adapter", None)) is not None:
        checkpoint = f"{checkpoint} + {start.name}"
    return own if checkpoint is None else str(checkpoint) if policy is inner else f"{own} on {checkpoint}"


def fingerprint(policy: Policy) -> str:
    """
    Tells policies apart by the ends of every parameter; reading 15 GB whole would take a minute. Of a new adapter, whose one
    factor is random and whose other is zero, the random one does not count: it changes nothing.
    """
    digest = hashlib.blake2b(digest_size=8)
    tensors = _policy_of(policy).state_dict()
    for name, tensor in tensors.items():
        factor = _OTHER_FACTOR.sub(lambda found: found[1] + {"A": "B", "B": "A"}[found[2]], name)
        if factor != name and factor in tensors and not tensors[factor].any():
            continue
        flat = tensor.detach().flatten()
        ends = th.cat([flat[:32], flat[-32:]]).to("cpu", th.float64)
        digest.update(name.encode() + ends.numpy().tobytes())
    return digest.hexdigest()


_OTHER_FACTOR = re.compile(r"(\blora_(?:embedding_)?)([AB])\b")


def _beside_weights(policy: Policy) -> dict[str, Any]:
    """What a policy's actions depend on besides its parameters."""
    inner = _policy_of(policy)
    found: dict[str, Any] = {}
    if hasattr(inner, "choose_tokens"):
        vla = cast("OpenVLAPolicy", inner)
        statistics = json.dumps(vla.model.norm_stats[vla.unnorm_key], sort_keys=True, default=lambda value: value.tolist())
        found = {
            "unnorm_key": vla.unnorm_key,
            "statistics": hashlib.blake2b(statistics.encode(), digest_size=8).hexdigest(),
            "gripper": vla.gripper,
            "instruction": vla.instruction,
            "dtype": str(vla.model.dtype),
            "quantization": vla.quantization,
        }
    normaliser = policy.get_vec_normalize_env() if isinstance(policy, BaseAlgorithm) else None
    if normaliser is not None:
        moments = pickle.dumps((normaliser.obs_rms if normaliser.norm_obs else None, normaliser.clip_obs, normaliser.epsilon))
        found["normaliser"] = hashlib.blake2b(moments, digest_size=8).hexdigest()
    return found


def _policy_of(policy: Policy) -> BasePolicy:
    return policy.policy if isinstance(policy, BaseAlgorithm) else policy


def _named(env_ids: EnvIds) -> dict[str, str | Callable[..., gym.Env]]:
    if isinstance(env_ids, Mapping):
        named: dict[str, Any] = dict(env_ids)
    else:
        named = {task_name(env_id): env_id for env_id in ([env_ids] if isinstance(env_ids, str) else env_ids)}
    if not named:
        raise ValueError("env_ids is empty: name at least one environment.")
    return named


def _env_facts(policy: Policy, task: str, make: Callable[[], gym.Env]) -> dict[str, Any]:
    env = make()
    try:
        check_spaces(_policy_of(policy), env.observation_space, env.action_space, task)
        parts = env.observation_space.spaces if isinstance(env.observation_space, spaces.Dict) else {"": env.observation_space}
        instruction = parts.get("instruction")
        assets = getattr(instruction, "assets", None) or getattr(getattr(env.unwrapped, "assets", None), "kind", None)
        _check_assets(policy, task, assets, bool(getattr(instruction, "assets_by_name", False)))
        cap = env.spec.max_episode_steps if env.spec is not None else None
        return {
            "assets": assets,
            "upright_image": "image" in parts and hasattr(instruction, "suite"),  # LIBERO's, upside down
            "has_image": any(isinstance(p, spaces.Box) and p.dtype == np.uint8 and len(p.shape) == 3 for p in parts.values()),
            "step_cap": cap if cap is not None else getattr(env.unwrapped, "_step_cap", None),
        }
    finally:
        env.close()


def _check_assets(policy: Policy, task: str, assets: str | None, by_name: bool) -> None:
    space = _policy_of(policy).observation_space
    parts = space.spaces if isinstance(space, spaces.Dict) else {}
    trained = getattr(parts.get("instruction"), "assets", None)
    if assets is not None and trained not in (None, assets) and not by_name:
        raise ValueError(
            f"The policy was made for {trained} assets, {task} would be played on {assets} ones. Ask for these by name "
            f"(assets={assets!r}) if that is meant, or pass assets={trained!r}."
        )


def _temperature_of(policy: Policy) -> float | None:
    temperature = getattr(policy, "temperature", None)
    return temperature if temperature is not None else getattr(_policy_of(policy), "temperature", None)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


# ---------------------------------------------------------------------- episodes


def _check_arguments(
    init_state_ids: Sequence[int],
    seeds: Sequence[int] | None,
    episodes_per_start: int,
    deterministic: bool,
    temperature: float | None,
    start_noise: float,
    official_order: bool,
    record: Record,
) -> None:
    starts = init_state_ids if seeds is None else seeds
    if not len(starts) or len(set(starts)) < len(starts):
        raise ValueError(f"{'init_state_ids' if seeds is None else 'seeds'} must be different starts, got {list(starts)}.")
    if episodes_per_start < 1:
        raise ValueError(f"episodes_per_start must be at least 1, got {episodes_per_start}.")
    if deterministic and temperature is not None:
        raise ValueError(f"temperature={temperature} is for sampled actions: pass deterministic=False.")
    if deterministic and episodes_per_start > 1:
        raise ValueError(
            f"episodes_per_start={episodes_per_start} would count one greedy episode several times: leave it at 1, or pass "
            "deterministic=False."
        )
    if temperature is not None and not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}; deterministic=True is greedy.")
    if not 0 <= start_noise < 1:
        raise ValueError(f"start_noise must be a distance in metres, from 0 up to 1, got {start_noise}.")
    if official_order and (seeds is not None or episodes_per_start > 1 or list(starts) != list(range(len(starts)))):
        raise ValueError(
            "official_order replays the stored starts 0, 1, 2, ... once each: leave the other settings of starts."
        )
    if isinstance(record, str) and record not in ("failures", "all", "none"):
        raise ValueError(f"record must be 'failures', 'all', 'none' or a number of episodes, got {record!r}.")


def _numbered(keys: list[tuple[Any, ...]], n_starts: int) -> list[tuple[tuple[Any, ...], int]]:
    return [(key, number % n_starts) for number, key in enumerate(keys)]


def _request(key: tuple[Any, ...], start_noise: float, official_order: bool, number: int) -> "EpisodeRequest":
    from sb3_tgrpo.evaluation.player import EpisodeRequest

    task, init_state_id, seed, _ = key
    if init_state_id is None:
        return EpisodeRequest(task, seed, None, key[1:])
    options: dict[str, Any] = {"init_state_id": init_state_id}
    if start_noise:
        options |= {"start_noise": start_noise, "noise_seed": seed}
    if official_order:
        options["earlier_resets"] = number
    return EpisodeRequest(task, OFFICIAL_SEED, options, key[1:])


def _episode(played: "PlayedEpisode") -> EvalEpisode:
    init_state_id, seed, repetition = played.request.key
    return EvalEpisode(
        played.request.task, init_state_id, seed, played.success, played.length, played.reward,
        played.max_stage, played.n_stages, played.progress, repetition,
    )  # fmt: skip


def _actor(policy: Policy, deterministic: bool, temperature: float | None, seed: int, batch_size: int | None) -> "Actor":
    inner = _policy_of(policy)
    if hasattr(inner, "choose_tokens"):
        return TokenActor(cast("OpenVLAPolicy", inner), 0.0 if deterministic else temperature or 1.0, seed, batch_size)
    if temperature is not None and temperature != getattr(inner, "temperature", 1.0):
        raise ValueError(f"temperature={temperature} can't be changed for {type(inner).__name__}: leave it out.")
    return PredictActor(policy, deterministic, seed)


# ---------------------------------------------------------------------- videos


def video_name(episode: EvalEpisode) -> str:
    """File name of an episode's video."""
    start = f"start{episode.init_state_id:02d}" if episode.init_state_id is not None else f"seed{episode.seed}"
    repetition = f"-{episode.repetition}" if episode.repetition else ""
    return f"{episode.task.replace('/', '_')}-{start}{repetition}-{'success' if episode.success else 'failure'}.mp4"


def _filmed(keys: Sequence[tuple[Any, ...]], record: Record) -> set[tuple[Any, ...]]:
    if isinstance(record, str):
        return set(keys)
    by_task: dict[str, list[tuple[Any, ...]]] = {}
    for key in keys:
        by_task.setdefault(key[0], []).append(key)
    return {key for mine in by_task.values() for key in mine[:record]}


def _upright(observation: dict[str, np.ndarray], info: dict[str, Any]) -> np.ndarray:
    return observation["image"][::-1].copy()


def _rendered(observation: Any, info: dict[str, Any]) -> np.ndarray:
    return info["picture"]


def _write_video(played: "PlayedEpisode", episode: EvalEpisode, folder: str | os.PathLike[str]) -> None:
    from sb3_tgrpo.envs.demos.pictures import write_pictures

    write_pictures(played.pictures, Path(folder) / video_name(episode))


__all__ = [
    "EvalEpisode",
    "Evaluation",
    "PairedComparison",
    "Rate",
    "evaluate_policy",
    "paired_comparison",
    "resumable_evaluation",
    "suite_of",
    "task_name",
    "wilson_interval",
]
