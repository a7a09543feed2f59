"""The base policy: the one that ships or is given, or demonstrations and supervised fine-tuning."""

import dataclasses
from pathlib import Path
from typing import Any

from sb3_tgrpo.openvla.checkpoint import TINY_IMAGE_SIZE, Checkpoint
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train.config import RENAMED, TrainConfig, shipped_base_policy
from sb3_tgrpo.train.errors import TrainingError
from sb3_tgrpo.train.view import RunView, count


def base_policy_checkpoint(config: TrainConfig, folder: RunFolder, view: RunView) -> Checkpoint:
    """The base policy's checkpoint; under ``from_scratch`` it is made first, in the folder, or taken from there."""
    if config.base_policy.checkpoint is not None:
        return Checkpoint(config.base_policy.checkpoint)
    if not config.base_policy.from_scratch:
        return Checkpoint(shipped_base_policy())
    from sb3_tgrpo.sft.trainer import STATE_FILE

    task = ("env", "start_noise", "joint_noise", "assets", "image_size")
    recipe = {**dataclasses.asdict(config.base_policy), **{name: getattr(config.task, name) for name in task}}
    start = RunFolder(folder / "start")
    start.claim("recipe.json", recipe, results=("demos.hdf5*", "checkpoint/*", STATE_FILE), upgrade=_renamed)
    demos = _collect(config, start, view)
    return Checkpoint(_fine_tune(config, start, demos, view))


def _renamed(recipe: dict[str, Any]) -> dict[str, Any]:
    return {RENAMED.get(name, name): value for name, value in recipe.items()}


def _collect(config: TrainConfig, folder: RunFolder, view: RunView) -> Path:
    from sb3_tgrpo.envs.demos.collection import CollectionError, CollectionSettings, collect_demos
    from sb3_tgrpo.rewards.facts.task_name import TaskName

    task = str(TaskName.parse(config.task.env))
    file = folder / "demos.hdf5"
    wanted = config.base_policy.demos
    if file.is_file():
        view.skip_stage("demonstrations", f"{wanted} of {task}")
        return file
    settings = CollectionSettings(
        task=task,
        demos=wanted,
        seed=config.base_policy.base_seed,
        expert=config.base_policy.expert,
        dart=config.base_policy.dart,
        pushes=config.base_policy.pushes,
        slips=config.base_policy.slips,
        detour=config.base_policy.detour,
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
        raise TrainingError(str(error)) from error
    view.end_stage(f"{wanted} of {task}")
    return file


def _fine_tune(config: TrainConfig, folder: RunFolder, demos: Path, view: RunView) -> Path:
    from sb3_tgrpo.sft.dataset import DemonstrationDataset
    from sb3_tgrpo.sft.trainer import SFT, STATE_FILE

    recipe = config.base_policy
    checkpoint, state = folder / "checkpoint", folder.path
    if (checkpoint / "config.json").is_file() and not (state / STATE_FILE).is_file():
        view.skip_stage("supervised fine-tuning", count(recipe.sft_steps, "update"))
        return checkpoint
    dataset = DemonstrationDataset(demos, min_range=recipe.sft_min_range, symmetric=recipe.sft_symmetric)
    sft = SFT(
        "OpenVLAPolicy",
        dataset,
        learning_rate=recipe.sft_learning_rate,
        batch_size=recipe.sft_batch_size,
        ema_decay=recipe.sft_ema_decay,
        center_images=True,
        validation_fraction=recipe.sft_validation_fraction,
        policy_kwargs={"checkpoint": _base(config, folder), "lora": None},
        seed=recipe.base_seed,
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
    view.end_stage(
        count(recipe.sft_steps, "update") + (f", validation loss {sft.history[-1]['loss']:.3f}" if sft.history else "")
    )
    return checkpoint


def _base(config: TrainConfig, folder: RunFolder) -> str:
    """What fine-tuning starts from: tiny, with the recipe's number of bins."""
    from sb3_tgrpo.openvla.tiny import save_tiny, tiny_config

    if tiny_config()["n_action_bins"] == config.base_policy.action_bins:
        return "tiny"
    base = folder / "base"
    save_tiny(base, config.base_policy.action_bins, config.task.assets or "light")
    return str(base)
