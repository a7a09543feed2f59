"""Training environments, the start policy and the algorithm at its start."""

import dataclasses
import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv

from sb3_tgrpo.baselines.ungrouped import (
    GROUPED,
    SceneExtractor,
    algorithm_class,
    even_batch_size,
    make_ungrouped_env,
    rollout_steps,
)
from sb3_tgrpo.run_folder import RunFolder, cpu_count
from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.setup import Setup, env_kwargs, env_source, policy_kwargs

if TYPE_CHECKING:
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy
    from sb3_tgrpo.tgrpo import TGRPO


def make_training_env(config: TrainConfig, setup: Setup) -> VecEnv:
    """The groups to train on, or as many environments that each go their own way for methods without groups."""
    from sb3_tgrpo.envs import make_group_env

    kwargs = env_kwargs(config, setup)
    if setup.training_steps is not None:
        kwargs["max_episode_steps"] = setup.training_steps
    options = None
    if config.task.starts == "stored":
        count = config.evaluation.eval_starts

        def options(rng: Any) -> dict[str, Any]:
            return {"init_state_id": int(rng.integers(count))}

    if config.algorithm.algo not in GROUPED:
        source = env_source(config)
        make = partial(gym.make, source, **kwargs) if isinstance(source, str) else partial(source, **kwargs)
        return make_ungrouped_env(make, config.baseline.n_envs, options)
    return make_group_env(
        env_source(config),
        config.algorithm.group_size,
        config.algorithm.parallel_groups,
        stop_on=config.algorithm.stop_on,
        env_kwargs=kwargs,
        subprocess=True,
        start_options=options,
        alternate=True,
        processes=2 * cpu_count(),
    )


def make_policy(config: TrainConfig, setup: Setup) -> "OpenVLAPolicy":
    """The start policy alone."""
    import sb3_tgrpo  # noqa: F401  # registers the ids
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

    env = gym.make(config.task.env, **env_kwargs(config, setup))
    spaces = env.observation_space, env.action_space
    env.close()
    policy = OpenVLAPolicy(*spaces, FloatSchedule(0.0), **{**policy_kwargs(config, setup), "device": config.device})
    policy.set_training_mode(False)
    return policy


def make_model(config: TrainConfig, setup: Setup, folder: RunFolder, env: Any) -> OnPolicyAlgorithm:
    """The algorithm at its start."""
    from sb3_tgrpo.tgrpo import TGRPO

    if config.algorithm.algo != "tgrpo":
        return make_baseline(config, env, policy_kwargs(config, setup), tensorboard_folder(folder))
    algorithm = dataclasses.asdict(config.algorithm)
    for name in ("algo", "total_timesteps", "group_size", "parallel_groups", "stop_on"):  # of the environment and of learn()
        del algorithm[name]
    algorithm["gamma"] = algorithm.pop("gamma_traj")  # PPO's is a setting of its own
    return TGRPO(
        "OpenVLAPolicy",
        env,
        **algorithm,
        policy_kwargs=policy_kwargs(config, setup),
        tensorboard_log=tensorboard_folder(folder),
        seed=config.seed,
        device=config.device,
    )


def make_baseline(
    config: TrainConfig, env: VecEnv, vla: dict[str, Any], tensorboard_log: str | None
) -> "OnPolicyAlgorithm | TGRPO":
    """
    The algorithm at its start, with the settings that it shares with TGRPO and its own ones.

    :param config: the run.
    :param env: groups for ``dpo`` and ``tpo``, else environments of :func:`make_ungrouped_env`.
    :param vla: keyword arguments of the OpenVLA policy.
    :param tensorboard_log: folder of the TensorBoard log.
    """
    shared, own = config.algorithm, config.baseline
    common: dict[str, Any] = {"tensorboard_log": tensorboard_log, "seed": config.seed, "device": config.device}
    kind: Any = algorithm_class(shared.algo)
    if shared.algo in ("dpo", "tpo"):
        taken = ("learning_rate", "groups_per_update", "batch_size", "n_epochs", "micro_batch_size", "max_grad_norm")
        settings = {name: value for name, value in dataclasses.asdict(shared).items() if name in taken}
        settings |= {"temperature": shared.temperature, "target_kl": shared.target_kl, "beta": own.beta}
        return kind("OpenVLAPolicy", env, **settings, policy_kwargs=vla, **common)
    n_steps = rollout_steps(shared.total_timesteps, env.num_envs, own.n_steps)
    rollout: dict[str, Any] = {"n_steps": n_steps, "gamma": own.gamma, "gae_lambda": own.gae_lambda}
    rollout["batch_size"] = even_batch_size(n_steps * env.num_envs, own.minibatch_size)
    update: dict[str, Any] = {"n_epochs": shared.n_epochs, "clip_range": shared.clip_range, "target_kl": shared.target_kl}
    update |= {"max_grad_norm": shared.max_grad_norm, "vf_coef": own.vf_coef, "ent_coef": own.ent_coef}
    if shared.algo == "ppo":
        from sb3_tgrpo.openvla.policy import OpenVLAPolicy

        policy = {**vla, "value_head": True, "temperature": shared.temperature}
        return PPO(
            OpenVLAPolicy,  # type: ignore[arg-type]
            env, learning_rate=shared.learning_rate, **rollout, **update, policy_kwargs=policy, **common,
        )  # fmt: skip
    # From nothing, a learning rate for fine-tuning leads nowhere: these keep the ones that their authors chose.
    policy = {"features_extractor_class": SceneExtractor}
    if shared.algo == "trpo":
        return kind("MultiInputPolicy", env, **rollout, policy_kwargs=policy, **common)
    return kind("MultiInputLstmPolicy", env, **rollout, policy_kwargs=policy, **common)


def tensorboard_folder(folder: RunFolder) -> str | None:
    return str(folder / "tensorboard") if importlib.util.find_spec("tensorboard") is not None else None
