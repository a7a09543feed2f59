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


def test_waiting_threads_give_up_their_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set is set before torch is imported, and what the user has set stays."""
    code = (
        "import os, sys; from sb3_tgrpo.cli import main; early = 'torch' not in sys.modules\n"
        "try: main(['--version'])\n"
        "except SystemExit: pass\n"
        "print(early, os.environ.get('GOMP_SPINCOUNT'))"
    )
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
