"""One way to write a LIBERO task's name."""

import re
from typing import NamedTuple

_NAME = re.compile(r"(?:LIBERO/)?(libero_[a-z0-9]+)-(\d+)(?:-v0)?")


class TaskName(NamedTuple):
    """
    A LIBERO task. ``str()`` gives ``libero_object-3``.

    :param suite: Suite, such as ``libero_object``.
    :param task: Number of the task in LIBERO's own order.
    """

    suite: str
    task: int

    @classmethod
    def parse(cls, text: str) -> "TaskName":
        """
        The task that a text names.

        :param text: ``libero_object-3``, or its Gymnasium id ``LIBERO/libero_object-3-v0``.
        :raises ValueError: If the text is neither.
        """
        match = _NAME.fullmatch(text)
        if match is None:
            raise ValueError(f"task must look like 'libero_object-3' or 'LIBERO/libero_object-3-v0', got {text!r}.")
        return cls(match[1], int(match[2]))

    @property
    def gym_id(self) -> str:
        """Gymnasium id, such as ``LIBERO/libero_object-3-v0``."""
        return f"LIBERO/{self}-v0"

    def __str__(self) -> str:
        return f"{self.suite}-{self.task}"
