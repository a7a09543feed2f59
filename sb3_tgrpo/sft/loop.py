"""Pieces of a supervised training loop: schedule, order of frames, averaged weights, the best checkpoint."""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch as th

from sb3_tgrpo.openvla.augment import prepare
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.sft.dataset import DemonstrationDataset

_FLOOR = 0.01


def cosine_rate(progress: float) -> float:
    """Factor of the learning rate: a cosine from 1 to 0.01 over the share of the training that is done, 0 to 1."""
    return _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


@lru_cache(maxsize=2)
def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of ``range(n)`` that depends on nothing but the arguments."""
    return np.random.default_rng([seed, 0xE90C, epoch]).permutation(n)


class ParameterEMA:
    """
    Exponential moving average of parameters, in float32. Early on it averages over a tenth of the updates so far, so that
    it forgets the random start.

    :param parameters: Parameters by name.
    :param decay: Share kept at each update, between 0 and 1.
    """

    def __init__(self, parameters: Mapping[str, th.Tensor], decay: float) -> None:
        self.decay = decay
        self._parameters = parameters
        self.values = {name: tensor.detach().float().clone() for name, tensor in parameters.items()}

    @th.no_grad()
    def update(self, step: int) -> None:
        """Take the parameters' current values in, after ``step`` updates (at least 1)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        th._foreach_lerp_(list(self.values.values()), [p.detach().float() for p in self._parameters.values()], 1 - decay)

    @contextmanager
    def applied(self, parameters: Mapping[str, th.Tensor]) -> Iterator[None]:
        """Inside the block, the parameters, by the same names, hold their averages."""
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


class FrameStore:
    """
    Frames after :func:`~sb3_tgrpo.openvla.augment.prepare`, made on first use and kept if all fit.

    :param dataset: The demonstrations.
    :param policy: Policy that reads the frames.
    :param max_mb: Memory for all frames, MiB.
    """

    def __init__(self, dataset: DemonstrationDataset, policy: OpenVLAPolicy, max_mb: float) -> None:
        self._dataset, self._policy = dataset, policy
        config = policy.model.config
        self._pipeline, self._size = config.pipeline, config.image_size
        fits = len(dataset) * self._size**2 * 3 <= max_mb * 2**20
        self._kept = th.empty(len(dataset), self._size, self._size, 3, dtype=th.uint8) if fits else None
        self._present = np.zeros(len(dataset), dtype=bool)

    def get(self, frames: np.ndarray) -> th.Tensor:
        """Prepared frames by their indices, ``(len(frames), size, size, 3)`` uint8 on the policy's device."""
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


class BestCheckpoint:
    """The weights with the lowest validation loss, and the number of validations since."""

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
        Begin or go on with a training, which stops after ``patience`` validations without a lower loss; None: it does not, and
        no weights are kept.
        """
        self.patience = patience
        if patience is not None and not self.weights:  # a best that can't be returned to must not stop a training
            self.loss, self.waited, self.entry = float("inf"), 0, {}

    def offer(self, entry: dict[str, float], snapshot: Callable[[], dict[str, th.Tensor]]) -> None:
        """
        Keep the weights if their validation loss is the lowest.

        :param entry: The validation: its step, loss and other numbers.
        :param snapshot: Function that copies the weights that were validated.
        """
        if entry["loss"] < self.loss:
            self.loss, self.waited, self.entry = entry["loss"], 0, entry
            self.weights = snapshot() if self.patience is not None else {}  # none rather than an earlier best
        else:
            self.waited += 1

    def state(self) -> dict[str, Any]:
        """State for :meth:`load_state`."""
        return {"loss": self.loss, "waited": self.waited, "entry": self.entry, "weights": self.weights}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state` of a training that stopped."""
        self.loss, self.waited, self.entry, self.weights = (state[key] for key in ("loss", "waited", "entry", "weights"))
