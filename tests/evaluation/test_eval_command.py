"""``sb3-tgrpo eval``."""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import A2C, DQN, PPO
from walking import fake

from sb3_tgrpo import DPO, TGRPO, TPO
from sb3_tgrpo.cli import main
from sb3_tgrpo.cli.eval import add_parser, default_folder, load_algorithm, protocol_from
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation
from sb3_tgrpo.openvla.tiny import save_tiny
from sb3_tgrpo.run_folder import RunFolder

TASK = "LIBERO/libero_object-9-v0"


@pytest.fixture
def short_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """LIBERO's environment in this process and with two steps, whatever its registration says."""
    from sb3_tgrpo.evaluation import evaluate, player

    make = player.env_maker
    monkeypatch.setattr(
        evaluate, "env_maker", lambda env, kwargs, render=False: make(env, {**kwargs, "max_episode_steps": 2}, render)
    )
    init = player.EpisodePlayer.__init__
    monkeypatch.setattr(
        player.EpisodePlayer, "__init__", lambda self, *args, **how: init(self, *args, **{**how, "subprocess": False})
    )


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], short_episodes: None) -> None:
    before = fake([0], task="libero_object-9")
    before.protocol["step_limits"] = {"libero_object-9": 2}
    before.save(tmp_path / "before.json")
    arguments = [
        "--env",
        "libero_object-9",
        "--assets",
        "light",
        "--image-size",
        "64",
        "--quiet",
        "--video",
        "all",
        "--reward",
    ]
    arguments += ["--starts", "0", "--out", str(tmp_path / "out"), "--compare", str(tmp_path / "before.json"), "--n-envs", "1"]
    assert main(["eval", "--checkpoint", "tiny", *arguments]) == 0
    shown = capsys.readouterr()
    assert "--starts is now --init-state-ids" in shown.err
    text = shown.out
    assert (
        "libero_object-9" in text
        and "0/1 = 0%" in text
        and "2 of 2 steps" in text
        and "McNemar" in text
        and "light assets" in text
    )
    assert "of the stages" in text and "percentage points" in text and "1 initial state resampled; too narrow" in text
    evaluation = Evaluation.load(tmp_path / "out" / "evaluation.json")
    assert evaluation.episodes[0].length == 2 and evaluation.protocol["step_limits"] == {"libero_object-9": 2}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "settings.json", "episodes.jsonl", "evaluation.json", "report.txt", "command.json", "comparison.json", "videos",
        ".lock",
    }  # fmt: skip
    assert (tmp_path / "out" / "videos" / "libero_object-9-start00-failure.mp4").is_file()
    assert main(["eval", "--checkpoint", "tiny", *arguments, "--sampled"]) == 1
    assert "protocol.decoding.temperature was 0.0, is 1.0" in capsys.readouterr().err
    arguments.remove("--reward")
    assert main(["eval", "--checkpoint", "tiny", *arguments]) == 1
    assert "envs.libero_object-9.reward was" in capsys.readouterr().err
    with RunFolder(tmp_path / "out").locked():
        assert main(["eval", "--checkpoint", "tiny", *arguments]) == 1
    assert "in use by another process" in capsys.readouterr().err


