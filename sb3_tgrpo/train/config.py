"""
Everything the main job can be told, in one place: what is trained, from where, how, and how it is judged.

The numbers of the recipe are the defaults below. A configuration is stored as JSON in the run folder and can be used again.
"""

# ruff: noqa: RUF009  # setting() makes dataclass fields

import json
import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

Assets = Literal["auto", "full", "light"]
Payment = Literal["per_step", "latched", "potential"]
StopOn = Literal["success", "termination", "never"]
Starts = Literal["drawn", "stored"]
Algo = Literal["tgrpo", "sft", "ppo", "dpo", "tpo", "trpo", "recurrent_ppo"]

ALGORITHM_NAMES: dict[str, str] = {
    "tgrpo": "TGRPO", "sft": "The start policy", "ppo": "PPO", "dpo": "DPO", "tpo": "TPO", "trpo": "TRPO",
    "recurrent_ppo": "RecurrentPPO",
}  # fmt: skip
"""By ``algo``, as people read them."""

START_FOLDER = Path(__file__).parents[1] / "data" / "start"


def setting(default: Any, text: str) -> Any:
    """A field with its description, which is also the help of its flag."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TaskConfig:
    """What is trained on."""

    env: str = setting("LIBERO/libero_object-8-v0", "Gymnasium id of the task")
    assets: Assets | None = setting(None, "assets; none: those that the start policy was trained on")
    image_size: int | None = setting(None, "pixels; none: those of the checkpoint's image recipe")
    reward: str = setting("shipped", "'shipped', 'sparse', or a path to a specification of this task (.json)")
    payment: Payment = setting("latched", "how the reward's level is paid")
    starts: Starts = setting("drawn", "training starts: drawn by LIBERO's sampler, or the stored ones")
    start_noise: float = setting(0.0, "metres by which starts are widened, drawn ones and the evaluation's")
    joint_noise: float = setting(0.02, "radians by which the arm's joints vary in drawn starts, as in the stored ones")
    max_episode_steps: int | None = setting(
        None, "step limit in training; none: the suite's, except 150 for a tiny policy on LIBERO-Object"
    )


@dataclass(frozen=True)
class StartConfig:
    """Where the policy starts: a checkpoint, or demonstrations and supervised fine-tuning (``--from-scratch``)."""

    checkpoint: str | None = setting(None, "start policy: folder, hub id or 'tiny'; none: the one that ships")
    from_scratch: bool = setting(False, "collect demonstrations and train the start policy first")
    lora: str | None = setting(
        "auto", "adapter: 'language', 'upstream', none for all weights; auto: none for tiny, else language"
    )
    quantization: Literal["4bit"] | None = setting(None, "the language model in 4 bits, under an adapter (CUDA, bitsandbytes)")
    demos: int = setting(9, "demonstrations; few, because what limits the start is to be data, not training")
    expert: Literal["scripted", "smooth"] = setting("smooth", "who demonstrates")
    dart: float = setting(0.15, "standard deviation of executed, unrecorded noise (DART)")
    pushes: float = setting(0.02, "probability per step of a push off the way, executed and not recorded")
    slips: float = setting(0.004, "the same of a gripper that does the opposite for a while")
    detour: float = setting(0.0, "metres by which the expert varies its ways")
    sft_steps: int = setting(1200, "updates of supervised fine-tuning")
    sft_learning_rate: float = setting(2e-3, "its peak learning rate")
    sft_batch_size: int = setting(32, "frames per update")
    sft_ema: float | None = setting(0.995, "decay of averaged weights")
    sft_min_range: float = setting(0.3, "action dimensions narrower than this count as constant")
    sft_symmetric: bool = setting(True, "action ranges symmetric about 0, so that one bin is exactly 0")
    sft_validation: float = setting(0.1, "share of the demonstrations held out")
    action_bins: int = setting(32, "bins per action dimension of the tiny policy")
    start_seed: int = setting(1000, "seed of demonstrations and fine-tuning, the same for all runs")


@dataclass(frozen=True)
class AlgorithmConfig:
    """How it is trained: the arguments of TGRPO, which other methods share as far as they have them."""

    algo: Algo = setting("tgrpo", "what trains; sft: nothing, the start policy stays as it is")
    total_timesteps: int = setting(40_000, "environment steps that count")
    learning_rate: float = setting(1e-4, "of AdamW, constant")
    group_size: int = setting(8, "trajectories from one start")
    groups_per_update: int = setting(2, "groups sampled for one update")
    parallel_groups: int = setting(2, "groups played at once; their halves take turns (simulators: this times group_size)")
    stop_on: StopOn = setting("never", "when a group ends")
    temperature: float = setting(1.0, "sampling temperature")
    alpha_step: float = setting(0.3, "weight of the step level")
    alpha_traj: float = setting(0.7, "weight of the trajectory level")
    compare_ended: bool = setting(False, "members that have ended stay in the step level's comparisons")
    gamma_traj: float = setting(1.0, "discount of the trajectory level; below 1 the faster of two successes is preferred")
    outcome_reward: Literal["success", "return"] | None = setting(None, "one reward per trajectory (GRPO; stop_on never)")
    kl_coef: float = setting(0.0, "weight of the KL to the start policy")
    clip_range: float = setting(0.3, "bound on the ratio")
    n_epochs: int = setting(3, "passes over the groups")
    batch_size: int | None = setting(256, "steps per optimizer step; none: one group")
    micro_batch_size: int | None = setting(128, "steps per forward pass: memory, not the result")
    max_grad_norm: float = setting(1.0, "bound on the gradient's norm")
    target_kl: float | None = setting(0.08, "end an update beyond 1.5 times this KL")


@dataclass(frozen=True)
class BaselineConfig:
    """What other methods than TGRPO have beside the arguments that they share with it."""

    beta: float = setting(0.1, "dpo, tpo: how far the policy may go from the start policy")
    n_envs: int = setting(8, "ppo and references: environments at once, each a process")
    n_steps: int = setting(256, "ppo and references: steps per environment and rollout, about")
    minibatch_size: int = setting(256, "ppo and references: steps per optimizer step and forward pass")
    gamma: float = setting(0.99, "ppo and references: discount")
    gae_lambda: float = setting(0.95, "ppo and references: decay of the advantage estimate")
    vf_coef: float = setting(0.5, "ppo: weight of the value loss")
    ent_coef: float = setting(0.0, "ppo: weight of the entropy")


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
    """How it is judged: the same stored starts before and after, and only the last policy."""

    eval_starts: int = setting(50, "stored starts, from the first")
    eval_episodes: int = setting(1, "episodes per start where actions are sampled; greedily they would all be the same")
    eval_temperatures: tuple[float, ...] = setting((0.0, 1.0), "temperatures; 0 is greedy")
    eval_workers: int = setting(8, "episodes played at once; more than cores, so that simulators and policy take turns")


def _leaves(config: Any, where: str = "") -> list[tuple[str, str, Any]]:
    found = []
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            found += _leaves(value, f"{item.name}.")
        else:
            found.append((where, item.name, value))
    return found


@dataclass(frozen=True)
class TrainConfig:
    """
    A whole run.

    :raises ValueError: for a value out of range, naming it.
    """

    task: TaskConfig = TaskConfig()
    start: StartConfig = StartConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    baseline: BaselineConfig = BaselineConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = setting(0, "of starts, sampling and the order of minibatches")
    device: str = setting("auto", "auto, cpu or cuda")
    threads: int = setting(1, "threads of the policy on the CPU")
    update_threads: int | None = setting(None, "the same of updates, for which simulators wait; none: the cores, 4 at most")
    workers: int = setting(2, "processes that collect demonstrations")
    gradient_checkpointing: bool = setting(False, "recompute layers in the backward pass: less memory, a third more time")
    save_every: int = setting(1, "updates between checkpoints to resume from")
    wandb: str | None = setting(None, "Weights & Biases project to log to as well")

    def __post_init__(self) -> None:
        for where, name, value in _leaves(self):
            if name in _POSITIVE and value is not None and not value > 0:
                raise ValueError(f"{where}{name} must be positive, got {value}.")
            if name in _NOT_NEGATIVE and not value >= 0:
                raise ValueError(f"{where}{name} must not be negative, got {value}.")
        if self.algorithm.group_size < 2:
            raise ValueError(f"group_size={self.algorithm.group_size}: a group compares its members, so it needs at least 2.")
        if not 0.0 < self.algorithm.gamma_traj <= 1.0:
            raise ValueError(f"gamma_traj={self.algorithm.gamma_traj} must be above 0 and at most 1.")
        if self.algorithm.groups_per_update % self.algorithm.parallel_groups != 0:
            raise ValueError(
                f"groups_per_update={self.algorithm.groups_per_update} must be a multiple of "
                f"parallel_groups={self.algorithm.parallel_groups}."
            )
        if self.algorithm.algo in ("dpo", "tpo") and self.algorithm.stop_on != "never":
            raise ValueError(
                f"algo={self.algorithm.algo!r} compares successes with failures; a member that is cut short is neither: set "
                f"stop_on='never' (now {self.algorithm.stop_on!r})."
            )
        # TGRPO refuses these as well, but only after the start policy has been evaluated.
        if self.algorithm.outcome_reward is not None and (self.algorithm.alpha_step, self.algorithm.stop_on) != (0.0, "never"):
            raise ValueError(
                f"outcome_reward={self.algorithm.outcome_reward!r} rewards whole trajectories: set alpha_step=0 (now "
                f"{self.algorithm.alpha_step:g}), alpha_traj=1 and stop_on='never' (now {self.algorithm.stop_on!r})."
            )
        if self.start.lora not in ("auto", "language", "upstream", None):
            raise ValueError(f"lora={self.start.lora!r} is unknown: choose 'language', 'upstream', 'auto' or none.")
        if self.start.from_scratch and self.start.checkpoint is not None:
            raise ValueError(f"from_scratch trains a start policy of its own: leave out checkpoint={self.start.checkpoint!r}.")
        temperatures = self.evaluation.eval_temperatures
        if not temperatures or min(temperatures) < 0 or len(set(temperatures)) < len(temperatures):
            raise ValueError(f"eval_temperatures={temperatures} must be one or more different numbers, none below 0.")
        if self.algorithm.algo in ("trpo", "recurrent_ppo") and set(temperatures) - {0.0, 1.0}:
            raise ValueError(f"eval_temperatures={temperatures}: the policy of {self.algorithm.algo} has none but 0 and 1.")
        if self.task.starts == "stored" and self.task.start_noise:
            raise ValueError(f"start_noise={self.task.start_noise} widens drawn starts: leave it out with starts='stored'.")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, by section."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "the configuration") -> "TrainConfig":
        """
        :param values: as :meth:`to_dict` gives them; what is missing has its default.
        :param source: named in errors.
        :raises ValueError: for an unknown key or a value of the wrong type, naming the valid ones.
        """
        return _build(cls, values, source, "")

    def updated(self, flat: Mapping[str, Any]) -> "TrainConfig":
        """
        :param flat: new values by field name; names are unique over all sections.
        :return: a changed copy.
        :raises ValueError: for an unknown name.
        """
        known = {name for _, name, _ in _leaves(self)}
        if unknown := sorted(set(flat) - known):
            raise ValueError(f"Unknown settings {unknown}. Available: {', '.join(sorted(known))}.")
        sections: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if is_dataclass(value) and not isinstance(value, type):
                mine = {inner.name: flat[inner.name] for inner in fields(value) if inner.name in flat}
                sections[item.name] = replace(value, **mine)
            elif item.name in flat:
                sections[item.name] = flat[item.name]
        return replace(self, **sections)


_POSITIVE = {
    "demos", "sft_steps", "sft_learning_rate", "sft_batch_size", "action_bins", "total_timesteps", "learning_rate",
    "groups_per_update", "parallel_groups", "temperature", "clip_range", "n_epochs", "batch_size", "micro_batch_size",
    "max_grad_norm", "target_kl", "eval_starts", "eval_episodes", "eval_workers", "threads", "update_threads", "workers",
    "save_every", "image_size", "max_episode_steps", "beta", "n_envs", "n_steps", "minibatch_size", "gamma", "gae_lambda",
}  # fmt: skip
_NOT_NEGATIVE = {
    "alpha_step", "alpha_traj", "kl_coef", "start_noise", "joint_noise", "dart", "pushes", "slips", "detour", "sft_min_range",
    "sft_validation", "seed", "start_seed", "vf_coef", "ent_coef",
}  # fmt: skip

BUDGETS: dict[str, TrainConfig] = {
    "default": TrainConfig(),
    "long": TrainConfig(algorithm=AlgorithmConfig(total_timesteps=600_000)),
}
"""Recipes by name: ``default`` for minutes on two cores, ``long`` for hours."""


def unused_settings(config: TrainConfig) -> set[str]:
    """Settings of the algorithms that the one of this configuration does not use. ``algo``, which tells it, is one."""
    names = {item.name for section in (AlgorithmConfig, BaselineConfig) for item in fields(section)}
    return names - USED_SETTINGS[config.algorithm.algo]


def check_used(settings: Iterable[str], method: str, config: TrainConfig) -> None:
    """
    :param settings: names of what is to be changed.
    :param method: named in the error.
    :param config: what it has.
    :raises ValueError: if it does not use one of them, which would then silently do nothing.
    """
    if unused := sorted(set(settings) & unused_settings(config)):
        has = ", ".join(sorted(USED_SETTINGS[config.algorithm.algo])) or "none, being the start policy"
        raise ValueError(f"{method} does not use {', '.join(unused)}. Its settings: {has}.")


def load_config(path: str | os.PathLike[str]) -> TrainConfig:
    """
    :param path: JSON file, such as a run folder's ``config.json``.
    :raises ValueError: if there is none, it is not JSON, or not a configuration.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path} can't be read as a configuration: {error.strerror}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    return TrainConfig.from_dict(values, str(path))


