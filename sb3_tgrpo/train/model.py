"""Training environments, the base policy, and the algorithm at its beginning."""

import importlib.util
from functools import partial
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
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
from sb3_tgrpo.train.setup import Setup, env_source

if TYPE_CHECKING:
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

_PREFERENCES = ("learning_rate", "groups_per_update", "batch_size", "n_epochs", "micro_batch_size", "max_grad_norm",
                "temperature", "target_kl")  # fmt: skip
_TGRPO = (*_PREFERENCES, "alpha_step", "alpha_traj", "compare_ended", "outcome_reward", "kl_coef", "clip_range")


def make_training_env(config: TrainConfig, setup: Setup) -> VecEnv:
    """The groups to train on, or as many environments that each go their own way for methods without groups."""
    from sb3_tgrpo.envs import make_group_env

    kwargs = dict(setup.env_kwargs)
    if setup.training_steps is not None:
        kwargs["max_episode_steps"] = setup.training_steps
    count = config.evaluation.eval_initial_states

    def stored(rng: np.random.Generator) -> dict[str, Any]:
        return {"init_state_id": int(rng.integers(count))}

    options = stored if config.task.initial_states == "stored" else None
    source = env_source(config)
    if config.algorithm.algo not in GROUPED:
        make = partial(gym.make, source, **kwargs) if isinstance(source, str) else partial(source, **kwargs)
        return make_ungrouped_env(make, config.baseline.n_envs, options)
    return make_group_env(
        source,
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
    """The base policy alone."""
    import sb3_tgrpo  # noqa: F401  # registers the ids
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

    env = gym.make(config.task.env, **setup.env_kwargs)
    env.close()
    policy = OpenVLAPolicy.for_env(env, **{**setup.policy_kwargs, "device": config.device})
    policy.set_training_mode(False)
    return policy


def make_model(config: TrainConfig, setup: Setup, folder: RunFolder, env: VecEnv) -> OnPolicyAlgorithm:
    """The algorithm at its beginning, with the environments of :func:`make_training_env`; the folder has its log."""
    shared, own = config.algorithm, config.baseline
    common: dict[str, Any] = {"tensorboard_log": tensorboard_folder(folder), "seed": config.seed, "device": config.device}
    kind: Any = algorithm_class(shared.algo)
    vla = dict(setup.policy_kwargs)
    if shared.algo in GROUPED:
        settings = {name: getattr(shared, name) for name in (_TGRPO if shared.algo == "tgrpo" else _PREFERENCES)}
        settings |= {"gamma": shared.gamma_traj} if shared.algo == "tgrpo" else {"beta": own.beta}
        return kind("OpenVLAPolicy", env, **settings, policy_kwargs=vla, **common)
    n_steps = rollout_steps(shared.total_timesteps, env.num_envs, own.n_steps)
    rollout: dict[str, Any] = {"n_steps": n_steps, "gamma": own.gamma, "gae_lambda": own.gae_lambda}
    rollout["batch_size"] = even_batch_size(n_steps * env.num_envs, own.minibatch_size)
    if shared.algo == "ppo":
        from sb3_tgrpo.openvla.policy import OpenVLAPolicy

        update = {name: getattr(shared, name) for name in ("learning_rate", "n_epochs", "clip_range", "target_kl")}
        update |= {"max_grad_norm": shared.max_grad_norm, "vf_coef": own.vf_coef, "ent_coef": own.ent_coef}
        policy = {**vla, "value_head": True, "temperature": shared.temperature}
        return kind(OpenVLAPolicy, env, **rollout, **update, policy_kwargs=policy, **common)
    # From nothing, a learning rate for fine-tuning leads nowhere: these keep the ones that their authors chose.
    policy = {"features_extractor_class": SceneExtractor}
    name = "MultiInputPolicy" if shared.algo == "trpo" else "MultiInputLstmPolicy"
    return kind(name, env, **rollout, policy_kwargs=policy, **common)


def tensorboard_folder(folder: RunFolder) -> str | None:
    """Where a run's TensorBoard log goes; None without TensorBoard."""
    return str(folder / "tensorboard") if importlib.util.find_spec("tensorboard") is not None else None
