"""Observation spaces of the LIBERO environments."""

import numpy as np
from gymnasium import spaces

INSTRUCTION_BYTES = 256


class InstructionSpace(spaces.Box):
    """
    A sentence as zero-padded UTF-8 bytes, ``uint8`` of shape ``(256,)``.

    Text spaces are not supported by Stable-Baselines3; bytes pass through its buffers unchanged. The attributes name the
    task suite and the assets of the pictures; they survive copying and pickling.

    :param suite: LIBERO task suite, such as ``libero_object``; ``""`` for a BDDL file of the user's.
    :param assets: ``"full"`` or ``"light"``.
    :param assets_by_name: Whether the user asked for these assets by name, rather than for ``"auto"``.
    """

    def __init__(self, suite: str = "", assets: str = "full", assets_by_name: bool = False) -> None:
        super().__init__(0, 255, (INSTRUCTION_BYTES,), np.uint8)
        self.suite = suite
        self.assets = assets
        self.assets_by_name = assets_by_name

    def __eq__(self, other: object) -> bool:
        """Policies and environments of different assets do not fit; Stable-Baselines3 compares their spaces."""
        return super().__eq__(other) and self.assets == getattr(other, "assets", self.assets)

    def __repr__(self) -> str:
        return f"InstructionSpace(suite={self.suite!r}, assets={self.assets!r}, assets_by_name={self.assets_by_name})"


def encode_instruction(instruction: str) -> np.ndarray:
    """
    A sentence as zero-padded bytes, ``uint8`` of shape ``(256,)``.

    :raises ValueError: If it is too long or holds a NUL character.
    """
    data = instruction.encode("utf-8")
    if len(data) > INSTRUCTION_BYTES or b"\0" in data:
        raise ValueError(
            f"instruction must be at most {INSTRUCTION_BYTES} UTF-8 bytes without NUL, got {len(data)} bytes: {instruction!r}"
        )
    return np.frombuffer(data.ljust(INSTRUCTION_BYTES, b"\0"), np.uint8).copy()


def decode_instruction(encoded: np.ndarray) -> str:
    """The inverse of :func:`encode_instruction`."""
    return np.asarray(encoded, np.uint8).tobytes().rstrip(b"\0").decode("utf-8")