def shipped_start() -> Path:
    """
    Folder of the start policy that ships with the package.

    :raises FileNotFoundError: if this installation has none.
    """
    if not (START_FOLDER / "config.json").is_file():
        raise FileNotFoundError(
            "This installation has no start policy: pass --checkpoint FOLDER, or --from-scratch to train one (with "
            "demonstrations that a scripted expert gives)."
        )
    return START_FOLDER


def difference(first: Any, second: Any, prefix: str = "") -> list[str]:
    """Names of the settings in which two :meth:`TrainConfig.to_dict` differ, with both values."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = sorted({*first, *second})
        return [text for key in keys for text in difference(first.get(key), second.get(key), f"{prefix}{key}.")]
    return [] if first == second else [f"{prefix[:-1]} was {first!r}, is {second!r}"]


def flags() -> list[tuple[str, str, Any, Any, str]]:
    """Section, name, type, default and help of every setting; those outside the sections belong to ``run``."""
    found = []
    sections: list[tuple[str, Any]] = [(f.name, type(f.default)) for f in fields(TrainConfig) if is_dataclass(f.default)]
    for section, owner in [*sections, ("run", TrainConfig)]:
        hints = get_type_hints(owner)
        for item in fields(owner):
            if "help" in item.metadata:
                found.append((section, item.name, hints[item.name], item.default, item.metadata["help"]))
    return found


def parse_setting(name: str, text: str) -> Any:
    """
    A setting's value from text, JSON or a plain word.

    :param name: of the setting; names are unique over all sections.
    :param text: such as ``0.3``, ``never`` or ``none``.
    :raises ValueError: if there is no such setting, or it can't have this value.
    """
    hints = {known: hint for _, known, hint, *_ in flags()}
    if name not in hints:
        raise ValueError(f"Unknown setting {name!r}. Available: {', '.join(sorted(hints))}.")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None if text.lower() == "none" else text
    return _checked(hints[name], value, name)


# ---------------------------------------------------------------------- reading


def _build(cls: Any, values: Any, source: str, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{source}: {where or 'the top level'} must be an object, got {values!r}.")
    hints = get_type_hints(cls)
    if unknown := sorted(set(values) - set(hints)):
        raise ValueError(f"{source}: unknown {where}{unknown[0]}. Available: {', '.join(hints)}.")
    arguments = {}
    for name, value in values.items():
        if is_dataclass(hints[name]):
            arguments[name] = _build(hints[name], value, source, f"{where}{name}.")
        else:
            arguments[name] = _checked(hints[name], value, f"{source}: {where}{name}")
    return cls(**arguments)


def _checked(hint: Any, value: Any, what: str) -> Any:
    """The value as the type asks for it."""
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        hint = next(option for option in options if option is not type(None))
        origin, options = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{what} must be one of {', '.join(map(repr, options))}, got {value!r}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{what} must be a list, got {value!r}.")
        return tuple(_checked(options[0], item, what) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{what} must be of type {hint.__name__}, got {value!r}.")
    return value
