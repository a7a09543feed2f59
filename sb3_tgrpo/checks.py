"""Checks of numeric settings, with messages that name the setting, its value and what it may be."""

import math
import numbers
from typing import Any


def check_whole(name: str, value: Any, *, optional: bool = False) -> None:
    """
    Refuse a setting that is not a whole number of at least 1.

    :param name: Name of the setting.
    :param value: Value of the setting.
    :param optional: Whether None is allowed.
    :raises TypeError: If the value is no whole number.
    :raises ValueError: If the value is below 1.
    """
    none = ", or None" if optional else ""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name}={value!r} must be a whole number{none}.")
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1{none}.")


def check_number(
    name: str, value: Any, *, positive: bool = False, most: float = math.inf, optional: bool = False, why: str = ""
) -> None:
    """
    Refuse a setting that is not a finite number from 0 to ``most``.

    :param name: Name of the setting.
    :param value: Value of the setting.
    :param positive: Whether 0 is refused as well.
    :param most: Largest allowed value.
    :param optional: Whether None is allowed.
    :param why: Reason, appended to the message.
    :raises TypeError: If the value is no real number.
    :raises ValueError: If the value is out of range, infinite or NaN.
    """
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}={value!r} must be a number{', or None' if optional else ''}.")
    number = float(value)
    if not (math.isfinite(number) and (number > 0.0 or (number == 0.0 and not positive)) and number <= most):
        allowed = "positive" if positive else "0 or positive"
        limit = "" if math.isinf(most) else f" and at most {most:g}"
        raise ValueError(f"{name}={value} must be {allowed}{limit}{why}.")
