"""A policy of one's own, as docs/your_own.md writes it, needs nothing that is not written there."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch as th

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import make_group_env

PAGE = Path(__file__).parents[2] / "docs/your_own.md"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the page's program has defined."""
    section = PAGE.read_text().partition("## A policy")[2]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, Any] = {"__name__": "your_own"}
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("program"))
    try:
        exec(compile(code, str(PAGE), "exec"), names)
    finally:
        os.chdir(before)
    return names


def test_the_documented_policy_goes_on_after_loading_with_its_reference(program: dict[str, Any], tmp_path: Path) -> None:
    model: Any = program["model"]
    reference = model.policy.reference.weight.clone()
    assert not th.equal(reference, model.policy.net.weight)
    model.learn(200, reset_num_timesteps=False).save(tmp_path / "model")
    loaded: Any = TGRPO.load(tmp_path / "model", env=make_group_env("CartPole-v1", stop_on="never"))
    assert th.equal(loaded.policy.reference.weight, reference)
    assert th.equal(loaded.policy.net.weight, model.policy.net.weight)
    obs = model.env.reset()
    assert (loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]).all()


def test_what_a_policy_lacks_is_named(program: dict[str, Any]) -> None:
    class WithoutOptimizer(program["LinearPolicy"]):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            del self.optimizer

    with pytest.raises(ValueError, match=r"WithoutOptimizer can't be trained by TGRPO, it lacks optimizer"):
        TGRPO(WithoutOptimizer, make_group_env("CartPole-v1"))
