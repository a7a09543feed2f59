"""Learning rates that did best in a tuning study, for the studies that report results."""

import os
from dataclasses import replace

from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.study.design import Study
from sb3_tgrpo.study.methods import TUNED_BY, MethodName
from sb3_tgrpo.train.config import TrainConfig


def tuned_overrides(tuning_folder: str | os.PathLike[str], study: Study) -> Study:
    """
    The study with the learning rates that did best in a ``tuning`` study, recorded with it.

    :param tuning_folder: Folder of the tuning study.
    :param study: What is to be run. A method without trials keeps its learning rate.
    :raises ValueError: If there is no tuning study, it is not finished or was not evaluated at T = 1, its methods had unequal
        numbers of trials, or it shares a task with the study.
    """
    unfinished = f"{tuning_folder} has no finished tuning: run 'sb3-tgrpo study tuning --out {tuning_folder}' first."
    if not os.path.isdir(tuning_folder):
        raise ValueError(unfinished)
    root = RunFolder(tuning_folder)
    results, record = root.read("tuning/results.json"), root.read("tuning/study.json")
    if results is None or record is None:
        raise ValueError(unfinished)
    if shared := sorted(set(results["envs"]) & set(study.envs)):
        raise ValueError(f"{tuning_folder} was tuned on {', '.join(shared)}, part of this study: tune on other tasks.")
    if TUNED_BY not in results["modes"]:
        raise ValueError(
            f"{tuning_folder} was evaluated by {', '.join(results['modes'])}, learning rates are chosen by {TUNED_BY}: tune "
            "with 1.0 among eval_temperatures."
        )
    trials: dict[str, dict[float, float]] = {}
    names = {}
    for name, row in results["modes"][TUNED_BY].items():
        method, _, factor = name.partition("@")
        if factor:
            trials.setdefault(method, {})[float(factor)] = row["mean"]
            names[method, float(factor)] = name
    if results["missing"] or len({len(scores) for scores in trials.values()}) != 1:
        raise ValueError(f"{tuning_folder} is not finished, or its methods had unequal numbers of trials.")
    best = {method: max(scores, key=lambda factor: (scores[factor], factor == 1.0)) for method, scores in trials.items()}
    # The rates that were tried: this study's own may be another multiple of them.
    tried = Study(
        "tuning", TrainConfig.from_dict(record["config"], str(root / "tuning/study.json")), tuple(record["envs"]),
        tuple(record["methods"]), tuple(record["seeds"]), overrides=record["overrides"],
    )  # fmt: skip
    rates = {
        method: tried.method_config(names[method, factor], tried.envs[0], tried.seeds[0]).algorithm.learning_rate
        for method, factor in best.items()
    }
    overrides = {name: dict(settings) for name, settings in study.overrides.items()}
    families = {MethodName.of(method).lineage[0] for method in study.methods}
    for method in sorted(set(best) & families):
        overrides[method] = {"learning_rate": rates[method], **overrides.get(method, {})}
    tuning = {
        "envs": results["envs"], "mode": TUNED_BY, "trials": trials, "chosen": best, "learning_rates": rates,
        "seeds": results["seeds"],
    }  # fmt: skip
    return replace(study, overrides=overrides, tuning=tuning)
