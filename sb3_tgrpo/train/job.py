"""
The main job: a start policy, evaluated, trained by TGRPO, and evaluated again on the same stored starts, in one folder.

Every part is kept in the run folder, so the same call goes on after an interruption of any kind and ends with the same result;
after completion it returns the results at once. Only the last policy is judged, never the best of several.
"""

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch as th
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.run_folder import RunFolder, environment_record, now
from sb3_tgrpo.train.config import TrainConfig, difference
from sb3_tgrpo.train.errors import explained
from sb3_tgrpo.train.evaluate import episodes_per_start, evaluate, film, mode_name, show_videos, simulators
from sb3_tgrpo.train.make_base_policy import start_checkpoint
from sb3_tgrpo.train.model import make_model, make_policy, make_training_env
from sb3_tgrpo.train.setup import Setup, resolve_setup, training_starts, untaught
from sb3_tgrpo.train.stages import METRICS_FILE, check_extras, train
from sb3_tgrpo.train.view import RunView

if TYPE_CHECKING:
    from sb3_tgrpo.envs.groups.worker import WorkerPool
    from sb3_tgrpo.evaluation.protocol import Evaluation
    from sb3_tgrpo.train.signal import SignalReport

RESULTS_FILE = "results.json"
SECONDS_FILE = "seconds.json"
SETUP_FILE = "setup.json"
MAY_CHANGE = {"wandb", "threads", "update_threads", "workers", "save_every", "evaluation.eval_workers"}
"""Settings that do not change the result, or by rounding alone, so that an interrupted run may go on with others."""

