"""Flags of the command line: made from a dataclass's fields, and renamed ones that still work for a version."""

import argparse
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from sb3_tgrpo.settings import REQUIRED, settings_of


def add_flag(group: Any, name: str, hint: Any, default: Any, text: str) -> None:
    """
    Add a flag for a setting. A flag that is not given leaves no attribute in the namespace.

    :param name: Name of the setting; ``_`` becomes ``-``.
    :param hint: Type of the setting: ``bool``, ``int``, ``float``, ``str``, ``Literal``, ``tuple``, or one of them or None.
    :param default: Default value, for the help; :data:`~sb3_tgrpo.settings.REQUIRED` makes the flag required.
    :param text: Description.
    """
    optional = get_origin(hint) in (Union, types.UnionType)
    inner = next(option for option in get_args(hint) if option is not type(None)) if optional else hint
    shown = "none" if default is None else " ".join(map(str, default)) if isinstance(default, tuple) else default
    text = text.replace("%", "%%")
    arguments: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{text} (default: {shown})"}
    if default is REQUIRED:
        arguments |= {"required": True, "help": text}
    if inner is bool:
        arguments |= {"action": argparse.BooleanOptionalAction, "help": text}
    elif get_origin(inner) is Literal:
        arguments["type"] = _optional(str) if optional else str
        arguments["choices"] = [*get_args(inner), *([None] if optional else [])]
        arguments["metavar"] = "{" + ",".join([*get_args(inner), *(["none"] if optional else [])]) + "}"
    elif get_origin(inner) is tuple:
        arguments |= {"type": get_args(inner)[0], "nargs": "+", "metavar": "X"}
    else:
        arguments |= {"type": _optional(inner) if optional else inner, "metavar": {int: "N", float: "X", str: "TEXT"}[inner]}
    group.add_argument(f"--{name.replace('_', '-')}", **arguments)


def add_flags(group: Any, owner: type, names: Sequence[str] | None = None) -> None:
    """Add a flag for each setting of a dataclass, or for those named, in this order."""
    described = {item.name: item for item in settings_of(owner)}
    for name in described if names is None else names:
        add_flag(group, *described[name])


def given_settings(args: argparse.Namespace, owner: type) -> dict[str, Any]:
    """The settings of a dataclass that flags, which :func:`add_flags` added, gave."""
    values = {item.name: getattr(args, item.name) for item in settings_of(owner) if hasattr(args, item.name)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _optional(kind: type) -> Any:
    def convert(text: str) -> Any:
        return None if text.lower() == "none" else kind(text)

    convert.__name__ = kind.__name__  # argparse names it in errors
    return convert


def rename_flags(arguments: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Arguments in which flags of the version before (keys of ``renamed``) have their new names, with one warning each."""
    new = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in renamed:
            print(f"sb3-tgrpo: {flag} is now {renamed[flag]}; the old name goes with the next version.", file=sys.stderr)
        new.append(renamed.get(flag, flag) + equals + value)
    return new
