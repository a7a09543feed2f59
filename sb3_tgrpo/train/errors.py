"""What went wrong, with what to change."""

from collections.abc import Iterator
from contextlib import contextmanager

from sb3_tgrpo.train.config import TrainConfig


class TrainingError(RuntimeError):
    """A run that can't go on, with what to change."""


@contextmanager
def explained(config: TrainConfig) -> Iterator[None]:
    """Raise failures that have a remedy as :class:`TrainingError` with it."""
    try:
        yield
    except TrainingError:
        raise
    except (MemoryError, RuntimeError, ValueError) as error:
        remedy = explain(error, config)
        if remedy is None:
            raise
        raise TrainingError(remedy) from error


def explain(error: BaseException, config: TrainConfig) -> str | None:
    """What to change so that a failure does not happen again, None if there is nothing to add."""
    text = str(error)
    low = text.lower()
    algorithm = config.algorithm
    goes_on = "The same command goes on from the last saved update."
    if "cuda out of memory" in low:
        return (
            f"The GPU's memory ran out. Lower micro_batch_size (now {algorithm.micro_batch_size}), which does not change the "
            f"result. {goes_on} Or begin anew (--out) with gradient_checkpointing (now {config.gradient_checkpointing}), "
            f"quantization='4bit' (now {config.base_policy.quantization!r}) or an adapter alone (lora, now "
            f"{config.base_policy.lora})."
        )
    if isinstance(error, MemoryError) or "can't allocate memory" in low or "not enough memory" in low:
        return (
            f"Memory ran out. Lower parallel_groups (now {algorithm.parallel_groups}; each of its "
            f"{algorithm.parallel_groups * algorithm.group_size} simulators takes its share), groups_per_update (now "
            f"{algorithm.groups_per_update}; their images are kept until the update) or micro_batch_size (now "
            f"{algorithm.micro_batch_size})."
        )
    if "after 3 restarts" in low:
        reason = (
            "the system killed it, as it does when memory runs out: lower parallel_groups"
            if "exit status -9" in low
            else "see the messages of its process above"
        )
        return f"A simulator keeps failing: {text} ({reason}, now {algorithm.parallel_groups}). {goes_on}"
    if "opengl" in low or "mujoco_gl" in low:
        return f"{text} {goes_on}"
    if "rewards must be finite" in low:
        return None  # the reward is at fault, and the message names it
    if "probability tensor contains" in low or "is nan" in low or "is inf" in low or "is not finite" in low:
        return (
            f"A number is not finite any more: {text} Lower learning_rate (now {algorithm.learning_rate:g}), set target_kl "
            f"(now {algorithm.target_kl}) or lower max_grad_norm (now {algorithm.max_grad_norm:g}), in a new folder (--out)."
        )
    return None
