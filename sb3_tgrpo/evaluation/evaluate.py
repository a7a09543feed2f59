"""
Evaluation by LIBERO's protocol: every stored initial state, official step limits, greedy, each episode alone to its own end.

The same function evaluates drawn initial states, sampled policies and other environments. What was done is recorded with the
outcomes.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_tgrpo.evaluation.adapters import Policy, check_spaces, make_adapter, sb3_policy
from sb3_tgrpo.evaluation.identity import policy_name, policy_record
from sb3_tgrpo.evaluation.player import EpisodePlayer, PlayedEpisode, env_maker
from sb3_tgrpo.evaluation.protocol import EXECUTION, LIBERO_PROTOCOL, Execution, Protocol, Videos, plain
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation, read_episodes, task_name
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.openvla.conventions import Conventions
from sb3_tgrpo.run_folder import RunFolder, versions

Envs = str | Sequence[str] | Mapping[str, str | Callable[..., gym.Env]]


def evaluate_policy(
    policy: Policy,
    envs: Envs,
    protocol: Protocol = LIBERO_PROTOCOL,
    *,
    folder: str | os.PathLike[str] | None = None,
    name: str | None = None,
    execution: Execution = EXECUTION,
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
    :param protocol: What the outcomes depend on; LIBERO's protocol by default.
    :param folder: Folder of the evaluation, made if needed; None: nothing is kept.
    :param name: Name of the policy in the record; None: its checkpoint or class.
    :param execution: What the outcomes do not depend on.
    :return: The outcomes.
    :raises ValueError: On a policy made for other spaces or assets, or a folder of another policy or other settings.
    """
    named = _named(envs)
    tasks = list(named)
    settings = {
        "envs": {task: plain(env) for task, env in named.items()},
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
        picture=_picture if filmed else None,
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
        by_name = bool(getattr(instruction, "assets_by_name", False))
        own = sb3_policy(policy).observation_space
        trained_on = getattr(own.spaces.get("instruction"), "assets", None) if isinstance(own, spaces.Dict) else None
        Conventions(assets=trained_on).check_assets(assets, by_name, f"the policy that would play {task}")
        limit = env.spec.max_episode_steps if env.spec is not None else None
        return {
            "assets": assets,
            "upright_image": "image" in parts and hasattr(instruction, "suite"),  # LIBERO's, upside down
            "has_image": any(isinstance(p, spaces.Box) and p.dtype == np.uint8 and len(p.shape) == 3 for p in parts.values()),
            "step_limit": limit if limit is not None else getattr(env.unwrapped, "_step_cap", None),
        }
    finally:
        env.close()


def _episode(played: PlayedEpisode) -> EvalEpisode:
    init_state_id, seed, repetition = played.request.key
    return EvalEpisode(
        played.request.task, init_state_id, seed, played.success, played.length, played.reward,
        played.max_stage, played.n_stages, played.progress, repetition,
    )  # fmt: skip


def _keep(played: PlayedEpisode, episode: EvalEpisode, place: RunFolder, videos: Videos) -> None:
    """Write an episode's video, then its line: what has its line needs not be played again."""
    if not (place / "settings.json").is_file():
        raise OSError(f"{place.path} was removed while its evaluation ran: start the evaluation again.")
    if played.pictures and (videos != "failures" or not episode.success):
        from sb3_tgrpo.envs.demos.pictures import write_pictures

        write_pictures(played.pictures, place / "videos" / f"{episode.name}.mp4")
    JsonLines(place / "episodes.jsonl").append(asdict(episode))


def _picture(observation: Any, info: dict[str, Any]) -> np.ndarray:
    """What was rendered, or else LIBERO's image, which is upside down."""
    return info["picture"] if "picture" in info else observation["image"][::-1].copy()
