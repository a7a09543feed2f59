"""
A training run: a base policy, evaluated, trained by TGRPO, and evaluated again on the same stored initial states.

Every part is kept in the run folder, so the same call goes on after an interruption of any kind and ends with the same result;
after completion it returns the results at once. Only the last policy is judged, never the best of several.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch as th
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.envs.groups.worker import WorkerPool
from sb3_tgrpo.evaluation.results import Evaluation
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.run_folder import RunFolder, environment_record, now
from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.errors import explained
from sb3_tgrpo.train.evaluate import pooled
from sb3_tgrpo.train.make_base_policy import base_policy_checkpoint
from sb3_tgrpo.train.model import make_model, make_policy, make_training_env
from sb3_tgrpo.train.plots import plot_episodes
from sb3_tgrpo.train.report import write_pooled_report, write_report
from sb3_tgrpo.train.setup import (
    Setup,
    check_n_groups,
    check_request,
    check_seeds,
    describe_initial_states,
    resolve_setup,
    task_mismatch_warning,
)
from sb3_tgrpo.train.stages import METRICS_FILE, MODEL_FILE, RESUME_FILE, Run, check_extras, evaluation_name
from sb3_tgrpo.train.view import RunView

if TYPE_CHECKING:
    from sb3_tgrpo.train.signal import SignalReport

CONFIG_FILE, RUN_FILE, SETUP_FILE = "config.json", "run.json", "setup.json"
RESULTS_FILE, SECONDS_FILE = "results.json", "seconds.json"
MAY_CHANGE = {"wandb", "threads", "update_threads", "workers", "save_every", "evaluation.eval_n_envs"}
"""Settings that do not change the result, or by rounding alone, so that an interrupted run may go on with others."""
_TRAINED = (
    METRICS_FILE,
    RESUME_FILE,
    MODEL_FILE,
    "evaluations/after_*",
    "videos",
    RESULTS_FILE,
    *(f"seed_*/{file}" for file in (METRICS_FILE, RESULTS_FILE)),
)
"""
Files that depend on all settings. What an evaluation of the base policy depends on is recorded beside it, and what the base
policy's episodes depend on in ``setup.json``: a study's cells begin with evaluations that another cell has made.
"""
_RESULTS_OF_SETUP = ("evaluations/*/episodes.jsonl", *_TRAINED)

Pairs = dict[float, tuple[Evaluation, Evaluation]]


def run_training(
    config: TrainConfig,
    folder: str | os.PathLike[str],
    *,
    view: RunView | None = None,
    shared: str | os.PathLike[str] | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """
    Evaluate, train, evaluate, report; or go on where an earlier call was interrupted.

    :param config: The configuration.
    :param folder: Run folder, made if needed.
    :param view: Progress is shown here; None: plain lines.
    :param shared: Folder of what several runs have in common, the base policy and its greedy evaluation; None: ``folder``.
    :param command: Command line, for the record.
    :return: The results, as in ``results.json``.
    :raises ValueError: If the folder holds a run of other settings or lacks a part, or settings do not fit together.
    :raises TrainingError: On numbers that are not finite, memory that runs out, or simulators that keep failing, with what
        to change.
    """
    run = RunFolder(folder)
    view = view or RunView()
    with run.locked(), explained(config):
        _claim(config, run, command)
        if (results := _finished_results(run)) is not None:
            return results
        check_request(config)
        check_extras(config)
        th.set_num_threads(config.threads)
        common = run if shared is None else RunFolder(shared)
        with _clock(run, "base policy"):
            setup = resolve_setup(config, base_policy_checkpoint(config, common, view))
        if warning := task_mismatch_warning(config.task.env, setup.checkpoint):
            view.print(warning)
        for place in {common.path: common, run.path: run}.values():
            _claim_setup(setup, place)
        view.highest_return = setup.highest_return
        parts = Run(config, setup, run, view)
        with WorkerPool() as pool, _clock(run, "evaluate before"):
            before = _evaluate_base_policy(parts, common, pool)
        view.later_seconds = run.read(SECONDS_FILE)["evaluate before"]  # the evaluation after it will take about as long
        policy = parts.train()
        view.later_seconds = 0.0
        with WorkerPool() as pool:  # not the one above: its processes would need memory during training
            with _clock(run, "evaluate after"):
                pairs = {t: (first, parts.evaluate(policy, "after", t, pool)) for t, first in before.items()}
            with _clock(run, "videos"):
                videos = _film(parts, policy, pairs, pool)
        results = _results(parts, pairs, videos)
        view.begin_stage("report")
        view.end_stage(str(write_report(config, run, results)))
        _claim(config, run, command)  # once more: what was removed in the meantime would be missing for good
        _claim_setup(setup, run)
        run.write(RESULTS_FILE, results)  # the last file: it shows that the run is complete
        return results


def run_seeds(
    config: TrainConfig,
    seeds: Sequence[int],
    folder: str | os.PathLike[str],
    *,
    view: RunView | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """
    The same training with several seeds, from one base policy, and all of them pooled.

    :param config: The configuration; its own seed is not used.
    :param seeds: Two or more seeds; each run has the folder ``seed_<n>``.
    :param folder: Folder of them all; the rest is as for :func:`run_training`.
    :return: The pooled results, as in the folder's ``results.json``.
    """
    check_seeds(seeds)
    every = RunFolder(folder)
    view = view or RunView()
    runs = {}
    with every.locked():
        _claim(replace(config, seed=0), every, command, several=True)
        for seed in seeds:
            view.rows = []
            view.print(f"seed {seed}")
            one = replace(config, seed=seed)
            runs[seed] = run_training(one, every / f"seed_{seed}", view=view, shared=folder, command=command)
        folders = [RunFolder(every / f"seed_{seed}") for seed in seeds]
        modes = {}
        for t in config.evaluation.eval_temperatures:
            before = [_load(_before_folder(config, every, run, t), "before", t) for run in folders]
            modes[str(Decoding(t))] = pooled(before, [_load(run, "after", t) for run in folders], seeds)
        first = next(iter(runs.values()))
        results = {
            **{key: first[key] for key in ("env", "assets", "start", "reward", "training_starts", "image_size")},
            "seeds": list(seeds),
            "modes": modes,
            "resampled_groups": sum(result["resampled_groups"] for result in runs.values()),
            "seconds": sum(result["seconds"]["total"] for result in runs.values()),
            "finished": now(),
        }
        every.write(RESULTS_FILE, results)
        write_pooled_report(config, every, results)
    return results


def measure(
    config: TrainConfig, folder: str | os.PathLike[str], n_groups: int, *, view: RunView | None = None
) -> "SignalReport":
    """
    How much signal there is in the gradients of single groups at the base policy (:mod:`sb3_tgrpo.train.signal`). After an
    interruption the same call goes on after the last group that was played.

    :param config: Configuration of the training that it is measured for.
    :param folder: Folder for ``signal.json``; until then, ``signal`` in it keeps what has been played.
    """
    from sb3_tgrpo.tgrpo import TGRPO
    from sb3_tgrpo.train.signal import measure_signal

    check_n_groups(n_groups)
    if config.algorithm.algo != "tgrpo":
        raise ValueError(f"algo={config.algorithm.algo!r}: the signal is measured in TGRPO's gradients. Leave algo out.")
    run = RunFolder(folder)
    view = view or RunView()
    with run.locked(), explained(config):
        check_request(config)
        check_extras(config)
        th.set_num_threads(config.threads)
        unfinished = RunFolder(run / "signal")
        _claim_config(config, unfinished, ("rollout_*.pt",))
        setup = resolve_setup(config, base_policy_checkpoint(config, run, view))
        view.begin_stage("measure the signal", n_groups, "groups")
        env = VecTransposeImage(make_training_env(config, setup), skip=True)
        try:
            model = cast(TGRPO, make_model(config, setup, run, env))
            report = measure_signal(model, n_groups, progress=view.advance, folder=unfinished.path)
        finally:
            env.close()
        view.end_stage(f"{report.n_steps:,} steps")
        played = {"checkpoint": str(setup.checkpoint), **setup.record()}
        run.write("signal.json", {"config": config.to_dict(), "setup": played, "report": report.to_dict()})
        shutil.rmtree(unfinished.path)  # gradients of every group: hundreds of megabytes
    return report


# ---------------------------------------------------------------------- the folder


def _claim(config: TrainConfig, run: RunFolder, command: str | None, several: bool = False) -> None:
    """Record the configuration and the call, or check that they are there and have not changed."""
    begun = any(next(run.path.glob(pattern), None) for pattern in _TRAINED)
    record, earlier = run.read(RUN_FILE), run.read(CONFIG_FILE)
    _claim_config(config, run, _TRAINED)
    if begun and record is None:
        raise ValueError(f"{run.path} lacks {RUN_FILE}, which records how it was made: put it back, or choose another --out.")
    if begun and several != (record["seed"] == "several"):
        raise ValueError(
            f"{run.path} holds {'one run' if several else 'runs of several seeds'}: choose another folder with --out for "
            f"{'several' if several else 'a single one'}."
        )
    if record is None or (not begun and earlier != config.to_dict()):  # a call that failed at once is no run
        seed = "several" if several else config.seed
        run.write(RUN_FILE, {"command": command, "started": now(), "seed": seed, **environment_record()})


def _claim_config(config: TrainConfig, folder: RunFolder, results: tuple[str, ...]) -> None:
    folder.claim(
        CONFIG_FILE,
        config.to_dict(),
        results=results,
        may_change=MAY_CHANGE,
        upgrade=lambda earlier: TrainConfig.from_dict(earlier, str(folder / CONFIG_FILE)).to_dict(),
    )


def _claim_setup(setup: Setup, run: RunFolder) -> None:
    """
    Record which base policy, assets and reward a folder's episodes are of, or check that it is still them: another checkpoint
    may have taken the place of the first, ``auto`` assets may have become others, and a newer version may ship another reward.
    """
    found = setup.record()

    def upgrade(earlier: dict[str, Any]) -> dict[str, Any]:  # version 0.1 may lack the reward, and had another fingerprint
        same = setup.checkpoint.matches(earlier["start"])
        return {"reward": found["reward"], **earlier, **({"start": found["start"]} if same else {})}

    run.claim(SETUP_FILE, found, results=_RESULTS_OF_SETUP, upgrade=upgrade)


def _finished_results(run: RunFolder) -> dict[str, Any] | None:
    results = run.read(RESULTS_FILE)
    if results is None:
        return None
    if run.read(SETUP_FILE) is None:
        raise ValueError(
            f"{run.path} lacks {SETUP_FILE}, which records what was played: put it back, or choose another --out."
        )
    if any("initial_state" not in mode["paired"] for mode in results["modes"].values()):
        raise ValueError(f"{run.path} was finished by version 0.1: see {run / 'report.html'}, or choose another --out.")
    return results


def has_begun(run: RunFolder) -> bool:
    """Whether a run's folder holds more than what was asked for: a base policy, an episode, results."""
    return any(next(run.path.glob(pattern), None) for pattern in ("start", *_RESULTS_OF_SETUP))


