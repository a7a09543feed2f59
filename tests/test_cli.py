"""The command line as a whole; each subcommand's own tests are with its subject."""

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


def test_module_and_version() -> None:
    result = subprocess.run([sys.executable, "-m", "sb3_tgrpo", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == __version__
