"""What can't work is refused at once, in one line; Ctrl-C is heard at once."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch as th
from vla_toy import TOY_FLAGS as TOY

from sb3_tgrpo import cli
from sb3_tgrpo.cli import main
from sb3_tgrpo.cli.interrupt import interruptible
from sb3_tgrpo.openvla.loading import resolve_device
from sb3_tgrpo.rewards.facts.task_facts import data_folder
from sb3_tgrpo.train.callbacks import MetricsCallback
from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.setup import check_request

REFUSED = (
    ("--measure-signal 0", "n_groups=0: comparing gradients takes at least 3"),
    ("--seeds 1", "seeds=[1] must be two or more"),
    ("--seeds 1 2 --measure-signal 9", "--measure-signal and --seeds contradict each other"),
    ("--alpha-step 0 --alpha-traj 0", "all advantages would be 0"),
    ("--demos 5", "demos: settings of a base policy that is made first"),
    ("--quantization 4bit --lora none", "weights in 4 bits can't be trained"),
    ("--quantization 4bit", "all weights of"),
    ("--reward {spec}", "is for libero_object-3, not for libero_object-8"),
    ("--reward nothing.json", "nothing.json"),
    ("--env libero_objct-8", "Did you mean libero_object-8?"),
    ("--env LIBERO/libero_object-99-v0", "Did you mean: `libero_object-9`"),
    ("--env CartPole-v1 --reward sparse", "reward: only LIBERO's tasks have them, and env='CartPole-v1' is none"),
    ("--checkpoint {run}", "did you mean '{run}/checkpoint'?"),
    ("--checkpoint nowhere", "checkpoint 'nowhere' is neither a folder nor"),
    ("--eval-initial-states 60", "LIBERO/libero_object-8-v0 has 50 stored initial states"),
)


def test_what_cannot_work_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "checkpoint").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    (run / "checkpoint/config.json").write_text('{"text_config": {}}')
    spec = data_folder("specs") / "libero_object-3.json"
    asked = [flags.format(spec=spec, run=run).split() for flags, _ in REFUSED]
    code = (
        "import sys\nfrom sb3_tgrpo.cli import main\n"
        f"for flags in {asked!r}:\n"
        "    status = main(['train', *flags, '--out', 'out'])\n"
        "    print(status, 'torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    lines = done.stderr.splitlines()
    assert lines[1::2] == ["1 False"] * len(REFUSED), done.stderr
    for line, (_, message) in zip(lines[::2], REFUSED, strict=True):
        assert message.format(run=run).lower() in line.lower(), (message, line)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("device", "remedy"), [("foo", "Choose auto, cpu"), ("cuda:99", "device='cpu'"), ("cpu:x", "Choose auto")]
)
def test_a_device_that_torch_does_not_have_is_one_line(
    device: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *TOY, "--device", device, "--out", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"device='{device}'" in line and remedy in line
    assert not (tmp_path / "evaluations").exists()
    assert main(["eval", "--checkpoint", "tiny", "--env", "libero_object-8", "--assets", "light", "--device", device]) == 1
    assert f"device='{device}'" in capsys.readouterr().err


def test_devices_that_torch_has() -> None:
    assert [resolve_device(name).type for name in ("cpu", "cpu:0")] == ["cpu"] * 2
    assert resolve_device("auto").type == ("cuda" if th.cuda.is_available() else "cpu")


def test_an_environment_of_ones_own_needs_nothing_of_libero() -> None:
    check_request(TrainConfig().updated({"env": "CartPole-v1", "checkpoint": "tiny"}))


@pytest.mark.parametrize(("error", "lines"), [("No OpenGL library for offscreen rendering was found.", 1), ("a defect", None)])
def test_missing_opengl_is_one_line(
    error: str, lines: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise RuntimeError(error)

    monkeypatch.setattr("sb3_tgrpo.cli.doctor.run", fail)
    if lines is None:
        with pytest.raises(RuntimeError, match=error):
            main(["doctor"])
        return
    assert main(["doctor"]) == 1
    assert capsys.readouterr().err == f"sb3-tgrpo: RuntimeError: {error}\n"


def test_ctrl_c_is_heard_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interruptible():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        finally:  # while simulators are ended
            assert "The same command goes on from here." in capsys.readouterr().err
            assert signal.getsignal(signal.SIGINT) == before  # a second one interrupts as usual
    with interruptible():
        pass
    assert signal.getsignal(signal.SIGINT) == before


def test_groups_that_were_sampled_again_are_counted() -> None:
    """Each once, however many members it has."""
    callback = MetricsCallback()
    callback.model = SimpleNamespace(group_size=2, get_env=lambda: SimpleNamespace(num_envs=4))  # type: ignore[assignment]
    callback._begin()
    callback.locals = {"infos": [{"resampled": True}, {"resampled": True}, {}, {}], "dones": np.zeros(4, dtype=bool)}
    callback._on_step()
    assert callback._resampled == 1


def test_old_flags_still_work(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--eval-starts", "60"]) == 1
    error = capsys.readouterr().err
    assert "--eval-starts is now --eval-initial-states" in error and "eval_initial_states=60" in error
    assert cli.SUBCOMMANDS
