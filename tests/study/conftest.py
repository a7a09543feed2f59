"""A finished study of the toy, common to all tests of this folder."""

import subprocess
import sys
from pathlib import Path

import pytest
from studies import environ, study_arguments


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished study of the toy."""
    folder = tmp_path_factory.mktemp("study")
    command = [sys.executable, "-m", "sb3_tgrpo", *study_arguments(folder)]
    done = subprocess.run(command, env=environ("0"), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TGRPO" in done.stdout and "table.md" in done.stdout
    return folder
