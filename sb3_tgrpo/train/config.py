"""
All settings of a training run, in one place: what is trained, from where, how, and how it is judged.

The defaults below are the numbers of the recipe. A run folder keeps its configuration as JSON, which can be used again.
"""

# ruff: noqa: RUF009  # setting() makes dataclass fields

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_type_hints

from sb3_tgrpo.defaults import ALPHA_STEP, ALPHA_TRAJ, MAX_GRAD_NORM
from sb3_tgrpo.settings import check_settings, setting, settings_of, typed

Assets = Literal["auto", "full", "light"]
Payment = Literal["per_step", "latched", "potential"]
StopOn = Literal["success", "termination", "never"]
InitialStates = Literal["drawn", "stored"]
Algo = Literal["tgrpo", "sft", "ppo", "dpo", "tpo", "trpo", "recurrent_ppo"]

ALGORITHM_NAMES: dict[str, str] = {
    "tgrpo": "TGRPO", "sft": "The base policy", "ppo": "PPO", "dpo": "DPO", "tpo": "TPO", "trpo": "TRPO",
    "recurrent_ppo": "RecurrentPPO",
}  # fmt: skip
"""By ``algo``, as people read them."""

START_FOLDER = Path(__file__).parents[1] / "data" / "start"


RENAMED = {
    "start": "base_policy",
    "starts": "initial_states",
    "start_seed": "base_seed",
    "eval_starts": "eval_initial_states",
    "eval_workers": "eval_n_envs",
    "sft_ema": "sft_ema_decay",
    "sft_validation": "sft_validation_fraction",
}
"""Today's names of sections and settings by their names of version 0.1, which configurations may still use."""


@dataclass(frozen=True)
class TaskConfig:
    """What is trained on."""

    env: str = setting("LIBERO/libero_object-8-v0", "Gymnasium id of the task, or LIBERO's short name (libero_object-8)")
    assets: Assets | None = setting(None, "assets; none: as the base policy was trained")
    image_size: int | None = setting(None, "pixels; none: as the checkpoint was trained", positive=True)
    reward: str = setting("shipped", "'shipped', 'sparse', or a path to a specification of this task (.json)")
    payment: Payment = setting("latched", "how the level of the reward becomes reward")
    initial_states: InitialStates = setting("drawn", "training's initial states: from LIBERO's sampler, or the stored ones")
    start_noise: float = setting(0.0, "metres by which initial states are widened, drawn ones and the evaluation's", low=0)
    joint_noise: float = setting(0.02, "radians by which the arm's joints vary in drawn initial states", low=0)
    max_episode_steps: int | None = setting(
        None, "step limit in training; none: the suite's, except 150 for a tiny policy on LIBERO-Object", positive=True
    )


@dataclass(frozen=True)
class BasePolicyConfig:
    """The base policy: a checkpoint, or demonstrations and supervised fine-tuning (``--from-scratch``)."""

    checkpoint: str | None = setting(None, "base policy: folder, hub id or 'tiny'; none: the one that ships")
    from_scratch: bool = setting(False, "collect demonstrations and train the base policy first")
    lora: str | None = setting(
        "auto", "adapter: 'language', 'upstream', none for all weights; auto: none for tiny, else language"
    )
    unnorm_key: str | None = setting(None, "action statistics to decode with; none: the only ones, or the suite's")
    quantization: Literal["4bit"] | None = setting(None, "the language model in 4 bits, under an adapter (CUDA, bitsandbytes)")
    demos: int = setting(9, "demonstrations; few, because data is to limit the base policy, not training", positive=True)
    expert: Literal["scripted", "smooth"] = setting("smooth", "expert that demonstrates")
    dart: float = setting(0.15, "standard deviation of executed, unrecorded noise (DART)", low=0)
    pushes: float = setting(0.02, "probability per step of a push off the way, executed and not recorded", low=0)
    slips: float = setting(0.004, "the same of a gripper that does the opposite for a while", low=0)
    detour: float = setting(0.0, "metres by which the expert varies its ways", low=0)
    sft_steps: int = setting(1200, "updates of supervised fine-tuning", positive=True)
    sft_learning_rate: float = setting(2e-3, "its peak learning rate", positive=True)
    sft_batch_size: int = setting(32, "frames per update", positive=True)
    sft_ema_decay: float | None = setting(0.995, "decay of averaged weights", low=0, below=1)
    sft_min_range: float = setting(0.3, "action dimensions narrower than this count as constant", low=0)
    sft_symmetric: bool = setting(True, "action ranges symmetric about 0, so that one bin is exactly 0")
    sft_validation_fraction: float = setting(0.1, "share of the demonstrations held out", low=0, below=1)
    action_bins: int = setting(32, "bins per action dimension of the tiny policy", positive=True)
    base_seed: int = setting(1000, "seed of demonstrations and fine-tuning, the same for all runs", low=0)


