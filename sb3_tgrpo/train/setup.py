"""What a configuration comes down to on this machine: start policy, environments, reward."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym

from sb3_tgrpo.train.config import Assets, TrainConfig

TINY_IMAGE_SIZE = 128

UPSTREAM_IMAGE_SIZE = 256

TINY_TRAINING_STEPS = {"libero_object": 150}
"""The default recipe's step limit by suite: its demonstrations take about 100 steps, and what is not done by 150 is stuck."""


@dataclass(frozen=True)
class Setup:
    """
    What a configuration comes down to on this machine.

    :param checkpoint: start policy.
    :param identity: of the checkpoint's content.
    :param assets: what to ask the environment for.
    :param assets_kind: what that is here, ``"full"`` or ``"light"``.
    :param image_size: pixels.
    :param reward_text: the reward, in words.
    :param reward: digest of the reward program, None for the sparse reward and the environment's own.
    :param lora: adapter, None to train all weights.
    :param training_steps: step limit of training episodes, None for the task's own; evaluations always have the task's own.
    """

    checkpoint: str
    identity: str
    assets: Assets
    assets_kind: str
    image_size: int
    reward_text: str
    reward: str | None
    lora: str | None
    training_steps: int | None


def resolve_setup(config: TrainConfig, checkpoint: str) -> Setup:
    """
    Choose assets, image size and reward.

    :raises ValueError: if the reward is unknown or the task has none.
    """
    from sb3_tgrpo.envs.libero.assets import resolve_assets
    from sb3_tgrpo.openvla.loading import checkpoint_identity, read_config
    from sb3_tgrpo.rewards.facts.task_facts import parse_task_id

    model, identity = read_config(checkpoint), checkpoint_identity(checkpoint)
    small = model.pipeline == "area"
    lora = config.start.lora if config.start.lora != "auto" else None if small else "language"
    steps = config.task.max_episode_steps
    check_task(config.task.env)
    check_eval_starts(config)
    if not is_libero(config):
        return Setup(checkpoint, identity, "auto", "none", 0, "the environment's own", None, lora, steps)
    if steps is None and small:
        steps = TINY_TRAINING_STEPS.get(parse_task_id(config.task.env)[0])
    ours = model.raw.get("sb3_tgrpo", {})
    trained_on: Assets | None = "light" if checkpoint == "tiny" else ours.get("assets")
    assets: Assets = config.task.assets or trained_on or "auto"
    recorded = ours.get("sft", {}).get("demonstrations", {}).get("image_size")
    default_size = recorded[0] if recorded else TINY_IMAGE_SIZE if small else UPSTREAM_IMAGE_SIZE
    program = reward_program(config)
    text = "sparse: 1 at success" if program is None else f"{program.task}, {program.n_stages} stages, paid {program.payment}"
    if steps is not None:
        text += f"; training episodes are cut at {steps} steps"
    size = config.task.image_size or default_size
    reward = getattr(program, "sha256", None)
    return Setup(checkpoint, identity, assets, resolve_assets(assets).kind, size, text, reward, lora, steps)


def check_eval_starts(config: TrainConfig) -> None:
    """
    :raises ValueError: if the task has fewer stored starts than are to be played.
    """
    from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts
    from sb3_tgrpo.rewards.facts.task_facts import parse_task_id

    if not is_libero(config):
        return
    count = len(stored_starts(get_task(*parse_task_id(config.task.env))))
    if config.evaluation.eval_starts > count:
        raise ValueError(f"eval_starts={config.evaluation.eval_starts}: {config.task.env} has {count} stored starts.")


def check_task(env: str) -> None:
    """
    :raises gymnasium.error.Error: if there is no such environment.
    """
    from sb3_tgrpo.envs.groups.vec_env import find_spec

    find_spec(env)


def untaught(env: str, checkpoint: str) -> str | None:
    """
    A warning where a start policy made by this package has not seen a task, None otherwise.

    :param env: Gymnasium id.
    :param checkpoint: start policy; the hub is not asked.
    :raises ValueError: if there is no such checkpoint.
    """
    from sb3_tgrpo.envs.libero.tasks import get_task
    from sb3_tgrpo.openvla.loading import is_hub_id, read_config
    from sb3_tgrpo.rewards.facts.task_facts import parse_task_id

    if is_hub_id(checkpoint):
        return None
    ours = read_config(checkpoint).raw.get("sb3_tgrpo", {})
    taught = ours.get("sft", {}).get("demonstrations", {}).get("instructions")
    if taught is None or not env.startswith("LIBERO/"):
        return None
    wanted = get_task(*parse_task_id(env)).instruction
    if wanted in taught:
        return None
    return (
        f"The start policy {checkpoint} was taught to {'; '.join(map(repr, taught))}, not to {wanted!r}: a policy that never "
        "succeeds has nothing to learn from. Pass a checkpoint that knows the task, or make one (train --from-scratch)."
    )


def is_libero(config: TrainConfig) -> bool:
    """Whether the task is one of LIBERO's; others have no assets, no shipped reward and no stored starts."""
    return config.task.env.startswith("LIBERO/")


def env_source(config: TrainConfig) -> Any:
    """The environment's id, or a function that makes it where the id names a module to import first (``module:Name-v0``)."""
    return partial(gym.make, config.task.env) if ":" in config.task.env else config.task.env


def reward_program(config: TrainConfig) -> Any:
    """The reward that the configuration names, None for the sparse one."""
    from sb3_tgrpo.rewards import RewardError, load_reward
    from sb3_tgrpo.rewards.facts.task_facts import parse_task_id

    if config.task.reward == "sparse":
        return None
    name = config.task.env if config.task.reward == "shipped" else config.task.reward
    try:
        if config.task.reward == "shipped":
            name = "{}-{}".format(*parse_task_id(config.task.env))
        return load_reward(name, payment=config.task.payment)
    except RewardError as error:
        raise ValueError(f"reward={config.task.reward!r}: {error}") from error


def training_starts(config: TrainConfig) -> str:
    """Where training episodes start, in words: a success rate on starts that were trained on says little about others."""
    if not is_libero(config):
        return "drawn by seed"
    return "drawn by LIBERO's sampler" if config.task.starts == "drawn" else "the stored starts that it is judged on"


def env_kwargs(config: TrainConfig, setup: Setup) -> dict[str, Any]:
    """Keyword arguments of ``gymnasium.make`` for training and evaluation alike."""
    if not is_libero(config):
        return {}
    kwargs: dict[str, Any] = {"assets": setup.assets, "image_size": setup.image_size}
    program = reward_program(config)
    if program is not None:
        kwargs["reward"] = program
    if config.task.start_noise:
        kwargs["start_noise"] = config.task.start_noise
    if config.task.joint_noise and config.task.starts == "drawn":
        kwargs["joint_noise"] = config.task.joint_noise  # of drawn starts alone: the evaluation's are stored ones
    return kwargs


def policy_kwargs(config: TrainConfig, setup: Setup) -> dict[str, Any]:
    """Keyword arguments of the policy."""
    kwargs: dict[str, Any] = {"checkpoint": setup.checkpoint, "lora": setup.lora, "value_head": False}
    kwargs |= {"quantization": config.start.quantization, "gradient_checkpointing": config.gradient_checkpointing}
    if config.device == "cpu":  # another device is not for good: what is trained on it can be loaded without it
        kwargs["device"] = "cpu"
    if setup.lora is None:
        kwargs["dtype"] = "float32"  # a GPU's default, bfloat16, would round small updates of the weights away
    return kwargs
