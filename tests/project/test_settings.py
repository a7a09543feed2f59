"""Settings in dataclasses: types, bounds, and the flags that are made of them."""

import argparse
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from sb3_tgrpo.cli.flags import add_flags, given_settings
from sb3_tgrpo.settings import REQUIRED, check_settings, setting


@dataclass(frozen=True)
class Inner:
    rate: float = setting(0.5, "rate", positive=True, below=1)


@dataclass(frozen=True)
class Outer:
    count: int = setting(REQUIRED, "count", low=1, high=9)
    mode: Literal["a", "b"] | None = setting("a", "mode")
    many: tuple[float, ...] = setting((0.0, 1.0), "100 % of them", low=0)
    fast: bool = setting(False, "100 % fast")
    inner: Inner = Inner()

    def __post_init__(self) -> None:
        check_settings(self)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 0}, "count=0: it must be at least 1 and at most 9."),
        ({"count": 2.0}, "count=2.0: it must be of type int."),
        ({"count": True}, "count=True: it must be of type int."),
        ({"mode": "c"}, "mode='c': it must be one of 'a', 'b'."),
        ({"many": (0.0, float("nan"))}, "many=(0.0, nan): it must be at least 0."),
        ({"inner": Inner(1.0)}, "inner.rate=1.0: it must be above 0 and below 1."),
        ({"inner": Inner(0)}, "inner.rate=0: it must be above 0 and below 1."),
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Outer(**{"count": 1, **values})
    assert str(caught.value) == message


def test_flags_are_made_of_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser, Outer)
    args = parser.parse_args(["--count", "3", "--mode", "none", "--many", "1", "2", "--fast"])
    assert given_settings(args, Outer) == {"count": 3, "mode": None, "many": (1.0, 2.0), "fast": True}
    assert given_settings(parser.parse_args(["--count", "1"]), Outer) == {"count": 1}
    with pytest.raises(SystemExit):
        parser.parse_args([])
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "100 % of them (default: 0.0 1.0)" in capsys.readouterr().out
