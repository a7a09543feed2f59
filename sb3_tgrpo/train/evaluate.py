"""The evaluations of a run, before and after training, and its videos."""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stable_baselines3.common.policies import BasePolicy

from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.setup import Setup, env_kwargs, env_source, is_libero
from sb3_tgrpo.train.view import RunView

if TYPE_CHECKING:
    from sb3_tgrpo.envs.groups.worker import WorkerPool
    from sb3_tgrpo.evaluation.protocol import Evaluation
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

FIRST_SEED = 1_000_000
"""Of the starts that a task without stored ones is evaluated on."""


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
