"""Training, or going on with it after an interruption."""

import hashlib
import os
import shutil
from contextlib import nullcontext
from typing import Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from sb3_tgrpo.baselines.ungrouped import GROUPED, REFERENCES, algorithm_class
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.run_folder import RunFolder, cpu_count
from sb3_tgrpo.train.callbacks import MetricsCallback, ResumeCallback, ThreadsCallback, TimedVecEnv, save_atomically
from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.model import make_model, make_policy, make_training_env, tensorboard_folder
from sb3_tgrpo.train.setup import Setup
from sb3_tgrpo.train.view import RunView

METRICS_FILE = "metrics.jsonl"

MODEL_FILE = "model.zip"

RESUME_FILE = "resume.zip"

MOST_THREADS = 4
"""Of updates by default: the tiny policy's layers are too small for more to share."""


def train(config: TrainConfig, setup: Setup, folder: RunFolder, view: RunView) -> BasePolicy:
    """
    Train, or go on from the last saved update.

    :return: the last policy.
    """
    from sb3_tgrpo.tgrpo import TGRPO

    algo = config.algorithm.algo
    if algo == "sft":
        return _leave_as_it_is(config, setup, folder)
    title, kind = algo.upper(), algorithm_class(algo)
    total = config.algorithm.total_timesteps
    finished = folder / MODEL_FILE
    if finished.is_file():
        model = kind.load(finished, device=config.device)
        view.rows = JsonLines(folder / METRICS_FILE).read()
        view.skip_stage(title, f"{model.num_timesteps:,} steps")
        return model.policy
    resume = folder / RESUME_FILE
    view.begin_stage(title, total, "steps")
    env: VecEnv = TimedVecEnv(make_training_env(config, setup))
    if algo not in REFERENCES:  # SB3 would turn every image round, only for the policy to turn it back
        env = VecTransposeImage(env, skip=True)
    try:
        if resume.is_file():
            model = kind.load(resume, env=env, device=config.device, tensorboard_log=tensorboard_folder(folder))
            if algo not in GROUPED:  # these do not save their random state, and start their episodes anew
                sequence = np.random.SeedSequence([config.seed, model.num_timesteps])
                model.set_random_seed(int(sequence.generate_state(1)[0] >> 1))
            view.rows = [row for row in JsonLines(folder / METRICS_FILE).read() if row["timesteps"] <= model.num_timesteps]
            view.begin_stage(title, total, "steps", done=model.num_timesteps)
        else:
            shutil.rmtree(folder / "tensorboard", ignore_errors=True)
            model = make_model(config, setup, folder, env)

        def sampling(timesteps: int, groups: int) -> None:
            view.sampling(timesteps, groups, config.algorithm.groups_per_update if algo in GROUPED else None)

        if isinstance(model, TGRPO):
            model.saves_on_interrupt = False  # resume.zip does better
        metrics = MetricsCallback(folder / METRICS_FILE, view.update, sampling)
        threads = ThreadsCallback(config.threads, config.update_threads or min(cpu_count(), MOST_THREADS))
        callbacks: list[BaseCallback] = [threads, metrics, ResumeCallback(resume, config.save_every)]
        left = total - model.num_timesteps
        with follow_on_wandb(config, folder):
            if left > 0:
                model.learn(left, CallbackList(callbacks), reset_num_timesteps=False, tb_log_name=title)
        _export(model, folder)
        save_atomically(model, finished)
        resume.unlink(missing_ok=True)
        view.end_stage(f"{model.num_timesteps:,} steps, {len(metrics.rows)} updates")
        return model.policy
    finally:
        env.close()


def _leave_as_it_is(config: TrainConfig, setup: Setup, folder: RunFolder) -> BasePolicy:
    """No training: what was found of the start policy before also holds after."""
    for place in (folder / "evaluations").glob("before_*"):
        after = place.with_name(place.name.replace("before_", "after_"))
        if not after.exists():
            unfinished = place.with_name(f".{after.name}.partial")
            shutil.rmtree(unfinished, ignore_errors=True)
            os.replace(shutil.copytree(place, unfinished), after)
    return make_policy(config, setup)


def _export(model: OnPolicyAlgorithm, folder: RunFolder) -> None:
    """The adapter as a PEFT folder, or the trained weights as a checkpoint; references have neither."""
    policy: Any = model.policy
    if not hasattr(policy, "export_merged"):
        return
    if policy.lora is not None:
        policy.export_adapter(folder / "adapter")
    else:
        policy.export_merged(folder / "checkpoint", dtype="float32")


def check_extras(config: TrainConfig) -> None:
    """
    :raises ImportError: if something is asked for that is not installed, before any work is done.
    """
    if config.algorithm.algo != "sft":
        algorithm_class(config.algorithm.algo)
    if config.wandb is not None:
        try:
            import wandb  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
        except ImportError as error:
            raise ImportError("--wandb needs wandb: pip install wandb") from error


def follow_on_wandb(config: TrainConfig, folder: RunFolder) -> Any:
    """A run on Weights & Biases that follows TensorBoard's, if asked for."""
    if config.wandb is None:
        return nullcontext()
    import wandb

    # The same id at every call, so that a resumed run goes on in the same place; another folder or beginning is another run.
    name = f"{folder.path.resolve().name}-{config.seed}"
    beginning = f"{folder.path.resolve()} {(folder.read('run.json') or {}).get('started')}"
    return wandb.init(
        project=config.wandb,
        name=name,
        id=f"{name}-{hashlib.sha256(beginning.encode()).hexdigest()[:8]}",
        resume="allow",
        dir=os.fspath(folder.path),
        config=config.to_dict(),
        sync_tensorboard=True,
    )
