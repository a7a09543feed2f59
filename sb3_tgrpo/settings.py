"""Settings: their descriptions, which are also the help of flags, and the values that are allowed."""

import math
import numbers
import types
from collections.abc import Sequence
from dataclasses import MISSING, field, fields, is_dataclass
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

REQUIRED: Any = MISSING
"""Default of a setting that has none."""


def setting(
    default: Any,
    text: str,
    *,
    positive: bool = False,
    low: float | None = None,
    high: float | None = None,
    below: float | None = None,
) -> Any:
    """
    A dataclass field with a description and bounds. Bounds do not apply to None; they apply to each item of a tuple.

    :param default: Default value, or :data:`REQUIRED`.
    :param text: Description.
    :param positive: Whether the value must be above 0.
    :param low: Smallest allowed value.
    :param high: Largest allowed value.
    :param below: Bound that the value must not reach.
    """
    return field(default=default, metadata={"help": text, "bounds": (positive, low, high, below)})


class Setting(NamedTuple):
    """A field made by :func:`setting`; a default of :data:`REQUIRED` is none."""

    name: str
    hint: Any
    default: Any
    text: str


def settings_of(owner: type) -> list[Setting]:
    """The fields of a dataclass that :func:`setting` made, in order."""
    hints = get_type_hints(owner)
    described = [item for item in fields(owner) if "help" in item.metadata]
    return [Setting(item.name, hints[item.name], item.default, item.metadata["help"]) for item in described]


def check_settings(config: Any, where: str = "") -> None:
    """
    Check types and bounds of all settings; settings that are dataclasses themselves are checked with their dotted names.

    :param config: Instance of a dataclass with fields made by :func:`setting`.
    :param where: Text before each name in errors, such as ``"task."``.
    :raises ValueError: For a value of the wrong type or out of bounds, naming setting and value.
    """
    hints = get_type_hints(type(config))
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            check_settings(value, f"{where}{item.name}.")
        elif "bounds" in item.metadata:
            typed(hints[item.name], value, where + item.name)
            for one in value if isinstance(value, Sequence) and not isinstance(value, str) else [value]:
                if one is not None and (problem := _out_of_bounds(one, *item.metadata["bounds"])):
                    raise ValueError(f"{where}{item.name}={value!r}: it must be {problem}.")


def check_number(
    name: str,
    value: Any,
    kind: type[int] | type[float] = float,
    *,
    positive: bool = False,
    high: float | None = None,
    optional: bool = False,
    why: str = "",
) -> None:
    """
    Refuse an argument that is no whole number of at least 1, or no finite number from 0.

    :param name: Name of the argument.
    :param value: Value of the argument.
    :param kind: ``int`` for a whole number.
    :param positive: Whether 0 is refused as well.
    :param high: Largest allowed value.
    :param optional: Whether None is allowed.
    :param why: Reason, appended to the message.
    :raises TypeError: If the value is no such number.
    :raises ValueError: If the value is out of range, infinite or NaN.
    """
    if value is None and optional:
        return
    none = ", or None" if optional else ""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral if kind is int else numbers.Real):
        raise TypeError(f"{name}={value!r}: it must be a {'whole ' if kind is int else ''}number{none}.")
    problem = _out_of_bounds(value, positive, 1 if kind is int else 0, high, None)
    if problem or not math.isfinite(value):
        raise ValueError(f"{name}={value}: it must be {problem or 'finite'}{none}{why}.")


def _out_of_bounds(value: Any, positive: bool, low: float | None, high: float | None, below: float | None) -> str:
    """The bounds in words, empty if the value is within. Comparisons are negated, so that nan is never within."""
    least = "above 0" if positive else "" if low is None else f"at least {low:g}"
    most = f"below {below:g}" if below is not None else "" if high is None else f"at most {high:g}"
    within = (not positive or value > 0) and (low is None or value >= low)
    within = within and (high is None or value <= high) and (below is None or value < below)
    return "" if within else " and ".join(filter(None, (least, most)))


def typed(hint: Any, value: Any, what: str) -> Any:
    """
    A value in the type that the setting has: integers become floats and lists become tuples where these are wanted.

    :param hint: ``bool``, ``int``, ``float``, ``str``, another class, ``Literal``, a homogeneous ``tuple``, or one of these
        or None.
    :param value: Value, such as JSON gives it.
    :param what: Name of the setting, for the error.
    :raises ValueError: If the value is of another type or is not one of the literals.
    """
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        return typed(next(option for option in options if option is not type(None)), value, what)
    if origin is Literal:
        if value not in options:
            raise ValueError(f"{what}={value!r}: it must be one of {', '.join(map(repr, options))}.")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ValueError(f"{what}={value!r}: it must be a list.")
        return tuple(typed(options[0], item, what) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise ValueError(f"{what}={value!r}: it must be of type {hint.__name__}.")
    return value
