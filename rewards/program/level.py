"""What compiled programs share: the level of a state, the function that computes it, and how a level is paid."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

from sb3_tgrpo.rewards.facts.task_facts import Vec3
from sb3_tgrpo.rewards.facts.vocabulary import StateValue

Payment = Literal["per_step", "latched", "potential"]
"""How the level becomes a reward: dense, best-so-far progress, or potential-based shaping (Ng et al., 1999)."""
DEFAULT_PAYMENT: Payment = "latched"

State = Mapping[str, StateValue]
Info = Mapping[str, Any]


class StateLevel(NamedTuple):
    """
    What one state is worth.

    :param level: The sum f1 + f2 of the paper's equation 1: stages, rungs and pose shaping, less broken guards.
    :param shaping: The part f2, points for nearness to key poses.
    :param stage: Number of stages that are done, over all tracks.
    :param at: Stage number of each track, by the track's name.
    :param core: Memory for the next state.
    """

    level: float
    shaping: float
    stage: int
    at: tuple[tuple[str, float], ...]
    core: tuple[Any, ...]


Evaluate = Callable[[State, Info, tuple[Any, ...], Mapping[str, Vec3]], StateLevel]
"""A function of the state, the info, the memory and the positions of objects at reset."""


class Compiled(NamedTuple):
    """
    A spec or a Python source as a function.

    :param evaluate: The function.
    :param keys: State keys that it reads.
    :param start_objects: Objects whose position at reset it reads.
    :param core: Memory before the first state.
    :param n_stages: Number of stages.
    :param max_level: Level when everything is done.
    :param min_level: Lowest level.
    :param success_points: Bonus for success.
    """

    evaluate: Evaluate
    keys: tuple[str, ...]
    start_objects: tuple[str, ...]
    core: tuple[Any, ...]
    n_stages: int
    max_level: float
    min_level: float
    success_points: float
