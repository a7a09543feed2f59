"""The one error of this package."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """
    One thing that is wrong with a reward.

    :param field: Place, as a path such as ``tracks[0].stages[1].ladder`` or a source line.
    :param value: Value that was found there, shortened.
    :param message: Fault.
    :param choices: Valid values, where they can be listed.
    """

    field: str
    value: str
    message: str
    choices: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.field}: {self.message}"
        if self.value:
            text += f" (got {self.value})"
        if self.choices:
            text += f"; choose from {', '.join(self.choices)}"
        return text


class RewardError(ValueError):
    """
    A reward that cannot be used: malformed, unknown names, or refused code.

    :param problems: Everything that was found wrong, first things first.
    """

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = (Problem("reward", "", problems),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple[type["RewardError"], tuple[tuple[Problem, ...]]]:
        return RewardError, (self.problems,)


def shorten(value: object, limit: int = 120) -> str:
    """``repr`` of a value of JSON types, cut to ``limit`` characters."""
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
