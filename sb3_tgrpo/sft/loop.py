"""Pieces of a supervised training loop: schedule, order of frames, averaged weights, several processes."""

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch as th

from sb3_tgrpo.openvla.augment import prepare
from sb3_tgrpo.openvla.loading import resolve_device
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.sft.dataset import DemonstrationDataset

_FLOOR = 0.01
_LIBERO_DIMENSIONS = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def cosine_rate(progress: float) -> float:
    """
    :param progress: 0 to 1.
    :return: Factor of the learning rate, from 1 down to 0.01.
    """
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(n)`` that depends on nothing but the arguments."""
    return np.random.default_rng([seed, 0xE90C, epoch]).permutation(n)


def dimension_names(n: int) -> Sequence[str]:
    """Names of action dimensions for logs."""
    return _LIBERO_DIMENSIONS if n == len(_LIBERO_DIMENSIONS) else [str(k) for k in range(n)]


class Average:
    """
    Exponential moving average of parameters, in float32. Early on it averages over a tenth of the updates so far, so that
    it forgets the random start.

    :param parameters: What is averaged.
    :param decay: Share kept at each update, between 0 and 1.
    """

    def __init__(self, parameters: Mapping[str, th.Tensor], decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self.values = {name: tensor.detach().float().clone() for name, tensor in parameters.items()}

    @th.no_grad()
    def update(self, step: int) -> None:
        """
        :param step: Number of updates so far, at least 1.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        th._foreach_lerp_(list(self.values.values()), [p.detach().float() for p in self._parameters.values()], 1 - decay)

    @contextmanager
    def applied(self, parameters: Mapping[str, th.Tensor]) -> Iterator[None]:
        """Inside, the parameters hold their averages."""
        own = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        try:
            self._copy(self.values, parameters)
            yield
        finally:
            self._copy(own, parameters)

    @staticmethod
    @th.no_grad()
    def _copy(source: Mapping[str, th.Tensor], target: Mapping[str, th.Tensor]) -> None:
        for name, tensor in target.items():
            tensor.copy_(source[name])


class Processes:
    """
    The processes of a run: one, or those that ``accelerate launch`` or ``torchrun`` started.

    :param device: Device asked for; with several processes each takes its own GPU, or the CPU if ``"cpu"``.
    """

    def __init__(self, device: str = "auto") -> None:
        self.world, self.rank = int(os.environ.get("WORLD_SIZE", "1")), 0
        if self.world == 1:
            self.device = resolve_device(device)
            return
        try:
            from accelerate import PartialState  # type: ignore[import-untyped]
        except ImportError as error:
            raise ImportError("Training on several processes needs accelerate: pip install accelerate") from error
        state = PartialState(cpu=resolve_device(device).type == "cpu")
        self.world, self.rank, self.device = state.num_processes, state.process_index, state.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and logs."""
        return self.rank == 0

    def share(self, n: int, chunk: int | None) -> list[slice]:
        """
        This process's part of ``n`` rows, in pieces.

        :param chunk: Rows per piece; None: one piece per process.
        """
        chunk = chunk or math.ceil(n / self.world)
        pieces = [slice(begin, min(begin + chunk, n)) for begin in range(0, n, chunk)]
        return pieces[self.rank :: self.world]

    def sum_(self, tensor: th.Tensor) -> None:
        """Add a tensor over all processes, in place."""
        if self.world > 1:
            th.distributed.all_reduce(tensor)

    def sum_gradients(self, parameters: Sequence[Any]) -> None:
        """Add gradients over all processes. A parameter that none of them used keeps none: AdamW would decay it otherwise."""
        if self.world == 1:
            return
        used = th.tensor([float(parameter.grad is not None) for parameter in parameters], device=self.device)
        th.distributed.all_reduce(used)
        for parameter, count in zip(parameters, used.tolist(), strict=True):
            if count > 0:
                if parameter.grad is None:  # this process had no rows
                    parameter.grad = th.zeros_like(parameter)
                th.distributed.all_reduce(parameter.grad)


class FrameStore:
    """Frames after :func:`~sb3_tgrpo.openvla.augment.prepare`, made on first use and kept if all fit."""

    def __init__(self, dataset: DemonstrationDataset, policy: OpenVLAPolicy, max_mb: float) -> None:
        self._dataset, self._policy = dataset, policy
        config = policy.model.config
        self._pipeline, self._size = config.pipeline, config.image_size
        fits = len(dataset) * self._size**2 * 3 <= max_mb * 2**20
        self._kept = th.empty(len(dataset), self._size, self._size, 3, dtype=th.uint8) if fits else None
        self._present = np.zeros(len(dataset), dtype=bool)

    def get(self, frames: np.ndarray) -> th.Tensor:
        """``(len(frames), size, size, 3)`` uint8 on the policy's device."""
        device = self._policy.device
        if self._kept is None:
            return self._make(frames, device)
        missing = np.unique(frames[~self._present[frames]])
        if len(missing):
            self._kept[th.from_numpy(missing)] = self._make(missing, device).cpu()
            self._present[missing] = True
        return self._kept[th.from_numpy(frames)].to(device)

    def _make(self, frames: np.ndarray, device: th.device) -> th.Tensor:
        return prepare(th.from_numpy(self._dataset.images(frames)).to(device), self._pipeline, self._size)


class Best:
    """The weights with the lowest validation loss, and how long ago that was."""

    def __init__(self) -> None:
        self.patience: int | None = None
        self.loss = float("inf")
        self.waited = 0
        self.entry: dict[str, float] = {}
        self.weights: dict[str, th.Tensor] = {}

    @property
    def patience_is_over(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    def begin(self, patience: int | None) -> None:
        """
        :param patience: Validations without a lower loss until training stops; None: it does not, and no weights are kept.
        """
        self.patience = patience
        if patience is not None and not self.weights:  # a best that can't be returned to must not stop a training
            self.loss, self.waited, self.entry = float("inf"), 0, {}

    def offer(self, entry: dict[str, float], snapshot: Callable[[], dict[str, th.Tensor]]) -> None:
        """
        :param entry: The validation: its step, loss and other numbers.
        :param snapshot: Makes a copy of the weights that were validated.
        """
        if entry["loss"] < self.loss:
            self.loss, self.waited, self.entry = entry["loss"], 0, entry
            self.weights = snapshot() if self.patience is not None else {}  # none rather than those of an earlier best
        else:
            self.waited += 1

    def state(self) -> dict[str, Any]:
        """What :meth:`load_state` takes."""
        return {"loss": self.loss, "waited": self.waited, "entry": self.entry, "weights": self.weights}

    def load_state(self, state: Mapping[str, Any], history: Sequence[dict[str, float]]) -> None:
        """
        :param state: Of a training that stopped; older ones lack the entry.
        :param history: Its validations.
        """
        self.loss, self.waited, self.weights = state["loss"], state["waited"], state["weights"]
        of_this_loss = next((entry for entry in history if entry["loss"] == self.loss), {})
        self.entry = state.get("entry", of_this_loss)
