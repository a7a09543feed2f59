"""A study's design: which tasks, methods and seeds, and the configuration of each cell."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sb3_tgrpo.run_folder import RunFolder, differences, flat
from sb3_tgrpo.study.methods import BASE, SETTINGS, MethodName, short_name
from sb3_tgrpo.train.config import TrainConfig, check_used

CELLS = "cells"


@dataclass(frozen=True)
class Study:
    """
    What is to be run.

    :param grid: Name of the grid.
    :param config: Configuration that all cells have in common.
    :param methods: Names of methods, as for :func:`~sb3_tgrpo.study.methods.settings_of`.
    :param checkpoints: Base policies by Gymnasium id; other tasks have the configuration's.
    :param overrides: Settings by method, from tuning for instance. A method's variants have them too.
    :param tuning: Record of how these settings were found.
    :raises ValueError: If values do not fit together.
    """

    grid: str
    config: TrainConfig
    envs: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    checkpoints: Mapping[str, str] = field(default_factory=dict)
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    tuning: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        for name, values in (("tasks", self.envs), ("seeds", self.seeds), ("methods", self.methods)):
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={list(values)} must be one or more, all different.")
        if min(self.seeds) < 0:
            raise ValueError(f"seeds={list(self.seeds)} must be 0 or above.")
        if self.config.base_policy.from_scratch:
            raise ValueError(
                "All cells of a study have one base policy: make it first ('sb3-tgrpo sft', or 'sb3-tgrpo train "
                "--from-scratch', which leaves it in its run folder), then pass --checkpoint."
            )
        for what, names, known in (
            ("checkpoints", self.checkpoints, self.envs),
            ("settings", self.overrides, self.settable),
        ):
            if foreign := sorted(set(names) - set(known)):
                raise ValueError(f"{what} are given for {', '.join(foreign)}, not part of this study: {', '.join(known)}.")

    @property
    def settable(self) -> tuple[str, ...]:
        """Methods that settings may be given to: the study's methods, and the methods that these are variants of."""
        lineages = (name for method in self.methods for name in MethodName.of(method).lineage)
        return tuple(dict.fromkeys((BASE, "TGRPO", *self.methods, *lineages)))

    def checkpoint(self, env: str) -> str | None:
        """The base policy of a task; None for the one that ships."""
        return self.checkpoints.get(env, self.config.base_policy.checkpoint)

    def method_config(self, method: str, env: str, seed: int) -> TrainConfig:
        """The configuration of a cell; a method may not change what all methods of a study have in common."""
        common = self.config.updated({"env": env, "seed": seed, "checkpoint": self.checkpoint(env)})
        # A variant changes what its method has in this study, so the method's settings come before the variant's: three times
        # its learning rate, for instance, or another kl_coef than it was given.
        name, config = MethodName.of(method), common
        for known in dict.fromkeys((*name.lineage, method)):
            config = config.updated(SETTINGS[known] if known in name.lineage else name.changed(config))
            check_used(self.overrides.get(known, {}), known, config)
            config = config.updated(self.overrides.get(known, {}))
        if changed := differences(flat(_in_common(common)), flat(_in_common(config))):
            raise ValueError(
                f"{method} changes what all methods of a study have in common ({'; '.join(changed)}): the same base policy, "
                "seeds, evaluation and budget, and the task but for reward and payment. Set it for all of them (--set "
                "NAME=VALUE, --checkpoint, --tasks, --seeds, --budget), or leave it out."
            )
        return config

    def cells(self) -> "list[Cell]":
        """All cells, the base policy's first."""
        methods = [BASE, *(method for method in self.methods if method != BASE)]
        found = []
        for method in methods:
            for env in self.envs:
                for seed in self.seeds:
                    config = self.method_config(method, env, seed)
                    # alpha_1 = 0.3, for instance, may be what TGRPO has anyway: it is run once.
                    same = (name for name in MethodName.of(method).lineage if config == self.method_config(name, env, seed))
                    found.append(Cell(env, method, seed, config, next(same, method)))
        return found


def _in_common(config: TrainConfig) -> dict[str, Any]:
    """What no method may change: without it, a table would compare more than methods."""
    values = config.to_dict()
    task = {name: value for name, value in values["task"].items() if name not in ("reward", "payment")}
    budget = {"total_timesteps": values["algorithm"]["total_timesteps"]}
    return {"task": task, "algorithm": budget, **{name: values[name] for name in ("base_policy", "evaluation", "seed")}}


@dataclass(frozen=True)
class Cell:
    """One run of a study. ``folder_method`` is the method whose folder it has: of several equal ones the first."""

    env: str
    method: str
    seed: int
    config: TrainConfig
    folder_method: str

    @property
    def name(self) -> str:
        """Folder of the cell in the study's folder."""
        return f"{CELLS}/{short_name(self.env)}/{self.folder_method}/seed_{self.seed}"

    def __str__(self) -> str:
        return f"{self.folder_method}, {short_name(self.env)}, seed {self.seed}"


def is_finished(cell: Cell, root: RunFolder) -> bool:
    """Whether a cell has its results, in the folder of its studies."""
    return cell_results(cell, root) is not None


def cell_results(cell: Cell, root: RunFolder) -> dict[str, Any] | None:
    """Results of a cell, from the folder of its studies; None if it has none that can be read."""
    try:
        return root.read(f"{cell.name}/results.json")
    except ValueError:
        return None