@dataclass(frozen=True)
class AlgorithmConfig:
    """How it is trained: the arguments of TGRPO, which other methods share as far as they have them."""

    algo: Algo = setting("tgrpo", "what trains; sft: nothing, the base policy stays as it is")
    total_timesteps: int = setting(40_000, "environment steps that count", positive=True)
    learning_rate: float = setting(1e-4, "learning rate of AdamW, constant", positive=True)
    group_size: int = setting(8, "members of a group, which share an initial state", low=2)
    groups_per_update: int = setting(2, "groups sampled for one update", positive=True)
    parallel_groups: int = setting(
        2, "groups played at once; their halves take turns (simulators: this times group_size)", positive=True
    )
    stop_on: StopOn = setting("never", "when a group ends")
    temperature: float = setting(1.0, "sampling temperature", positive=True)
    alpha_step: float = setting(ALPHA_STEP, "weight of the step level", low=0)
    alpha_traj: float = setting(ALPHA_TRAJ, "weight of the trajectory level", low=0)
    compare_ended: bool = setting(False, "members that have ended stay in the step level's comparisons")
    gamma_traj: float = setting(
        1.0, "discount of the trajectory level; below 1 the faster of two successes is preferred", positive=True, high=1
    )
    outcome_reward: Literal["success", "return"] | None = setting(None, "one reward per trajectory (GRPO; stop_on never)")
    kl_coef: float = setting(0.0, "weight of the KL to the base policy", low=0)
    clip_range: float = setting(0.3, "bound on the ratio", positive=True)
    n_epochs: int = setting(3, "passes over the groups", positive=True)
    batch_size: int | None = setting(256, "steps per optimizer step; none: one group", positive=True)
    micro_batch_size: int | None = setting(128, "steps per forward pass: memory, not the result", positive=True)
    max_grad_norm: float = setting(MAX_GRAD_NORM, "bound on the gradient's norm", positive=True)
    target_kl: float | None = setting(0.08, "KL, 1.5 times which ends an update", positive=True)


@dataclass(frozen=True)
class BaselineConfig:
    """What other methods than TGRPO have beside the arguments that they share with it."""

    beta: float = setting(0.1, "dpo, tpo: how far the policy may go from the base policy", positive=True)
    n_envs: int = setting(8, "ppo and references: environments at once, each a process", positive=True)
    n_steps: int = setting(256, "ppo and references: steps per environment and rollout, about", positive=True)
    minibatch_size: int = setting(256, "ppo and references: steps per optimizer step and forward pass", positive=True)
    gamma: float = setting(0.99, "ppo and references: discount", positive=True)
    gae_lambda: float = setting(0.95, "ppo and references: decay of the advantage estimate", positive=True)
    vf_coef: float = setting(0.5, "ppo: weight of the value loss", low=0)
    ent_coef: float = setting(0.0, "ppo: weight of the entropy", low=0)


_GROUPS = ("group_size", "groups_per_update", "parallel_groups", "stop_on")
_UPDATE = ("learning_rate", "temperature", "n_epochs", "max_grad_norm", "target_kl")
_ROLLOUT = ("n_envs", "n_steps", "minibatch_size", "gamma", "gae_lambda")
_OBJECTIVE = ("alpha_step", "alpha_traj", "compare_ended", "gamma_traj", "outcome_reward", "kl_coef", "clip_range")

USED_SETTINGS: dict[str, frozenset[str]] = {
    "sft": frozenset(),
    "tgrpo": frozenset({"total_timesteps", *_GROUPS, *_UPDATE, *_OBJECTIVE, "batch_size", "micro_batch_size"}),
    **dict.fromkeys(
        ("dpo", "tpo"), frozenset({"total_timesteps", *_GROUPS, *_UPDATE, "batch_size", "micro_batch_size", "beta"})
    ),
    "ppo": frozenset({"total_timesteps", *_UPDATE, *_ROLLOUT, "clip_range", "vf_coef", "ent_coef"}),
    # From nothing, a learning rate for fine-tuning leads nowhere: they keep their authors' rates and what belongs to them.
    **dict.fromkeys(("trpo", "recurrent_ppo"), frozenset({"total_timesteps", *_ROLLOUT})),
}
"""What each ``algo`` reads of the sections ``algorithm`` and ``baseline``; the others do nothing to it."""


