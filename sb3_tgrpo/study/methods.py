"""The methods that studies compare, by name, and named grids of them."""

import re
from dataclasses import dataclass
from typing import Any

from sb3_tgrpo.evaluation.results import task_name
from sb3_tgrpo.train.config import TrainConfig, check_used, parse_setting

BASE = "SFT"
"""The base policy as it is: what everything is compared with, so part of every grid."""


@dataclass(frozen=True)
class Grid:
    """
    A named study.

    :param methods: Names of methods, as for :func:`settings_of`.
    :param n_tasks: Number of tasks by default, the first of :data:`TASKS`.
    :param axis: Name of the number or choice that the methods vary; empty if they vary several.
    """

    methods: tuple[str, ...]
    description: str
    n_tasks: int = 1
    axis: str = ""


ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
GROUP_SIZES = (2, 4, 6, 8)
PAYMENTS = ("per_step", "latched", "potential")
RATES = (0.3, 1.0, 3.0)
RECIPE_VARIANTS = (
    "TGRPO-groups_per_update=4", "TGRPO-groups_per_update=8", "TGRPO-batch_size=512", "TGRPO-N=4", "TGRPO@3",
    "TGRPO-target_kl=0.02", "TGRPO-temperature=0.7", "TGRPO-kl_coef=0.02", "TGRPO-payment=potential",
)  # fmt: skip
TUNED = ("PPO", "GRPO", "TGRPO")
TUNED_BY = "T=1"
"""Decoding by which tuned learning rates are chosen."""
TASKS = ("libero_object-9", "libero_object-3")

SETTINGS: dict[str, dict[str, Any]] = {
    BASE: {"algo": "sft"},
    "PPO": {"algo": "ppo"},
    "GRPO": {"alpha_step": 0.0, "alpha_traj": 1.0, "outcome_reward": "success", "stop_on": "never"},
    "TGRPO": {},
    "TGRPO-step": {"alpha_step": 1.0, "alpha_traj": 0.0},
    "TGRPO-trajectory": {"alpha_step": 0.0, "alpha_traj": 1.0},
    "TGRPO-success": {"stop_on": "success"},
    "TGRPO-never": {"stop_on": "never"},
    "TGRPO-sparse": {"reward": "sparse"},
    "DPO": {"algo": "dpo", "stop_on": "never"},
    "TPO": {"algo": "tpo", "stop_on": "never"},
    "TRPO": {"algo": "trpo"},
    "RecurrentPPO": {"algo": "recurrent_ppo"},
}
"""What each method changes of the recipe; methods named ``TGRPO-...`` change what TGRPO has in a study."""

METHODS = (
    *SETTINGS,
    *(f"TGRPO-payment={payment}" for payment in PAYMENTS),
    *(f"TGRPO-alpha={alpha:g}" for alpha in ALPHAS),
    *(f"TGRPO-N={n}" for n in GROUP_SIZES),
)
"""Names that are or may be part of a grid; :func:`settings_of` takes more."""

GRIDS: dict[str, Grid] = {
    "table1": Grid((BASE, "PPO", "GRPO", "TGRPO"), "the main comparison (paper, Table I)", 2),
    "preferences": Grid((BASE, "DPO", "TPO", "TGRPO"), "the paper's own baselines: DPO and GRAPE's objective (Table I)"),
    "ablation": Grid(
        (BASE, "TGRPO", "TGRPO-step", "TGRPO-trajectory", "TGRPO-success", "TGRPO-never", "TGRPO-sparse"),
        "one level alone, the stop rule, the sparse reward (paper, Table II)",
    ),
    "payment": Grid((BASE, *(f"TGRPO-payment={payment}" for payment in PAYMENTS)), "payment of the reward", axis="payment"),
    "alpha": Grid((BASE, *(f"TGRPO-alpha={alpha:g}" for alpha in ALPHAS)), "alpha_1 (paper, Fig. 5)", axis="alpha_1"),
    "group-size": Grid((BASE, *(f"TGRPO-N={n}" for n in GROUP_SIZES)), "N (paper, Fig. 5)", axis="N"),
    "recipe": Grid(
        (BASE, "TGRPO", *RECIPE_VARIANTS), "the default recipe, one setting changed at a time (docs/results/main_job.md)"
    ),
    "references": Grid((BASE, "TGRPO", "TRPO", "RecurrentPPO"), "learners that are no VLA and start from random weights"),
    "tuning": Grid(
        (BASE, *(f"{method}@{rate:g}" for method in TUNED for rate in RATES)),
        "learning rates, as many trials for each method, on a task outside the tables",
    ),
}