def test_what_the_checkpoint_was_trained_on_is_what_it_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], short_episodes: None
) -> None:
    record = {"image_key": "eye_in_hand_rgb", "image_size": [64, 64], "assets": "light", "gripper": "none"}
    checkpoint = tmp_path / "wrist"
    save_tiny(checkpoint, 16)
    config = json.loads((checkpoint / "config.json").read_text())
    config["sb3_tgrpo"] |= record
    (checkpoint / "config.json").write_text(json.dumps(config))
    arguments = ["eval", "--checkpoint", str(checkpoint), "--env", TASK, "--init-state-ids", "0", "--quiet", "--video", "none"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--n-envs", "1"]) == 0
    played = Evaluation.load(tmp_path / "out/evaluation.json")
    assert played.protocol["env_kwargs"] == {"assets": "light", "observations": ["wrist_image"], "image_size": 64}
    capsys.readouterr()
    assert main([*arguments, "--image-size", "128"]) == 1
    assert "image_size=128x128" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "tiny"], "Name what to evaluate on"),
        (["--checkpoint", "tiny", "--suite", "libero_easy"], "--suite libero_easy: unknown"),
        (["--checkpoint", "tiny", "--env", "libero_objct-3"], "Did you mean libero_object-3"),
        (["--checkpoint", "tiny", "--env", "libero_object_3"], "Did you mean libero_object-3"),
        (["--checkpoint", "tiny", "--env", "libero_object-33"], "`libero_object-33` doesn't exist"),
        (["--checkpoint", "tiny", "--env", "Cartpole-v1", "--drawn"], "CartPole"),
        (["--checkpoint", "tiny", "--env", TASK, "CartPole-v1"], "one after the other"),
        (["--checkpoint", "tiny", "--env", "CartPole-v1"], "has no stored initial states, only LIBERO's have: add --drawn"),
        (["--checkpoint", "tiny", "--env", "CartPole-v1", "--drawn", "--reward"], "--reward: only for LIBERO's"),
        (["--checkpoint", "nowhere", "--env", TASK], "neither a folder nor a hub id"),
        (["--checkpoint", "tiny", "--env", TASK, "--episodes", "0"], "--episodes 0 must be at least 1"),
        (["--checkpoint", "tiny", "--env", TASK, "--n-envs", "0"], "--n-envs 0 must be at least 1"),
        (["--checkpoint", "tiny", "--env", TASK, "--episodes", "51"], "has 50 stored initial states, 0 to 49"),
        (
            ["--checkpoint", "tiny", "--env", TASK, "--init-state-ids", "3", "77"],
            r"init_state_ids=[77]: LIBERO/libero_object-9",
        ),
        (["--checkpoint", "tiny", "--env", TASK, "--temperature", "1"], "add --sampled"),
        (["--checkpoint", "tiny", "--env", TASK, "--sampled", "--temperature", "0"], "--temperature 0 is greedy"),
        (["--checkpoint", "tiny", "--env", TASK, "--start-noise", "2"], "start_noise=2.0 must be a distance in metres"),
        (["--model", "m.zip", "--env", TASK], "--model m.zip: there is no such file"),
        (["--model", "m.zip", "--adapter", "A", "--env", TASK], "--adapter A is merged into --checkpoint"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_loaded(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_tgrpo.cli.eval.load_policy", lambda *_: pytest.fail("a policy was loaded"))
    assert main(["eval", *arguments]) == 1
    assert message in capsys.readouterr().err


def test_refusals_need_no_torch() -> None:
    code = (
        "import sys; from sb3_tgrpo.cli import main; "
        f"main(['eval', '--checkpoint', 'tiny', '--env', {TASK!r}, '--start-noise', '2']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False" and "start_noise=2.0" in done.stderr


def test_a_run_folder_is_not_a_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_tiny(tmp_path / "checkpoint", 16)
    assert main(["eval", "--checkpoint", str(tmp_path), "--env", TASK]) == 1
    assert f"did you mean '{tmp_path}/checkpoint'?" in capsys.readouterr().err


def test_a_file_that_is_no_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "--model", __file__, "--env", TASK]) == 1
    assert "is not a saved algorithm" in capsys.readouterr().err


def test_ctrl_c_is_heard_before_anything_is_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, short_episodes: None
) -> None:
    heard: list[str] = []

    def interrupted(*_: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        finally:
            heard.append(capsys.readouterr().err)

    monkeypatch.setattr("sb3_tgrpo.cli.eval.load_policy", interrupted)
    assert main(["eval", "--checkpoint", "tiny", "--env", TASK, "--out", str(tmp_path)]) == 130
    assert "The same command goes on from here" in heard[0]


def test_the_table_names_units_and_scales() -> None:
    evaluation = fake([1, 0, 1, 1])
    evaluation.protocol |= {"seeds": None, "official_order": False, "step_limits": {"libero_object-3": 280}}
    evaluation.episodes.append(EvalEpisode("libero_object-3", 4, 0, False, 280, 0.0, 2, 4, 0.5))
    text = str(evaluation)
    assert "greedy, light assets, stored initial states" in text and "3/5 = 60%" in text and "64 of 280 steps" in text
    assert "of the stages" in text and " 50% " in text


def arguments_of(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["eval", "--env", "libero_object-9", *options])


def test_an_adapter_is_part_of_the_folder() -> None:
    arguments = [arguments_of("--checkpoint", "tiny", *more) for more in ((), ("--adapter", "runs/A"))]
    folders = [default_folder(args, [TASK], protocol_from(args, [TASK])).name for args in arguments]
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