@dataclass(frozen=True)
class EvaluationConfig:
    """How it is judged: the same stored initial states before and after, and only the last policy."""

    eval_initial_states: int = setting(50, "stored initial states, from the first", positive=True)
    eval_episodes: int = setting(
        1, "episodes per initial state where actions are sampled; greedy ones would all be the same", positive=True
    )
    eval_temperatures: tuple[float, ...] = setting((0.0, 1.0), "temperatures; 0 is greedy", low=0)
    eval_n_envs: int = setting(
        8, "episodes played at once; more than cores, so that simulators and policy take turns", positive=True
    )


@dataclass(frozen=True)
class TrainConfig:
    """
    A whole run.

    :raises ValueError: For a value of the wrong type or out of range, or settings that cancel each other.
    """

    task: TaskConfig = TaskConfig()
    base_policy: BasePolicyConfig = BasePolicyConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    baseline: BaselineConfig = BaselineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = setting(0, "seed of initial states, sampling and the order of minibatches", low=0)
    device: str = setting("auto", "auto, cpu, cuda, cuda:1: whatever torch knows")
    threads: int = setting(1, "threads of the policy on the CPU", positive=True)
    update_threads: int | None = setting(
        None, "threads of updates, for which simulators wait; none: the cores, 4 at most", positive=True
    )
    workers: int = setting(2, "processes that collect demonstrations", positive=True)
    gradient_checkpointing: bool = setting(False, "recompute layers in the backward pass: less memory, a third more time")
    save_every: int = setting(1, "updates between checkpoints to resume from", positive=True)
    wandb: str | None = setting(None, "Weights & Biases project to log to as well")

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_algorithm(self.algorithm)
        self._check_base_policy(self.base_policy)
        temperatures = self.evaluation.eval_temperatures
        if not temperatures or len(set(temperatures)) < len(temperatures):
            raise ValueError(f"eval_temperatures={temperatures} must be one or more different numbers.")
        if self.algorithm.algo in ("trpo", "recurrent_ppo") and set(temperatures) - {0.0, 1.0}:
            raise ValueError(f"eval_temperatures={temperatures}: the policy of {self.algorithm.algo} has none but 0 and 1.")
        if self.task.initial_states == "stored" and self.task.start_noise:
            raise ValueError(
                f"start_noise={self.task.start_noise} widens drawn initial states: leave it out with initial_states='stored'."
            )

    @staticmethod
    def _check_algorithm(algorithm: AlgorithmConfig) -> None:
        """TGRPO refuses some of these as well, but only after the base policy has been evaluated."""
        if algorithm.groups_per_update % algorithm.parallel_groups != 0:
            raise ValueError(
                f"groups_per_update={algorithm.groups_per_update} must be a multiple of "
                f"parallel_groups={algorithm.parallel_groups}."
            )
        if algorithm.algo in ("dpo", "tpo") and algorithm.stop_on != "never":
            raise ValueError(
                f"algo={algorithm.algo!r} compares successes with failures; a member that is cut short is neither: set "
                f"stop_on='never' (now {algorithm.stop_on!r})."
            )
        if algorithm.outcome_reward is not None and (algorithm.alpha_step, algorithm.stop_on) != (0.0, "never"):
            raise ValueError(
                f"outcome_reward={algorithm.outcome_reward!r} rewards whole trajectories: set alpha_step=0 (now "
                f"{algorithm.alpha_step:g}), alpha_traj=1 and stop_on='never' (now {algorithm.stop_on!r})."
            )
        if algorithm.algo == "tgrpo" and not algorithm.alpha_step + algorithm.alpha_traj:
            raise ValueError("alpha_step=0, alpha_traj=0: all advantages would be 0 and nothing learned. Set one above 0.")

    @staticmethod
    def _check_base_policy(base: BasePolicyConfig) -> None:
        if base.lora not in ("auto", "language", "upstream", None):
            raise ValueError(f"lora={base.lora!r} is unknown: choose 'language', 'upstream', 'auto' or none.")
        if base.from_scratch and base.checkpoint is not None:
            raise ValueError(f"from_scratch trains a base policy of its own: leave out checkpoint={base.checkpoint!r}.")
        if base.quantization is not None and base.lora is None:
            raise ValueError(
                f"quantization={base.quantization!r}: weights in 4 bits can't be trained themselves. Set lora='language'."
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by section."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the configuration") -> "TrainConfig":
        """
        :param values: Values as :meth:`to_dict` gives them; a missing setting has its default.
        :param source: Origin of the values, for errors.
        :raises ValueError: For an unknown key or a value of the wrong type, naming the valid ones.
        """
        return _build(cls, values, source, "")

    def updated(self, flat: Mapping[str, Any]) -> "TrainConfig":
        """A copy with new values, by the settings' names, which are unique over all sections; refuses unknown names."""
        known = {name for _, name, *_ in flags()}
        if unknown := sorted(set(flat) - known):
            raise ValueError(f"Unknown settings {unknown}. Available: {', '.join(sorted(known))}.")
        sections: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if is_dataclass(value) and not isinstance(value, type):
                inside = {inner.name: flat[inner.name] for inner in fields(value) if inner.name in flat}
                sections[item.name] = replace(value, **inside)
            elif item.name in flat:
                sections[item.name] = flat[item.name]
        return replace(self, **sections)


