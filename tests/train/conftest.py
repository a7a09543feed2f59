"""A finished run of the toy, which tests copy."""

from pathlib import Path

import pytest
from vla_toy import TOY_FLAGS

from sb3_tgrpo.cli import main


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the toy."""
    folder = tmp_path_factory.mktemp("train") / "run"
    assert main(["train", *TOY_FLAGS, "--out", str(folder)]) == 0
    return folder
