"""The command line as a whole; each subcommand's own tests are with its subject."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sb3_tgrpo import __version__
from sb3_tgrpo.cli import SUBCOMMANDS, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for name in SUBCOMMANDS:
        assert f"    {name} " in text


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["reward"], ["demos", "collect"]])
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2


def test_errors_are_messages_not_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demos", "show", "no_such_file.hdf5"]) == 1
    error = capsys.readouterr().err
    assert "no_such_file.hdf5" in error and "Traceback" not in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["eval", "--checkpoint", "tiny", "--episodes", "1", "--env"],
        ["train", "--checkpoint", "tiny", "--plain", "--reward", "sparse", "--env"],
    ],
)
def test_unknown_environment_is_a_message(arguments: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([*arguments, "LIBERO/libero_object-99-v0", "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "libero_object-99" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --gamma 0.995", "--algo tgrpo does not use gamma. Its settings: .*gamma_traj"),
        ("train --algo ppo --kl-coef 0.1", "--algo ppo does not use kl_coef"),
        ("train --lora foo", "lora='foo' is unknown"),
        ("train --eval-starts 60", "eval_initial_states=60: LIBERO/libero_object-8-v0 has 50 stored initial states"),
        ("train --config nothing.json", r"nothing.json can't be read as a configuration: No such file"),
        ("train --out {file}", r"can't be made a folder \(it is a file\): choose another one with --out"),
        ("eval --checkpoint tiny --env libero_object-8 --temperature 0.5", "add --sampled"),
        ("eval --checkpoint tiny --env libero_object-8 --episodes-per-start 2", "add --sampled"),
        ("eval --checkpoint tiny --env libero_object-8 --compare nothing.json", "nothing.json can't be read as an evaluation"),
        ("eval --model nothing.zip --env libero_object-8", "--model nothing.zip: there is no such file"),
        ("eval --checkpoint tiny --env CartPole-v1", "CartPole-v1 has no stored initial states.*add --drawn"),
        (
            "eval --checkpoint tiny --env CartPole-v1 --drawn --reward",
            "--reward: only for LIBERO's environments, not for CartPole-v1",
        ),
        ("eval --checkpoint tiny --env CartPole-v1 libero_object-8", "one after the other"),
        ("study table1 --dry-run --tasks libero_objct-3 --out {there}", "libero_objct-3"),
        ("study table1 --dry-run --tasks libero_object-33 --out {there}", "libero_object-33"),
        ("study table1 --dry-run --checkpoint START8 --out {there}", "checkpoint 'START8' is neither a folder nor"),
        ("study table1 --dry-run --tuning {there}", "has no finished tuning"),
    ],
)
def test_wrong_input_is_told_before_anything_runs(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, there = tmp_path / "file", tmp_path / "there"
    file.write_text("")
    assert main(arguments.format(file=file, there=there).split()) == 1
    error = capsys.readouterr().err
    assert re.search(message, error) and "Traceback" not in error
    assert not there.exists()  # where nothing is run nothing is written


def test_waiting_threads_give_up_their_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """In scripts too. What is set is set before torch is imported, and what the user has set stays."""
    code = "import os, sys; import sb3_tgrpo; print('torch' not in sys.modules, os.environ.get('GOMP_SPINCOUNT'))"
    for given, expected in (({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")):
        for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert output.splitlines()[-1] == f"True {expected}"


def test_module_and_version() -> None:
    result = subprocess.run([sys.executable, "-m", "sb3_tgrpo", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == __version__