Pairs = dict[float, "tuple[Evaluation, Evaluation]"]


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

    :param config: what to do.
    :param folder: the run folder, created if needed.
    :param view: told of progress; None = plain lines.
    :param shared: folder of what several runs have in common, the start policy and its greedy evaluation; None = ``folder``.
    :param command: for the record.
    :return: the results, as in ``results.json``.
    :raises ValueError: if the folder holds a run of other settings, or settings do not fit together.
    :raises TrainingError: on numbers that are not finite, memory that runs out, or simulators that keep failing, with what
        to change.
    """
    run = RunFolder(folder)
    view = view or RunView()
    with run.locked(), explained(config):
        _record_config(config, run, command)
        results = run.read(RESULTS_FILE)
        if results is not None:
            return results
        check_extras(config)
        th.set_num_threads(config.threads)
        common = run if shared is None else RunFolder(shared)
        with _clock(run, "start policy"):
            setup = resolve_setup(config, start_checkpoint(config, common, view))
        if warning := untaught(config.task.env, setup.checkpoint):
            view.print(warning)
        for place in (common, run):
            _record_setup(setup, place)
        with simulators() as pool, _clock(run, "evaluate before"):
            before = _evaluate_start(config, setup, common, run, view, pool)
        view.later_seconds = run.read(SECONDS_FILE)["evaluate before"]  # the evaluation after it will take about as long
        policy = train(config, setup, run, view)
        view.later_seconds = 0.0
        pairs: Pairs = {}
        with simulators() as pool:  # not the one above: its processes would need memory during training
            with _clock(run, "evaluate after"):
                for temperature, first in before.items():
                    second = evaluate(policy, config, setup, run, view, _name("after", temperature), temperature, pool)
                    pairs[temperature] = (first, second)
            with _clock(run, "videos"):
                videos = _film(config, setup, run, view, policy, pairs, pool)
        results = _results(config, setup, run, pairs, videos)
        _write_report(config, run, results, view)
        run.write(RESULTS_FILE, results)  # the last file: it says that the run is complete
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
    The same training with several seeds, from one start policy, and all of them pooled.

    :param config: what to do; its own seed is not used.
    :param seeds: each gets the folder ``seed_<n>``.
    :param folder: folder of them all.
    :return: the pooled results, as in the folder's ``results.json``.
    :raises ValueError: for fewer than two seeds, or equal ones; and as :func:`run_training`.
    """
    from sb3_tgrpo.evaluation.protocol import Evaluation
    from sb3_tgrpo.train.report import write_pooled_report

    if len(set(seeds)) != len(seeds) or len(seeds) < 2:
        raise ValueError(f"seeds={list(seeds)} must be two or more different seeds.")
    every = RunFolder(folder)
    view = view or RunView()
    runs = {}
    with every.locked():
        _record_config(replace(config, seed=0), every, command, several=True)
        for seed in seeds:
            view.rows = []
            view.print(f"seed {seed}")
            mine = replace(config, seed=seed)
            runs[seed] = run_training(mine, every / f"seed_{seed}", view=view, shared=folder, command=command)
        loaded: dict[float, tuple[list[Evaluation], list[Evaluation]]] = {}
        for temperature in config.evaluation.eval_temperatures:
            firsts, seconds = [], []
            for seed in seeds:
                mine = replace(config, seed=seed)
                run = RunFolder(every / f"seed_{seed}")
                place = _before_folder(mine, every, run, temperature)
                firsts.append(Evaluation.load(place / "evaluations" / _name("before", temperature) / "evaluation.json"))
                seconds.append(Evaluation.load(run / "evaluations" / _name("after", temperature) / "evaluation.json"))
            loaded[temperature] = (firsts, seconds)
        first = next(iter(runs.values()))
        results = {
            **{key: first[key] for key in ("env", "assets", "start", "reward", "training_starts", "image_size")},
            "seeds": list(seeds),
            "modes": {mode_name(t): _pooled(*evaluations, list(seeds)) for t, evaluations in loaded.items()},
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
    How much signal there is in the gradients of single groups at the start policy (:mod:`sb3_tgrpo.train.signal`). After an
    interruption the same call goes on after the last group that was played.

    :param config: the training it is measured for.
    :param folder: gets ``signal.json``; until then, ``signal`` in it keeps what has been played.
    :param n_groups: groups to play.
    :raises ValueError: if the folder holds an unfinished measurement of other settings.
    """
    from sb3_tgrpo.tgrpo import TGRPO
    from sb3_tgrpo.train.signal import measure_signal

    if config.algorithm.algo != "tgrpo":
        raise ValueError(f"The signal is measured in TGRPO's gradients: leave out algo={config.algorithm.algo!r}.")
    run = RunFolder(folder)
    view = view or RunView()
    with run.locked(), explained(config):
        th.set_num_threads(config.threads)
        unfinished = RunFolder(run / "signal")
        earlier = unfinished.read("config.json")
        if earlier is None:
            unfinished.write("config.json", config.to_dict())
        elif changed := changed_settings(earlier, config, unfinished / "config.json"):
            text = f"{unfinished.path} is of other settings ({'; '.join(changed)})"
            raise ValueError(f"{text}. Choose another folder with --out, or delete it.")
        setup = resolve_setup(config, start_checkpoint(config, run, view))
        view.begin_stage("measure the signal", n_groups, "groups")
        env = VecTransposeImage(make_training_env(config, setup), skip=True)
        try:
            model = cast(TGRPO, make_model(config, setup, run, env))
            report = measure_signal(model, n_groups, progress=view.advance, folder=unfinished.path)
        finally:
            env.close()
        view.end_stage(f"{report.n_steps:,} steps")
        run.write("signal.json", {"config": config.to_dict(), "setup": vars(setup), "report": report.to_dict()})
        shutil.rmtree(unfinished.path)  # gradients of every group: hundreds of megabytes
    return report


# ---------------------------------------------------------------------- parts


def _name(when: str, temperature: float) -> str:
    return f"{when}_{mode_name(temperature).replace('=', '')}"


@contextmanager
def _clock(run: RunFolder, name: str) -> Iterator[None]:
    """Add up the time that a part takes, over all calls; what an interruption cuts off is not counted."""
    started = time.perf_counter()
    yield
    seconds = run.read(SECONDS_FILE) or {}
    run.write(SECONDS_FILE, {**seconds, name: seconds.get(name, 0.0) + time.perf_counter() - started})


def _record_config(config: TrainConfig, run: RunFolder, command: str | None, several: bool = False) -> None:
    """Write the configuration, or check that it is the one of an earlier call."""
    earlier = run.read("config.json")
    if earlier is None or not has_begun(run):  # a call that failed at once, by a typo for instance, is no run
        (run / SETUP_FILE).unlink(missing_ok=True)
        run.write("config.json", config.to_dict())
        seed = "several" if several else config.seed
        run.write("run.json", {"command": command, "started": now(), "seed": seed, **environment_record()})
        return
    if several != ((run.read("run.json") or {}).get("seed") == "several"):
        raise ValueError(
            f"{run.path} holds {'one run' if several else 'runs of several seeds'}: choose another folder with --out for "
            f"{'several' if several else 'a single one'}."
        )
    if changed := changed_settings(earlier, config, run / "config.json"):
        raise ValueError(
            f"{run.path} holds a run of other settings ({'; '.join(changed)}). Choose another folder with --out, or delete it."
        )


def _record_setup(setup: Setup, run: RunFolder) -> None:
    """
    Write which start policy, assets and reward a folder's episodes are of, or check that it is still them: another checkpoint
    may have taken the place of the first, ``auto`` assets may have become others, and a newer version may ship another reward.
    """
    found = {"start": setup.identity, "assets": setup.assets_kind, "reward": setup.reward}
    earlier = run.read(SETUP_FILE)
    if earlier is None:
        run.write(SETUP_FILE, found)
    elif changed := difference({"reward": setup.reward, **earlier}, found):  # older folders do not tell the reward
        raise ValueError(f"{run.path} holds episodes of others ({'; '.join(changed)}). Choose another folder with --out.")


def has_begun(run: RunFolder) -> bool:
    """Whether a run's folder holds anything but what was asked for: a start policy, an episode, results."""
    return (run / "start").exists() or (run / RESULTS_FILE).exists() or any(run.path.glob("**/evaluations"))


def changed_settings(earlier: dict[str, Any], config: TrainConfig, source: Path) -> list[str]:
    """
    Settings in which a configuration differs from an earlier one, both values with each. Where and how fast it runs may change
    on the way; what it computes may not.

    :param earlier: as in a file; settings newer than it have their defaults.
    :param source: the file, for errors.
    """
    then = TrainConfig.from_dict(earlier, str(source)).to_dict()
    return [text for text in difference(then, config.to_dict()) if text.split(" ")[0] not in MAY_CHANGE]


def _before_folder(config: TrainConfig, common: RunFolder, run: RunFolder, temperature: float) -> RunFolder:
    """The start policy's evaluation is common to all runs where nothing in it is drawn by the run's seed."""
    return run if temperature or config.task.start_noise else common


def _evaluate_start(
    config: TrainConfig, setup: Setup, common: RunFolder, run: RunFolder, view: RunView, pool: "WorkerPool"
) -> "dict[float, Evaluation]":
    found = {}
    cache: list[Any] = []

    def policy() -> Any:
        if not cache:
            cache.append(make_policy(config, setup))
        return cache[0]

    for temperature in config.evaluation.eval_temperatures:
        place = _before_folder(config, common, run, temperature)
        found[temperature] = evaluate(policy, config, setup, place, view, _name("before", temperature), temperature, pool)
    return found


def _film(
    config: TrainConfig, setup: Setup, run: RunFolder, view: RunView, policy: Any, pairs: Pairs, pool: "WorkerPool"
) -> dict[str, Any]:
    """
    Videos of one start before and after: of the first that failed before and succeeds after, so that there is something to
    see, or of start 0 if there is none. Never a measure of anything.
    """
    temperature, (before, after) = next(iter(pairs.items()))
    per_start = episodes_per_start(config, temperature)
    outcomes = [(b.success, a.success) for b, a in zip(before.episodes, after.episodes, strict=True)][::per_start]
    changed = [start for start, outcome in enumerate(outcomes) if outcome == (False, True)]
    start = changed[0] if changed else 0
    folder = run / "videos"
    folder.mkdir(exist_ok=True)
    for name in ("after", "before"):
        if not (folder / f"{name}.mp4").is_file():
            view.begin_stage(f"video {name}")
            if name == "before" and policy.device.type == "cuda":
                policy.to("cpu")  # two of them may not fit
            player = policy if name == "after" else make_policy(config, setup)
            film(player, config, setup, folder / f"{name}.mp4", temperature, start, pool)
    view.end_stage()
    show_videos({f"{name} training": folder / f"{name}.mp4" for name in ("before", "after")}, run / "plots/before_after.png")
    return {"mode": mode_name(temperature), "start": start, "chosen": bool(changed)}


def _results(config: TrainConfig, setup: Setup, run: RunFolder, pairs: Pairs, videos: dict[str, Any]) -> dict[str, Any]:
    rows = JsonLines(run / METRICS_FILE).read()
    rollout, update = (sum(row.get(f"time/{name}_seconds", 0.0) for row in rows) for name in ("rollout", "update"))
    seconds = {**run.read(SECONDS_FILE), "rollouts": rollout, "updates": update}
    return {
        "env": config.task.env,
        "assets": setup.assets_kind,
        "image_size": setup.image_size,
        "reward": setup.reward_text,
        "training_starts": training_starts(config),
        "start": Path(setup.checkpoint).name if os.path.isdir(setup.checkpoint) else setup.checkpoint,
        "seed": config.seed,
        "modes": {mode_name(t): _pooled([first], [second], [config.seed]) for t, (first, second) in pairs.items()},
        "timesteps": rows[-1]["timesteps"] if rows else 0,
        "updates": len(rows),
        "videos": videos,
        "seconds": {**seconds, "total": sum(seconds.values())},
        "finished": now(),
    }


def _pooled(before: "Sequence[Evaluation]", after: "Sequence[Evaluation]", seeds: Sequence[int]) -> dict[str, Any]:
    """Success before and after, of each seed and together, with the intervals that the bootstrap gives."""
    from sb3_tgrpo.evaluation.protocol import paired_comparison

    units: list[Any] = ["start", *(["evaluation"] if len(before) > 1 else [])]
    found: dict[str, Any] = {
        "per_seed": [
            {
                "seed": seed,
                "before": _rate(first),
                "after": _rate(second),
                "paired": paired_comparison(first, second).to_dict(),
            }
            for seed, first, second in zip(seeds, before, after, strict=True)
        ],
        "paired": {unit: paired_comparison(list(before), list(after), unit=unit).to_dict() for unit in units},
    }
    for name, evaluations in (("before", before), ("after", after)):
        # Greedy play of the start policy is one evaluation, common to all seeds, however often it is paired.
        distinct = {(e.protocol["seed"], e.protocol["policy_fingerprint"]): e.episodes for e in evaluations}
        episodes = [episode for played in distinct.values() for episode in played]
        found[name] = {
            "successes": sum(episode.success for episode in episodes),
            "episodes": len(episodes),
            "length": sum(episode.length for episode in episodes) / len(episodes),
            "furthest": [episode.max_stage for episode in episodes],
            "n_stages": episodes[0].n_stages,
        }
    return found


def _rate(evaluation: "Evaluation") -> dict[str, Any]:
    return {
        "successes": evaluation.rate.successes,
        "episodes": evaluation.rate.trials,
        "interval": list(evaluation.interval()),
    }


def _write_report(config: TrainConfig, run: RunFolder, results: dict[str, Any], view: RunView) -> None:
    from sb3_tgrpo.train.report import write_report

    view.begin_stage("report")
    view.end_stage(str(write_report(config, run, results)))