BUDGETS: dict[str, TrainConfig] = {
    "default": TrainConfig(),
    "long": TrainConfig(algorithm=AlgorithmConfig(total_timesteps=600_000)),
}
"""Recipes by name: ``default`` for minutes on two cores, ``long`` for hours."""


def unused_settings(config: TrainConfig) -> set[str]:
    """Settings of the algorithms that a configuration's one does not use; ``algo`` itself is one of them."""
    names = {item.name for section in (AlgorithmConfig, BaselineConfig) for item in fields(section)}
    return names - USED_SETTINGS[config.algorithm.algo]


def check_used(settings: Iterable[str], method: str, config: TrainConfig) -> None:
    """Refuse to change settings, given by their names, that the method so called would silently not use."""
    if unused := sorted(set(settings) & unused_settings(config)):
        has = ", ".join(sorted(USED_SETTINGS[config.algorithm.algo])) or "none, being the base policy"
        raise ValueError(f"{method} does not use {', '.join(unused)}. Its settings: {has}.")
    given = {"checkpoint", "from_scratch", "lora", "unnorm_key", "quantization"}
    recipe = {item.name for item in fields(BasePolicyConfig)} - given
    if not config.base_policy.from_scratch and (unused := sorted(set(settings) & recipe)):
        raise ValueError(f"{', '.join(unused)}: settings of a base policy that is made first. Add from_scratch, or leave out.")


def load_config(path: str | os.PathLike[str]) -> TrainConfig:
    """
    Read a configuration.

    :param path: JSON file, such as a run folder's ``config.json``; settings that it does not name have their defaults.
    :raises ValueError: If the file can't be read, is not JSON, or names an unknown setting or a wrong value.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} can't be read as a configuration: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    return TrainConfig.from_dict(values, str(path))


def shipped_base_policy() -> Path:
    """Folder of the base policy that ships with the package; a ``FileNotFoundError`` if this installation has none."""
    if not (START_FOLDER / "config.json").is_file():
        raise FileNotFoundError(
            "This installation has no base policy: pass --checkpoint FOLDER, or --from-scratch to train one (with "
            "demonstrations of a scripted expert)."
        )
    return START_FOLDER


def flags() -> list[tuple[str, str, Any, Any, str]]:
    """Section, name, type, default and help of every setting; those outside the sections belong to ``run``."""
    sections: list[tuple[str, Any]] = [(f.name, type(f.default)) for f in fields(TrainConfig) if is_dataclass(f.default)]
    return [(section, *item) for section, owner in [*sections, ("run", TrainConfig)] for item in settings_of(owner)]


def parse_setting(name: str, text: str) -> Any:
    """The value of the setting ``name`` from text, JSON or a plain word; refuses one that the setting can't have."""
    hints = {known: hint for _, known, hint, *_ in flags()}
    if name not in hints:
        raise ValueError(f"Unknown setting {name!r}. Available: {', '.join(sorted(hints))}.")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None if text.lower() == "none" else text
    return typed(hints[name], value, name)


def _build(cls: Any, values: Any, source: str, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: {where or 'the top level'} must be an object, got {values!r}.")
    hints = get_type_hints(cls)
    values = {RENAMED.get(name, name): value for name, value in values.items()}
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"{source}: unknown {where}{unknown[0]}. Available: {', '.join(hints)}.")
    arguments = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            arguments[name] = _build(hints[name], value, source, f"{where}{name}.")
        else:
            arguments[name] = typed(hints[name], value, f"{source}: {where}{name}")
    return cls(**arguments)
