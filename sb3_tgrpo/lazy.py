"""Attributes of a package that are imported on first use (PEP 562)."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_attributes(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """
    A package's ``__getattr__``.

    :param package: Name of the package.
    :param modules: Full name of the module in which each public attribute is defined.
    :return: Function that imports an attribute's module and returns the attribute.
    """

    def get(name: str) -> Any:
        if name in modules:
            return getattr(import_module(modules[name]), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return get
