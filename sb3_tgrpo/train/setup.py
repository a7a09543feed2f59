"""
A configuration resolved: base policy, environments, reward and evaluation, each decided once.

Importing this module and :func:`check_request` need no torch, so that mistakes are reported at once.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import gymnasium as gym

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.openvla.checkpoint import Checkpoint
from sb3_tgrpo.train.config import Assets, TaskConfig, TrainConfig, shipped_base_policy

if TYPE_CHECKING:
    from sb3_tgrpo.evaluation.protocol import Protocol

TINY_TRAINING_STEPS = {"libero_object": 150}
"""The default recipe's step limit by suite: demonstrations take about 100 steps, an episode not done by 150 is stuck."""
EVAL_SEED_OFFSET = 1_000_000
"""Seed of the first initial state that a task without stored ones is evaluated on."""


@dataclass(frozen=True)
class Setup:
    """
    What a configuration comes down to on this machine.

    :param checkpoint: Base policy.
    :param assets: Kind of the assets: ``"full"``, ``"light"``, or ``"none"`` outside LIBERO.
    :param reward: Reward program; None for the sparse reward and an environment's own.
    :param reward_text: Reward in words.
    :param env_kwargs: Keyword arguments of the environments, for training and evaluation alike.
    :param policy_kwargs: Keyword arguments of the policy.
    :param training_steps: Step limit of training episodes; None for the task's own. Evaluations always have the task's own.
    """

    checkpoint: Checkpoint
    assets: str
    reward: Any
    reward_text: str
    env_kwargs: Mapping[str, Any]
    policy_kwargs: Mapping[str, Any]
    training_steps: int | None

    @property
    def image_size(self) -> int:
        """Pixels of LIBERO's images; 0 outside LIBERO."""
        return self.env_kwargs.get("image_size", 0)

    @property
    def highest_return(self) -> float | None:
        """Highest return that an episode can have; None where that is not known."""
        if self.reward is None:
            return None if self.assets == "none" else 1.0
        return None if self.reward.payment == "per_step" else self.reward.max_level + self.reward.success_points

    def record(self) -> dict[str, Any]:
        """Base policy, assets and reward that a folder's episodes belong to, for JSON."""
        return {"start": self.checkpoint.identity, "assets": self.assets, "reward": getattr(self.reward, "sha256", None)}


def check_request(config: TrainConfig) -> None:
    """
    Refuse what can't work: unknown tasks, a reward of another task, initial states that the task does not have, settings
    that only LIBERO's tasks have.

    :raises ValueError: Naming setting, value and remedy.
    :raises gymnasium.error.Error: If there is no such environment.
    """
    check_task(config.task.env)
    if not is_libero(config.task.env):
        default = TaskConfig()
        given = [
            name
            for name in ("assets", "image_size", "reward", "payment", "initial_states", "start_noise", "joint_noise")
            if getattr(config.task, name) not in (getattr(default, name), None)
        ]
        if given := [*given, *(["from_scratch"] if config.base_policy.from_scratch else [])]:
            names = ", ".join(given)
            raise ValueError(f"{names}: only LIBERO's tasks have them, and env={config.task.env!r} is none. Leave them out.")
    else:
        _check_libero_task(config)
    if config.base_policy.from_scratch:
        return
    checkpoint = Checkpoint(config.base_policy.checkpoint or shipped_base_policy(), download=False)
    if checkpoint.is_here:  # what is on the hub is checked when it has been downloaded
        _check_checkpoint(config, checkpoint)


def _check_libero_task(config: TrainConfig) -> None:
    from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts
    from sb3_tgrpo.rewards.facts.task_name import TaskName

    count = len(stored_starts(get_task(*TaskName.parse(config.task.env))))
    if config.evaluation.eval_initial_states > count:
        asked = config.evaluation.eval_initial_states
        raise ValueError(f"eval_initial_states={asked}: {config.task.env} has {count} stored initial states.")
    reward_program(config)


def _check_checkpoint(config: TrainConfig, checkpoint: Checkpoint) -> None:
    from sb3_tgrpo.envs.libero.assets import resolve_assets
    from sb3_tgrpo.rewards.facts.task_name import TaskName

    base = config.base_policy
    if checkpoint.statistics:  # tiny has none: the action space gives its ranges
        checkpoint.unnorm_key(base.unnorm_key, TaskName.parse(config.task.env).suite if is_libero(config.task.env) else None)
    if base.quantization is not None and _lora(config, checkpoint) is None:
        raise ValueError(f"quantization={base.quantization!r}: all weights of {checkpoint} are trained. Set lora='language'.")
    if is_libero(config.task.env):
        assets = _assets(config, checkpoint)
        checkpoint.check_assets(resolve_assets(assets).kind, assets != "auto")


def _lora(config: TrainConfig, checkpoint: Checkpoint) -> str | None:
    small = checkpoint.config.pipeline == "area"
    return config.base_policy.lora if config.base_policy.lora != "auto" else None if small else "language"


def _assets(config: TrainConfig, checkpoint: Checkpoint) -> Assets:
    return config.task.assets or checkpoint.default_assets


def check_seeds(seeds: Sequence[int]) -> None:
    """Refuse seeds of several runs that are fewer than two, equal or negative."""
    if len(set(seeds)) != len(seeds) or len(seeds) < 2 or min(seeds) < 0:
        raise ValueError(f"seeds={list(seeds)} must be two or more different seeds, none below 0.")


def check_n_groups(n_groups: int) -> None:
    """Refuse too few groups to measure the signal in."""
    if n_groups < 3:
        raise ValueError(f"n_groups={n_groups}: comparing gradients takes at least 3 groups.")


