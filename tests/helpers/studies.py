"""Small studies, and results of theirs made by hand."""

import os
import shutil
from pathlib import Path
from typing import Any

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.study.design import Study
from sb3_tgrpo.study.methods import GRIDS
from sb3_tgrpo.train.config import TrainConfig

ENVS = ("LIBERO/libero_object-3-v0", "LIBERO/libero_object-9-v0")
TOY: dict[str, Any] = {
    "env": "vla_toy:Toy-v0", "checkpoint": "tiny", "lora": None, "eval_initial_states": 2, "eval_n_envs": 1, "device": "cpu",
    "total_timesteps": 40, "group_size": 2, "groups_per_update": 2, "parallel_groups": 1, "learning_rate": 1e-3,
    "n_envs": 2, "n_steps": 10,
    "update_threads": 1,
}  # fmt: skip
CELL = "cells/vla_toy_Toy/TGRPO/seed_0"


def study(grid: str = "table1", **changes: Any) -> Study:
    settings: dict[str, Any] = {"config": TrainConfig(), "envs": ENVS, "methods": GRIDS[grid].methods, "seeds": (0, 1)}
    return Study(grid, **(settings | changes))


def evaluation(outcomes: list[int], env: str = ENVS[0]) -> Evaluation:
    task = env.removeprefix("LIBERO/").removesuffix("-v0")
    # Successes take 10, 11, ... steps, failures 280.
    episodes = [EvalEpisode(task, k, 0, bool(won), 10 + k if won else 280, 0.0) for k, won in enumerate(outcomes)]
    return Evaluation("policy", [env], Decoding(), "light", {}, episodes)


def found(these: Study, outcomes: dict[tuple[str, str, int], list[int]]) -> dict[Any, Evaluation]:
    cells = {(cell.method, cell.env, cell.seed): cell for cell in these.cells()}
    return {cells[key]: evaluation(value, key[1]) for key, value in outcomes.items()}


def tuning_results(
    folder: Path,
    rates: dict[str, float],
    env: str = "LIBERO/libero_object-1-v0",
    missing: Any = (),
    mode: str = "T=1",
    overrides: dict[str, Any] | None = None,
    **settings: Any,
) -> Path:
    rows = {name: {"mean": score} for name, score in {"SFT": 0.9, **rates}.items()}
    greedy = {name: {"mean": 1 - row["mean"]} for name, row in rows.items()}
    common = {"envs": [env], "seeds": [0]}
    results = {**common, "modes": {mode: rows, "greedy": greedy}, "missing": list(missing)}
    RunFolder(folder).write("tuning/results.json", results)
    config = TrainConfig().updated({"env": env, **settings}).to_dict()
    record = {**common, "methods": list(rows), "overrides": overrides or {}, "config": config}
    RunFolder(folder).write("tuning/study.json", record)
    return folder


def toy(**changes: Any) -> TrainConfig:
    return TrainConfig().updated({**TOY, "eval_temperatures": (1.0,), **changes})


def study_arguments(folder: Path) -> list[str]:
    settings = [f"{name}={'none' if value is None else value}" for name, value in TOY.items()]
    given = [text for text in settings if not text.startswith(("env=", "checkpoint=", "total_timesteps="))]
    return ["study", "table1", "--tasks", TOY["env"], "--methods", "TGRPO", "--seeds", "0", "--checkpoint", "tiny",
            "--budget", "40", "--workers", "1", "--out", str(folder), "--set", *given]  # fmt: skip


def environ(pause: str) -> dict[str, str]:
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "VLA_TOY_PAUSE": pause,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }


def copy_of_tables(finished: Path, folder: Path, **record: Any) -> Path:
    """The finished study with other things in its record."""
    shutil.copytree(finished / "table1", folder / "table1")
    os.symlink(finished / "cells", folder / "cells")
    stored = RunFolder(folder).read("table1/study.json")
    RunFolder(folder).write("table1/study.json", {**stored, **record})
    return folder
