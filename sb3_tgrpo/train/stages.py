"""The parts of a run: start policy, environments, evaluation, training. Each can be interrupted and goes on where it was."""

import dataclasses
import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import VecEnv, VecTransposeImage

from sb3_tgrpo.baselines.ungrouped import GROUPED, REFERENCES, algorithm_class, make_baseline, make_ungrouped_env
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.run_folder import RunFolder, cpu_count
from sb3_tgrpo.train.callbacks import MetricsCallback, ResumeCallback, ThreadsCallback, TimedVecEnv, save_atomically
from sb3_tgrpo.train.config import Assets, TrainConfig, difference, shipped_start
from sb3_tgrpo.train.view import RunView

if TYPE_CHECKING:
    from sb3_tgrpo.envs.groups.worker import WorkerPool
    from sb3_tgrpo.evaluation.protocol import Evaluation
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

TINY_IMAGE_SIZE = 128
UPSTREAM_IMAGE_SIZE = 256
FIRST_SEED = 1_000_000
"""Of the starts that a task without stored ones is evaluated on."""
METRICS_FILE = "metrics.jsonl"
MODEL_FILE = "model.zip"
TINY_TRAINING_STEPS = {"libero_object": 150}
"""The default recipe's step limit by suite: its demonstrations take about 100 steps, and what is not done by 150 is stuck."""
RESUME_FILE = "resume.zip"
MOST_THREADS = 4
"""Of updates by default: the tiny policy's layers are too small for more to share."""


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


# ---------------------------------------------------------------------- the start


def start_checkpoint(config: TrainConfig, folder: RunFolder, view: RunView) -> str:
    """
    The start policy's checkpoint; under ``from_scratch`` it is made first, in the folder.

    :param config: the run.
    :param folder: where a start policy is made.
    :param view: told of progress.
    """
    if config.start.checkpoint is not None:
        return config.start.checkpoint
    if not config.start.from_scratch:
        return str(shipped_start())
    task = ("env", "start_noise", "joint_noise", "assets", "image_size")
    recipe = {**dataclasses.asdict(config.start), **{name: getattr(config.task, name) for name in task}}
    earlier = folder.read("start/recipe.json")
    if earlier is None:
        folder.write("start/recipe.json", recipe)
    elif changed := difference(earlier, recipe):
        raise ValueError(f"{folder / 'start'} holds a start policy of other settings ({'; '.join(changed)}): delete it.")
    demos = _collect(config, folder, view)
    return str(_fine_tune(config, folder, demos, view))


def _collect(config: TrainConfig, folder: RunFolder, view: RunView) -> Path:
    from sb3_tgrpo.envs.demos.collection import CollectionError, CollectionSettings, collect_demos
    from sb3_tgrpo.rewards.facts.task_facts import parse_task_id

    suite, index = parse_task_id(config.task.env)
    file = folder / "start" / "demos.hdf5"
    wanted = config.start.demos
    if file.is_file():
        view.skip_stage("demonstrations", f"{wanted} of {suite}-{index}")
        return file
    settings = CollectionSettings(
        task=f"{suite}-{index}",
        episodes=wanted,
        seed=config.start.start_seed,
        expert=config.start.expert,
        dart=config.start.dart,
        pushes=config.start.pushes,
        slips=config.start.slips,
        detour=config.start.detour,
        start_noise=config.task.start_noise,
        joint_noise=config.task.joint_noise,
        assets=config.task.assets or "light",
        image_size=config.task.image_size or TINY_IMAGE_SIZE,
    )
    view.begin_stage("demonstrations", wanted, "demonstrations")

    def progress(outcomes: dict[int, dict[str, Any]]) -> None:
        successes = sum(outcome["success"] for outcome in outcomes.values())
        view.advance(min(successes, wanted), f"{len(outcomes) - successes} failed")

    try:
        collect_demos(settings, file, workers=config.workers, command="sb3-tgrpo train --from-scratch", progress=progress)
    except CollectionError as error:
        raise RuntimeError(str(error)) from error
    view.end_stage(f"{wanted} of {suite}-{index}")
    return file