@contextmanager
def _clock(run: RunFolder, name: str) -> Iterator[None]:
    """Add up the time that a part takes, over all calls; what an interruption cuts off is not counted."""
    started = time.perf_counter()
    yield
    seconds = run.read(SECONDS_FILE) or {}
    run.write(SECONDS_FILE, {**seconds, name: seconds.get(name, 0.0) + time.perf_counter() - started})


# ---------------------------------------------------------------------- parts


def _load(folder: RunFolder, when: str, temperature: float) -> Evaluation:
    return Evaluation.load(folder / "evaluations" / evaluation_name(when, temperature) / "evaluation.json")


def _before_folder(config: TrainConfig, common: RunFolder, run: RunFolder, temperature: float) -> RunFolder:
    """The base policy's evaluation is common to all runs where nothing in it is drawn by the run's seed."""
    return run if temperature or config.task.start_noise else common


def _evaluate_base_policy(parts: Run, common: RunFolder, pool: WorkerPool) -> dict[float, Evaluation]:
    @cache
    def policy() -> Any:
        return make_policy(parts.config, parts.setup)

    return {
        t: parts.evaluate(policy, "before", t, pool, _before_folder(parts.config, common, parts.folder, t))
        for t in parts.config.evaluation.eval_temperatures
    }


def _film(parts: Run, policy: Any, pairs: Pairs, pool: WorkerPool) -> dict[str, Any]:
    """
    Videos of one initial state before and after: of the first that failed before and succeeds after, so that there is
    something to see, or of the first if there is none. Never a measure of anything.
    """
    from sb3_tgrpo.envs.demos.pictures import read_pictures

    temperature, (before, after) = next(iter(pairs.items()))
    repetitions = parts.protocol(temperature).repetitions
    outcomes = [(b.success, a.success) for b, a in zip(before.episodes, after.episodes, strict=True)][::repetitions]
    changed = [number for number, outcome in enumerate(outcomes) if outcome == (False, True)]
    number = changed[0] if changed else 0
    folder = RunFolder(parts.folder / "videos")
    for name in ("after", "before"):
        if not (folder / f"{name}.mp4").is_file():
            parts.view.begin_stage(f"video {name}")
            if name == "before" and policy.device.type == "cuda":
                policy.to("cpu")  # two of them may not fit
            player = policy if name == "after" else make_policy(parts.config, parts.setup)
            parts.film(player, folder / f"{name}.mp4", temperature, number, pool)
    parts.view.end_stage()
    pictures = {f"{name} training": read_pictures(folder / f"{name}.mp4") for name in ("before", "after")}
    atomic_write(parts.folder / "plots" / "before_after.png", plot_episodes(pictures))
    return {"mode": str(Decoding(temperature)), "start": number, "chosen": bool(changed)}


def _results(parts: Run, pairs: Pairs, videos: dict[str, Any]) -> dict[str, Any]:
    config, setup = parts.config, parts.setup
    rows = parts.rows(parts.view.rows[-1]["timesteps"] if parts.view.rows else 0)
    rollout, update = (sum(row.get(f"time/{name}_seconds", 0.0) for row in rows) for name in ("rollout", "update"))
    seconds = {**(parts.folder.read(SECONDS_FILE) or {}), "rollouts": rollout, "updates": update}
    return {
        "env": config.task.env,
        "assets": setup.assets,
        "image_size": setup.image_size,
        "reward": setup.reward_text,
        "training_starts": describe_initial_states(config),
        "start": Path(str(setup.checkpoint)).name if os.path.isdir(str(setup.checkpoint)) else str(setup.checkpoint),
        "seed": config.seed,
        "modes": {str(Decoding(t)): pooled([first], [second], [config.seed]) for t, (first, second) in pairs.items()},
        "timesteps": rows[-1]["timesteps"] if rows else 0,
        "updates": len(rows),
        "resampled_groups": sum(row.get("rollout/resampled_groups", 0) for row in rows),
        "videos": videos,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "finished": now(),
    }