@dataclass(frozen=True)
class MethodName:
    """
    A method's name, taken apart: ``GRPO-kl_coef=0.04@3`` is GRPO, one change and three times the learning rate.

    :param base: Key of :data:`SETTINGS`.
    :param changes: Names and values of settings, as text.
    :param factor: Factor of the learning rate, as text; empty without one.
    """

    text: str
    base: str
    changes: tuple[tuple[str, str], ...]
    factor: str

    @classmethod
    def of(cls, method: str) -> "MethodName":
        """Take a name apart; an unknown one is refused."""
        name, _, factor = method.partition("@")
        base, *changes = re.split(r"-(?=[A-Za-z_]+=)", name)
        if base not in SETTINGS or "/" in name:  # the name is also that of a folder
            raise ValueError(
                f"Unknown method {method!r}. Available: {', '.join(METHODS)}, each also as NAME-SETTING=VALUE and NAME@FACTOR."
            )
        pairs = [change.partition("=") for change in changes]
        return cls(method, base, tuple((key, text) for key, _, text in pairs), factor)

    @property
    def lineage(self) -> tuple[str, ...]:
        """The methods whose settings this one changes."""
        return ("TGRPO", self.base) if self.base.startswith("TGRPO-") else (self.base,)

    def changed(self, config: TrainConfig) -> dict[str, Any]:
        """Settings that the changes and the factor in the name stand for; refuses what the method does not use."""
        settings: dict[str, Any] = {}
        try:
            for key, text in self.changes:
                change = _change(key, text, config)
                if twice := sorted(set(change) & set(settings)):
                    raise ValueError(f"{', '.join(twice)} is set twice: leave one out.")
                settings |= change
            if self.factor:
                rate = settings.get("learning_rate", config.algorithm.learning_rate)
                # Rounded, so that three times 1e-4 is what somebody writes as 3e-4.
                settings["learning_rate"] = float(f"{rate * _factor(self.factor):.12g}")
            check_used(settings, self.base, config)
        except ValueError as error:
            raise ValueError(f"Method {self.text!r}: {error}") from error
        return settings


def settings_of(method: str, config: TrainConfig) -> dict[str, Any]:
    """
    What a method changes in the configuration.

    :param method: Name in :data:`METHODS`, or one with other settings: ``NAME-N=<group size>``, ``NAME-alpha=<alpha_1>``,
        ``NAME-<setting>=<value>`` with a setting of ``sb3-tgrpo train``, several one after the other. ``@<factor>`` at the end
        multiplies the learning rate.
    :param config: Configuration to change.
    :raises ValueError: If there is no such method, or it has no such setting.
    """
    name = MethodName.of(method)
    settings = SETTINGS[name.base]
    return settings | name.changed(config.updated(settings))


def _change(key: str, text: str, config: TrainConfig) -> dict[str, Any]:
    if key == "N":
        return _group_size(text, config)
    if key == "alpha":
        alpha = parse_setting("alpha_step", text)
        return {"alpha_step": alpha, "alpha_traj": round(1.0 - alpha, 6)}
    return {key: parse_setting(key, text)}


def _factor(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("what follows @ multiplies the learning rate, so it must be a number.") from None


def _group_size(text: str, config: TrainConfig) -> dict[str, Any]:
    """As many trajectories in an update and as many simulators as before, about: only their grouping changes."""
    if not text.isdigit() or int(text) < 2:
        raise ValueError(f"N={text} must be a whole number, 2 or more: a group compares its members.")
    size, usual = int(text), config.algorithm
    parallel = max(1, usual.parallel_groups * usual.group_size // size)
    rounds = max(1, round(usual.groups_per_update * usual.group_size / (size * parallel)))
    return {"group_size": size, "parallel_groups": parallel, "groups_per_update": rounds * parallel}


def short_name(env: str) -> str:
    """``libero_object-3`` for ``LIBERO/libero_object-3-v0``; of other ids what is fit for a folder."""
    return re.sub("[/:]", "_", task_name(env).removesuffix("-v0"))
