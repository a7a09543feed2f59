"""Learning rates of a tuning study."""

from pathlib import Path

import pytest
from studies import ENVS, study, tuning_results

from sb3_tgrpo.study.tuning import tuned_overrides
from sb3_tgrpo.train.config import TrainConfig


def test_tuning(tmp_path: Path) -> None:
    scores = {"PPO@0.3": 0.2, "PPO@1": 0.4, "PPO@3": 0.1, "TGRPO@0.3": 0.1, "TGRPO@1": 0.2, "TGRPO@3": 0.3}
    tuned = tuned_overrides(tuning_results(tmp_path / "a", scores), study())
    rate = TrainConfig().algorithm.learning_rate
    assert tuned.overrides == {"PPO": {"learning_rate": rate}, "TGRPO": {"learning_rate": 3e-4}}
    assert tuned.tuning is not None and tuned.tuning["chosen"] == {"PPO": 1.0, "TGRPO": 3.0}
    assert tuned.tuning["learning_rates"] == {"PPO": rate, "TGRPO": 3e-4} and tuned.tuning["mode"] == "T=1"
    with pytest.raises(ValueError, match="tune on other tasks"):
        tuned_overrides(tuning_results(tmp_path / "b", scores, ENVS[0]), study())
    del scores["PPO@3"]
    with pytest.raises(ValueError, match="unequal numbers of trials"):
        tuned_overrides(tuning_results(tmp_path / "c", scores), study())
    with pytest.raises(ValueError, match="not finished"):
        tuned_overrides(tuning_results(tmp_path / "d", {"PPO@1": 0.1}, missing=["PPO@3"]), study())
    with pytest.raises(ValueError, match="no finished tuning"):
        tuned_overrides(tmp_path / "e", study())
    with pytest.raises(ValueError, match=r"evaluated by T=0.5, greedy, .* chosen by T=1: tune with 1.0"):
        tuned_overrides(tuning_results(tmp_path / "f", scores, mode="T=0.5"), study())


def test_tuning_gives_the_rate_that_was_tried(tmp_path: Path) -> None:
    scores = {"PPO@1": 0.2, "PPO@3": 0.1, "TGRPO@1": 0.2, "TGRPO@3": 0.3}
    own = {"TGRPO": {"learning_rate": 2e-3}}  # of the tuning
    folder = tuning_results(tmp_path, scores, learning_rate=1e-3, overrides=own)
    tuned = tuned_overrides(folder, study(methods=("PPO", "TGRPO", "TGRPO@3")))
    assert tuned.config.algorithm.learning_rate == 1e-4
    found = {cell.method: cell.config.algorithm.learning_rate for cell in tuned.cells()}
    assert (found["PPO"], found["TGRPO"], found["TGRPO@3"]) == (1e-3, 6e-3, 1.8e-2)
