"""What was computed from a frame in the rollout, kept for the update."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable

import torch as th


def frame_keys(images: th.Tensor) -> list[bytes]:
    """A 128-bit digest of the content of each frame ``(batch, height, width, 3)``, uint8."""
    frames = images.cpu().contiguous().numpy()
    return [hashlib.blake2b(frame, digest_size=16).digest() for frame in frames]


class FrameCache:
    """
    Tensors by frame content, the least recently used dropped once ``max_bytes`` are exceeded. Equal frames in one batch
    (members of a group start alike) are computed once.

    Only for functions of the frame that training can't change.

    :param max_bytes: Upper bound of the memory kept; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.n_bytes = 0
        self._rows: OrderedDict[bytes, th.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        """Forget everything."""
        self._rows.clear()
        self.n_bytes = 0

    def get(self, keys: list[bytes], compute: Callable[[list[int]], th.Tensor]) -> th.Tensor:
        """Results for a batch of :func:`frame_keys`; ``compute`` gives those ``(len(rows), ...)`` of some of its rows."""
        first_row = {key: row for row, key in reversed(list(enumerate(keys)))}
        found = {key: self._rows[key] for key in first_row if key in self._rows}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            results = compute([first_row[key] for key in missing])
            if len(missing) == len(keys) and self.max_bytes == 0:
                return results
            found.update(zip(missing, results, strict=True))
        for key in found:
            self._keep(key, found[key])
        return th.stack([found[key] for key in keys])

    def _keep(self, key: bytes, row: th.Tensor) -> None:
        size = row.numel() * row.element_size()
        if key in self._rows:
            self._rows.move_to_end(key)
        elif size <= self.max_bytes:
            self._rows[key] = row.clone()  # a view would keep its whole batch alive
            self.n_bytes += size
            while self.n_bytes > self.max_bytes:
                _, dropped = self._rows.popitem(last=False)
                self.n_bytes -= dropped.numel() * dropped.element_size()