def check_task(env: str) -> None:
    """Refuse an id that Gymnasium does not have; of ``module:Id-v0`` the module is imported first."""
    module, _, name = env.rpartition(":")
    if module:
        import_module(module)
    gym.spec(name)


def is_libero(env: str) -> bool:
    """Whether a task is one of LIBERO's. Others have no assets, no shipped reward and no stored initial states."""
    return env.startswith("LIBERO/")


def env_source(config: TrainConfig) -> "str | Callable[..., gym.Env]":
    """The environment's id, or a function that makes it where the id names a module to import first (``module:Name-v0``)."""
    return partial(gym.make, config.task.env) if ":" in config.task.env else config.task.env


def reward_program(config: TrainConfig) -> Any:
    """The reward program that a configuration names, None for the sparse reward and outside LIBERO; refuses another task's."""
    from sb3_tgrpo.rewards import RewardError, load_reward
    from sb3_tgrpo.rewards.facts.task_name import TaskName

    if config.task.reward == "sparse" or not is_libero(config.task.env):
        return None
    task = str(TaskName.parse(config.task.env))
    try:
        program = load_reward(task if config.task.reward == "shipped" else config.task.reward, payment=config.task.payment)
    except RewardError as error:
        raise ValueError(f"reward={config.task.reward!r}: {error}") from error
    if program.task != task:
        raise ValueError(f"reward={config.task.reward!r} is for {program.task}, not for {task}: pass a reward of {task}.")
    return program


def resolve_setup(config: TrainConfig, checkpoint: Checkpoint) -> Setup:
    """Decide assets, image size, reward, adapter and step limit; refuses settings that do not fit the base policy."""
    from sb3_tgrpo.envs.libero.assets import resolve_assets
    from sb3_tgrpo.rewards.facts.task_name import TaskName

    _check_checkpoint(config, checkpoint)
    task, lora, steps = config.task, _lora(config, checkpoint), config.task.max_episode_steps
    policy: dict[str, Any] = {"checkpoint": str(checkpoint), "lora": lora, "value_head": False}
    policy |= {"quantization": config.base_policy.quantization, "gradient_checkpointing": config.gradient_checkpointing}
    if config.device == "cpu":  # another device is not for good: what is trained on it can be loaded without it
        policy["device"] = "cpu"
    if lora is None:
        policy["dtype"] = "float32"  # a GPU's default, bfloat16, would round small updates of the weights away
    if config.base_policy.unnorm_key is not None:
        policy["unnorm_key"] = config.base_policy.unnorm_key
    if not is_libero(task.env):
        return Setup(checkpoint, "none", None, "the environment's own", {}, policy, steps)
    if steps is None and checkpoint.config.pipeline == "area":
        steps = TINY_TRAINING_STEPS.get(TaskName.parse(task.env).suite)
    assets, program = _assets(config, checkpoint), reward_program(config)
    text = "sparse: 1 at success" if program is None else f"{program.task}, {program.n_stages} stages, {program.payment}"
    if steps is not None:
        text += f"; training episodes are cut at {steps} steps"
    kwargs: dict[str, Any] = checkpoint.env_kwargs(task.image_size, assets)
    if program is not None:
        kwargs["reward"] = program
    if task.start_noise:
        kwargs["start_noise"] = task.start_noise
    if task.joint_noise and task.initial_states == "drawn":
        kwargs["joint_noise"] = task.joint_noise  # of drawn initial states alone: the evaluation's are stored ones
    return Setup(checkpoint, resolve_assets(assets).kind, program, text, kwargs, policy, steps)


def evaluation_protocol(config: TrainConfig, setup: Setup, temperature: float) -> "Protocol":
    """The protocol of an evaluation."""
    from sb3_tgrpo.evaluation.protocol import Protocol

    kwargs = dict(setup.env_kwargs)
    noise = kwargs.pop("start_noise", 0.0)
    count = config.evaluation.eval_initial_states
    return Protocol(
        init_state_ids=tuple(range(count)),
        seeds=None if is_libero(config.task.env) else tuple(EVAL_SEED_OFFSET + k for k in range(count)),
        repetitions=config.evaluation.eval_episodes if temperature else 1,
        decoding=Decoding(temperature),
        # Greedy play of stored initial states is the same for all runs; what is drawn differs between runs of different seeds.
        seed=config.seed if temperature or noise else 0,
        start_noise=noise,
        env_kwargs=kwargs,
    )


def task_mismatch_warning(env: str, checkpoint: "str | os.PathLike[str] | Checkpoint") -> str | None:
    """A warning where a base policy made by this package has not seen a task, None otherwise. The hub is not asked."""
    from sb3_tgrpo.envs.libero.tasks import get_task
    from sb3_tgrpo.rewards.facts.task_name import TaskName

    checkpoint = Checkpoint(checkpoint)
    taught = None if checkpoint.is_hub_id else checkpoint.instructions
    if taught is None or not is_libero(env):
        return None
    wanted = get_task(*TaskName.parse(env)).instruction
    if wanted in taught:
        return None
    return (
        f"The base policy {checkpoint} was taught to {'; '.join(map(repr, taught))}, not to {wanted!r}: a policy that never "
        "succeeds has nothing to learn from. Pass a checkpoint that knows the task, or make one (train --from-scratch)."
    )


def describe_initial_states(config: TrainConfig) -> str:
    """Where training episodes begin, in words: a success rate on trained initial states is no measure for others."""
    if not is_libero(config.task.env):
        return "drawn by seed"
    stored = config.task.initial_states == "stored"
    return "the stored ones that it is judged on" if stored else "drawn by LIBERO's sampler"
