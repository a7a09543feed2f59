"""A run folder that lacks or contradicts something is refused, at every time."""

import json
import shutil
from pathlib import Path

import pytest
from vla_toy import TOY_FLAGS as TOY

from sb3_tgrpo.cli import main
from sb3_tgrpo.files import JsonLines
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train import job
from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.job import run_training


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return shutil.copytree(finished, tmp_path / "run")


@pytest.fixture
def unfinished(copy: Path) -> Path:
    """A run that was interrupted right before its end."""
    (copy / "results.json").unlink()
    return copy


def train(folder: Path, *flags: str) -> int:
    return main(["train", *TOY, *flags, "--out", str(folder)])


@pytest.mark.parametrize(
    ("file", "flags"), [("config.json", ()), ("config.json", ("--kl-coef", "0.5")), ("run.json", ()), ("setup.json", ())]
)
def test_a_finished_run_without_its_record_is_not_passed_off_as_another(
    file: str, flags: tuple[str, ...], copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / file).unlink()
    assert train(copy, *flags) == 1
    output = capsys.readouterr()
    assert file in output.err and "put" in output.err and "greedy" not in output.out and not (copy / file).exists()


def test_a_damaged_record_is_not_to_be_deleted(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "config.json").write_text("{")
    assert train(copy) == 1
    error = capsys.readouterr().err
    assert "config.json is damaged" in error and "put an intact copy back" in error and "delete" not in error


def test_updates_that_are_missing_are_an_error(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without its last rows a run of 100 steps would be reported as a shorter one."""
    rows = JsonLines(unfinished / "metrics.jsonl")
    whole = rows.read()
    for kept in (whole[:-1], whole[1:], []):
        rows.rewrite(kept)
        assert train(unfinished) == 1
        assert "lacks updates of the model beside it" in capsys.readouterr().err
    rows.rewrite(whole)
    assert train(unfinished) == 0


@pytest.mark.parametrize("file", ["config.json", "run.json", "setup.json", "metrics.jsonl"])
def test_what_is_removed_in_mid_run_is_missed(file: str, unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig.from_dict(json.loads((unfinished / "config.json").read_text()))
    film = job._film

    def remove(*args: object) -> dict:
        (unfinished / file).unlink()
        return film(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "_film", remove)
    with pytest.raises(ValueError, match=file):
        run_training(config, unfinished)
    assert not (unfinished / "results.json").exists()


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_evaluation_of_other_settings_is_refused(when: str, unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = RunFolder(unfinished / "evaluations" / f"{when}_greedy")
    settings = place.read("settings.json")
    place.write("settings.json", {**settings, "protocol": {**settings["protocol"], "seeds": [1, 2, 3]}})
    assert train(unfinished) == 1
    assert "protocol.seeds was [1, 2, 3], is [1000000, 1000001, 1000002]" in capsys.readouterr().err
    (place / "settings.json").unlink()
    assert train(unfinished) == 1
    assert "settings.json, which records its settings, is missing" in capsys.readouterr().err


def test_a_run_of_version_0_1_goes_on(unfinished: Path) -> None:
    """Its settings had other names, and its record another fingerprint."""
    folder = RunFolder(unfinished)
    config = folder.read("config.json")
    config["start"] = config.pop("base_policy")
    del config["start"]["unnorm_key"]
    config["start"]["start_seed"] = config["start"].pop("base_seed")
    config["evaluation"]["eval_starts"] = config["evaluation"].pop("eval_initial_states")
    folder.write("config.json", config)
    folder.write("setup.json", {"start": "tiny", "assets": "none"})
    assert train(unfinished) == 0


def test_results_of_version_0_1_are_not_read(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = RunFolder(copy).read("results.json")
    for mode in results["modes"].values():
        mode["paired"]["start"] = mode["paired"].pop("initial_state")
    RunFolder(copy).write("results.json", results)
    assert train(copy) == 1 and "was finished by version 0.1: see" in capsys.readouterr().err
