"""``sb3-tgrpo eval``."""

import argparse
import time
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.utils import FloatSchedule
from walking import Walk

from sb3_tgrpo import DPO, TGRPO, TPO
from sb3_tgrpo.cli import main
from sb3_tgrpo.cli.eval import add_parser, default_folder, load_algorithm
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.evaluation.identity import policy_name
from sb3_tgrpo.evaluation.results import Evaluation
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.run_folder import RunFolder


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, env_kwargs = libero_policy(max_episode_steps=2)
    before = evaluate_policy(
        policy, "LIBERO/libero_object-9-v0", init_state_ids=[0], env_kwargs={**env_kwargs, "max_episode_steps": 2}, n_envs=1
    )
    before.protocol["step_caps"] = {"libero_object-9": 280}  # only so many are compared; two steps are played faster
    before.save(tmp_path / "before.json")
    arguments = ["--env", "LIBERO/libero_object-9-v0", "--assets", "light", "--image-size", "64", "--quiet", "--video", "all"]
    arguments += ["--starts", "0", "--out", str(tmp_path / "out"), "--compare", str(tmp_path / "before.json"), "--n-envs", "1"]
    started = time.time()
    assert main(["eval", "--checkpoint", "tiny", *arguments]) == 0
    text = capsys.readouterr().out
    assert "libero_object-9" in text and "0/1" in text and "McNemar" in text and "light assets" in text
    evaluation = Evaluation.load(tmp_path / "out" / "evaluation.json")
    assert evaluation.episodes[0].length == 280 and evaluation.protocol["step_caps"] == {"libero_object-9": 280}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "settings.json", "episodes.jsonl", "evaluation.json", "report.txt", "command.json", "comparison.json", "videos",
        ".lock",
    }  # fmt: skip
    assert (tmp_path / "out" / "videos" / "libero_object-9-start00-failure.mp4").stat().st_mtime >= started - 1
    assert main(["eval", "--checkpoint", "tiny", *arguments, "--sampled"]) == 1
    assert "holds another evaluation (deterministic: True then, False now)" in capsys.readouterr().err
    with RunFolder(tmp_path / "out").locked():
        assert main(["eval", "--checkpoint", "tiny", *arguments]) == 1
    assert "in use by another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "tiny"], "Name what to evaluate on"),
        (["--checkpoint", "tiny", "--suite", "libero_easy"], "--suite libero_easy: unknown"),
        (["--checkpoint", "nowhere", "--env", "LIBERO/libero_object-9-v0"], "neither a folder nor a hub id"),
        (["--checkpoint", "tiny", "--env", "LIBERO/libero_object-9-v0", "--episodes", "0"], "--episodes must be at least 1"),
        (["--model", __file__, "--env", "LIBERO/libero_object-9-v0"], "is not a saved algorithm"),
        (
            ["--model", "m.zip", "--adapter", "A", "--env", "LIBERO/libero_object-9-v0"],
            "--adapter A is merged into --checkpoint",
        ),
    ],
)
def test_command_line_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 1
    assert message in capsys.readouterr().err


def arguments_of(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["eval", "--env", "libero_object-9", *options])


def test_an_adapter_is_part_of_the_name_and_of_the_folder(tmp_path: Path) -> None:
    spaces_of = Walk.observation_space, Walk.action_space, FloatSchedule(0.0)
    base = OpenVLAPolicy(*spaces_of, checkpoint="tiny")
    adapter = str(base.export_adapter(tmp_path / "A"))
    assert policy_name(base) == "tiny"
    assert policy_name(OpenVLAPolicy(*spaces_of, checkpoint="tiny", adapter=adapter)) == f"tiny + {adapter}"
    arguments = [arguments_of("--checkpoint", "tiny", *more) for more in ((), ("--adapter", adapter))]
    folders = [default_folder(args, ["LIBERO/libero_object-9-v0"]).name for args in arguments]
    assert folders[0].startswith("tiny-libero") and folders[1].startswith("tiny+A-libero")


def test_saved_algorithms_are_told_apart(tmp_path: Path) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    small: dict[str, Any] = {"device": "cpu", "policy_kwargs": {"net_arch": [4]}}
    for kind in (PPO, A2C, contrib.TRPO, contrib.RecurrentPPO, DQN):
        path = tmp_path / f"{kind.__name__}.zip"
        kind("MlpLstmPolicy" if kind is contrib.RecurrentPPO else "MlpPolicy", "CartPole-v1", **small).save(path)
        if kind in (PPO, A2C):
            assert type(load_algorithm(path, "cpu")) is kind
        else:
            with pytest.raises(ValueError, match=rf"{kind.__name__}\.zip: only TGRPO, DPO, TPO, PPO and A2C are known"):
                load_algorithm(path, "cpu")
    groups = make_group_env("CartPole-v1", 2, 1, stop_on="never", subprocess=False)
    for grouped in (TGRPO, DPO, TPO):
        grouped("MlpPolicy", groups, device="cpu").save(tmp_path / "grouped.zip")
        assert type(load_algorithm(tmp_path / "grouped.zip", "cpu")) is grouped
