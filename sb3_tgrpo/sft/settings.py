"""Settings of supervised fine-tuning, which are also flags of ``sb3-tgrpo sft``."""

from dataclasses import dataclass
from typing import Literal

from sb3_tgrpo.settings import check_settings, setting


@dataclass(frozen=True)
class SFTSettings:
    """
    Settings of :class:`~sb3_tgrpo.sft.trainer.SFT`, by the names of its arguments.

    :raises ValueError: For a value out of bounds.
    """

    learning_rate: float = setting(5e-4, "peak learning rate; upstream's LoRA fine-tunes use 5e-4", positive=True)
    batch_size: int = setting(32, "frames per update", low=1)
    micro_batch_size: int | None = setting(
        None, "frames per forward and backward pass: memory, not the update; none: the whole batch", low=1
    )
    schedule: Literal["cosine", "constant"] = setting("cosine", "cosine: to a hundredth of the learning rate at the end")
    warmup_steps: int = setting(0, "updates in which the learning rate rises linearly", low=0)
    weight_decay: float = setting(0.01, "AdamW's weight decay", low=0)
    max_grad_norm: float | None = setting(1.0, "largest norm of the gradient; none: no bound, as upstream", positive=True)
    ema_decay: float | None = setting(
        None, "decay of averaged weights, which are validated and saved; none: no average", positive=True, below=1
    )
    augmentation: bool = setting(False, "OpenVLA's image augmentation")
    center_images: bool = setting(False, "subtract the mean image (small models of one scene; needs --lora none)")
    statistics: Literal["data", "checkpoint"] = setting("data", "origin of the action statistics")
    validation_fraction: float = setting(0.1, "share of the demonstrations kept for validation", low=0, below=1)
    frame_cache_mb: float = setting(4096.0, "preprocessed frames are kept in memory if all fit in this, MiB", low=0)
    seed: int = setting(0, "seed of everything random", low=0)

    def __post_init__(self) -> None:
        check_settings(self)
