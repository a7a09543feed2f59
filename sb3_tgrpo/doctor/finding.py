"""What is checked, and what a check finds."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from sb3_tgrpo.openvla.checkpoint import Checkpoint
from sb3_tgrpo.rewards.facts.task_name import TaskName

if TYPE_CHECKING:
    from sb3_tgrpo.envs.libero.assets import Assets
    from sb3_tgrpo.envs.libero.env import LiberoEnv
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

Status = Literal["ok", "failed", "note", "not checked"]


@dataclass(frozen=True)
class Finding:
    """
    What a check found.

    :param check: Name of the check.
    :param status: Outcome; ``"note"`` is worth knowing, but no failure.
    :param found: Facts.
    :param remedy: What to do, if there is something to be done.
    """

    check: str
    status: Status
    found: str
    remedy: str = ""


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class MemoryPlan:
    """
    A training run to estimate the memory of. Each field is also a flag of ``sb3-tgrpo doctor``.

    :raises ValueError: For a number that is not a positive integer.
    """

    group_size: int = _setting(4, "members of a group")
    parallel_groups: int = _setting(1, "groups that play at once")
    micro_batch_size: int | None = _setting(8, "steps per backward pass; none: the whole rollout")
    n_steps: int | None = _setting(None, "steps per member and update; none: the suite's step limit")
    lora: Literal["language", "upstream"] | None = _setting("language", "adapter; none: full fine-tuning")
    dtype: Literal["float32", "bfloat16"] | None = _setting(None, "precision of the weights; none: by device")
    quantization: Literal["4bit"] | None = _setting(None, "4-bit language model (experimental)")
    gradient_checkpointing: bool = _setting(False, "recompute each layer in the backward pass")

    def __post_init__(self) -> None:
        for name in ("group_size", "parallel_groups", "micro_batch_size", "n_steps"):
            value = getattr(self, name)
            optional = name in ("micro_batch_size", "n_steps")
            if not (optional and value is None) and (type(value) is not int or value < 1):
                raise ValueError(f"{name} must be a positive integer{' or None' if optional else ''}, got {value!r}.")


@dataclass
class DoctorContext:
    """
    What is checked, loaded when first needed.

    :param env_id: Name or id of a LIBERO task.
    :param assets: Assets, as for :class:`~sb3_tgrpo.envs.LiberoEnv`; None = the checkpoint's.
    :param checkpoint_name: Hub id, folder or ``"tiny"``; None = none is checked.
    :param unnorm_key: Action statistics meant to be used.
    :param device: Where the policy is checked.
    :param plan: Run to estimate memory for; None = none.
    """

    env_id: str = "LIBERO/libero_object-0-v0"
    assets: str | None = None
    checkpoint_name: str | None = None
    unnorm_key: str | None = None
    device: str = "auto"
    plan: MemoryPlan | None = None

    @cached_property
    def task(self) -> TaskName:
        """The task."""
        try:
            return TaskName.parse(self.env_id)
        except ValueError as error:
            raise ValueError(f"--env {self.env_id}: only LIBERO's tasks can be checked, such as libero_object-3.") from error

    @cached_property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint, of which nothing is downloaded."""
        return None if self.checkpoint_name is None else Checkpoint(self.checkpoint_name, download=False)

    @cached_property
    def found_assets(self) -> "Assets":
        """The assets in force."""
        from sb3_tgrpo.envs.libero.assets import resolve_assets

        return resolve_assets(self.assets or ("auto" if self.checkpoint is None else self.checkpoint.default_assets))

    def make_env(self, task: TaskName, **kwargs: Any) -> "LiberoEnv":
        """An environment of a task; ``kwargs`` are further arguments of :class:`~sb3_tgrpo.envs.LiberoEnv`."""
        from sb3_tgrpo.envs import LiberoEnv

        return LiberoEnv(*task, **{**kwargs, "assets": self.found_assets.kind})

    @cached_property
    def policy(self) -> "OpenVLAPolicy":
        """The checkpoint as a policy, without an adapter to train."""
        from sb3_tgrpo.openvla.policy import OpenVLAPolicy

        assert self.checkpoint is not None
        env = self.make_env(self.task, **self.checkpoint.env_kwargs())
        return OpenVLAPolicy.for_env(env, self.checkpoint, unnorm_key=self.unnorm_key, device=self.device, temperature=0.7)


Found = tuple[Status, str, str]
"""Status, facts and remedy."""


@dataclass(frozen=True)
class Check:
    """A check by the name of its row. Whatever its function raises becomes a failed finding: the other checks go on."""

    name: str
    function: Callable[[DoctorContext], Found]

    def __call__(self, context: DoctorContext) -> Finding:
        try:
            return Finding(self.name, *self.function(context))
        except Exception as error:
            remedy = getattr(error, "remedy", "Read the message; another row may name the cause.")
            return Finding(self.name, "failed", f"{type(error).__name__}: {error}", remedy)


def to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """Findings for JSON."""
    return {"ok": all_passed(findings), "findings": [asdict(finding) for finding in findings]}


def all_passed(findings: Sequence[Finding]) -> bool:
    """Whether no check failed."""
    return not any(finding.status == "failed" for finding in findings)