def _fine_tune(config: TrainConfig, folder: RunFolder, demos: Path, view: RunView) -> Path:
    from sb3_tgrpo.sft.dataset import DemonstrationDataset
    from sb3_tgrpo.sft.trainer import SFT, STATE_FILE

    recipe = config.start
    checkpoint, state = folder / "start" / "checkpoint", folder / "start"
    if (checkpoint / "config.json").is_file() and not (state / STATE_FILE).is_file():
        view.skip_stage("supervised fine-tuning", f"{recipe.sft_steps} updates")
        return checkpoint
    dataset = DemonstrationDataset(demos, min_range=recipe.sft_min_range, symmetric=recipe.sft_symmetric)
    sft = SFT(
        "OpenVLAPolicy",
        dataset,
        learning_rate=recipe.sft_learning_rate,
        batch_size=recipe.sft_batch_size,
        ema_decay=recipe.sft_ema,
        center_images=True,
        validation_fraction=recipe.sft_validation,
        policy_kwargs={"checkpoint": _base(config, folder), "lora": None},
        seed=recipe.start_seed,
        device=config.device,
    )
    view.begin_stage("supervised fine-tuning", recipe.sft_steps, "updates", done=0)
    every = max(recipe.sft_steps // 40, 1)

    def show(running: Any) -> None:
        text = f"validation loss {running.history[-1]['loss']:.3f}" if running.history else ""
        view.advance(running.num_updates, text)

    sft.learn(recipe.sft_steps, folder=state, resume=True, eval_every=every, callback=show)
    sft.save_checkpoint(checkpoint, command="sb3-tgrpo train --from-scratch")
    (state / STATE_FILE).unlink()  # the checkpoint is complete: this marks it, and the state is no longer needed
    view.end_stage(f"{recipe.sft_steps} updates" + (f", validation loss {sft.history[-1]['loss']:.3f}" if sft.history else ""))
    return checkpoint


def _base(config: TrainConfig, folder: RunFolder) -> str:
    """What fine-tuning starts from: tiny, with the recipe's number of bins."""
    from sb3_tgrpo.openvla.tiny import save_tiny, tiny_config

    if tiny_config()["n_action_bins"] == config.start.action_bins:
        return "tiny"
    base = folder / "start" / "base"
    save_tiny(base, config.start.action_bins, config.task.assets or "light")
    return str(base)


# ---------------------------------------------------------------------- environments and policies


def resolve_setup(config: TrainConfig, checkpoint: str) -> Setup:
    """
    Choose assets, image size and reward.

    :raises ValueError: if the reward is unknown or the task has none.
    """
    from sb3_tgrpo.envs.libero.assets import resolve_assets
    from sb3_tgrpo.openvla.checkpoint import checkpoint_identity, read_config
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
    from sb3_tgrpo.openvla.checkpoint import is_hub_id, read_config
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


def policy_kwargs(config: TrainConfig, setup: Setup) -> dict[str, Any]:
    """Keyword arguments of the policy."""
    kwargs: dict[str, Any] = {"checkpoint": setup.checkpoint, "lora": setup.lora, "value_head": False}
    kwargs |= {"quantization": config.start.quantization, "gradient_checkpointing": config.gradient_checkpointing}
    if config.device == "cpu":  # another device is not for good: what is trained on it can be loaded without it
        kwargs["device"] = "cpu"
    if setup.lora is None:
        kwargs["dtype"] = "float32"  # a GPU's default, bfloat16, would round small updates of the weights away
    return kwargs


def make_model(config: TrainConfig, setup: Setup, folder: RunFolder, env: Any) -> OnPolicyAlgorithm:
    """The algorithm at its start."""
    from sb3_tgrpo.tgrpo import TGRPO

    if config.algorithm.algo != "tgrpo":
        return make_baseline(config, env, policy_kwargs(config, setup), _tensorboard_folder(folder))
    algorithm = dataclasses.asdict(config.algorithm)
    for name in ("algo", "total_timesteps", "group_size", "parallel_groups", "stop_on"):  # of the environment and of learn()
        del algorithm[name]
    algorithm["gamma"] = algorithm.pop("gamma_traj")  # PPO's is a setting of its own
    return TGRPO(
        "OpenVLAPolicy",
        env,
        **algorithm,
        policy_kwargs=policy_kwargs(config, setup),
        tensorboard_log=_tensorboard_folder(folder),
        seed=config.seed,
        device=config.device,
    )


def _tensorboard_folder(folder: RunFolder) -> str | None:
    return str(folder / "tensorboard") if importlib.util.find_spec("tensorboard") is not None else None


# ---------------------------------------------------------------------- training


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
            model = kind.load(resume, env=env, device=config.device, tensorboard_log=_tensorboard_folder(folder))
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


# ---------------------------------------------------------------------- evaluation


def mode_name(temperature: float) -> str:
    """``greedy``, ``T=1``."""
    return "greedy" if temperature == 0 else f"T={temperature:g}"


def episodes_per_start(config: TrainConfig, temperature: float) -> int:
    """How often each start is played: greedily, once is all there is."""
    return config.evaluation.eval_episodes if temperature else 1


def simulators() -> "WorkerPool":
    """Simulators that the evaluations before training share, or those after it; a context manager."""
    from sb3_tgrpo.envs.groups.worker import WorkerPool

    return WorkerPool()


def evaluate(
    policy: "BasePolicy | Callable[[], OpenVLAPolicy]",
    config: TrainConfig,
    setup: Setup,
    folder: RunFolder,
    view: RunView,
    name: str,
    temperature: float,
    pool: "WorkerPool",
) -> "Evaluation":
    """
    Play the stored starts, or go on after the last episode that was played.

    :param policy: the policy, or a function that makes it, called only if it is needed.
    :param folder: where the evaluation is kept, in ``evaluations/<name>``.
    :param name: such as ``before_greedy``.
    :param temperature: 0 is greedy.
    :param pool: simulators.
    """
    from sb3_tgrpo.evaluation.protocol import EvalEpisode, Evaluation, resumable_evaluation

    title = f"evaluate {name.partition('_')[0]}, {mode_name(temperature)}"
    place = folder / "evaluations" / name
    if (place / "evaluation.json").is_file():
        found = Evaluation.load(place / "evaluation.json")
        view.skip_stage(title, str(found.rate))
        return found
    total = config.evaluation.eval_starts * episodes_per_start(config, temperature)
    view.begin_stage(title, total, "episodes", done=len(JsonLines(place / "episodes.jsonl").read()))
    successes = [row["success"] for row in JsonLines(place / "episodes.jsonl").read()]

    def progress(episode: EvalEpisode, n_done: int, n_all: int) -> None:
        successes.append(episode.success)
        view.advance(n_done, f"{sum(successes)} of {len(successes)} succeeded")

    found = resumable_evaluation(
        place,
        policy if isinstance(policy, BasePolicy) else policy(),
        evaluation_envs(config),
        **evaluation_settings(config, setup, temperature),
        name=name,
        n_envs=config.evaluation.eval_workers,
        record="none",
        progress=progress,
        pool=pool,
    )
    view.end_stage(str(found.rate))
    return found


def evaluation_envs(config: TrainConfig) -> Any:
    """The environment as :func:`~sb3_tgrpo.evaluation.protocol.evaluate_policy` takes it."""
    source = env_source(config)
    return source if isinstance(source, str) else {config.task.env: source}


def evaluation_settings(config: TrainConfig, setup: Setup, temperature: float) -> dict[str, Any]:
    """What an evaluation's outcomes depend on, as arguments of :func:`~sb3_tgrpo.evaluation.protocol.evaluate_policy`."""
    kwargs = env_kwargs(config, setup)
    noise = kwargs.pop("start_noise", 0.0)
    count = config.evaluation.eval_starts
    starts = {"init_state_ids": list(range(count))} if is_libero(config) else {"seeds": [FIRST_SEED + k for k in range(count)]}
    # Greedy play of stored starts is the same for all runs; what is drawn differs between runs of different seeds.
    return {
        **starts,
        "episodes_per_start": episodes_per_start(config, temperature),
        "deterministic": temperature == 0,
        "temperature": temperature or None,
        "seed": config.seed if temperature or noise else 0,
        "start_noise": noise,
        "env_kwargs": kwargs,
    }


def film(
    policy: BasePolicy, config: TrainConfig, setup: Setup, file: Path, temperature: float, start: int, pool: "WorkerPool"
) -> Path:
    """
    A video of an episode, the one that :func:`evaluate` has played from this start.

    :param file: the video.
    :param start: number of the start.
    :param pool: simulators.
    """
    from sb3_tgrpo.evaluation.protocol import evaluate_policy

    settings = evaluation_settings(config, setup, temperature)
    for name in ("init_state_ids", "seeds"):
        if name in settings:
            settings[name] = [settings[name][start]]
    settings["episodes_per_start"] = 1
    with tempfile.TemporaryDirectory(dir=file.parent) as made:
        evaluate_policy(policy, evaluation_envs(config), **settings, n_envs=1, video_folder=made, record="all", pool=pool)
        (video,) = Path(made).glob("*.mp4")
        os.replace(video, file)
    return file


def show_videos(videos: Mapping[str, Path], file: Path) -> None:
    """
    A picture of videos, a row each.

    :param videos: by name.
    :param file: the picture.
    """
    from sb3_tgrpo.envs.demos.pictures import read_pictures
    from sb3_tgrpo.train.plots import plot_episodes

    file.parent.mkdir(exist_ok=True)
    file.write_bytes(plot_episodes({name: read_pictures(video) for name, video in videos.items()}))
