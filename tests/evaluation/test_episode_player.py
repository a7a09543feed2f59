"""EpisodePlayer: environments that keep it waiting. What it plays is tested with the evaluation."""

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_envs import OnceCrashingEnv

from sb3_tgrpo.envs.groups import worker
from sb3_tgrpo.evaluation.player import EpisodePlayer, _Slot
from sb3_tgrpo.evaluation.protocol import EpisodeRequest


class Nines:
    batch_size = 2

    def begin(self, request: EpisodeRequest) -> None:
        return None

    def act(self, observations: Any, memories: Any) -> list[np.ndarray]:
        return [np.array(9)] * len(observations)


def test_a_late_environment_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited_for: list[tuple[int, float | None]] = []
    receive = worker.SubprocessWorker.receive

    def noted(self: worker.SubprocessWorker, timeout: float | None) -> Any:
        process = self.process.popen.pid
        try:
            return receive(self, timeout)
        except worker.WorkerLostError:
            waited_for.append((process, timeout))
            raise

    monkeypatch.setattr(worker.SubprocessWorker, "receive", noted)
    maker = partial(OnceCrashingEnv, str(tmp_path / "hung"), "hang", 3)
    player = EpisodePlayer({"task": maker}, Nines(), n_envs=2, timeout=2.0)
    with pytest.warns(UserWarning, match="did not answer in time: restarted, the episode begins again"):
        played = list(player.play([EpisodeRequest("task", seed, None) for seed in range(3)]))
    assert [episode.length for episode in played] == [3, 3, 3]
    # The player has waited for its 2 s already. On a machine that stalls other environments may be late too.
    hung = int((tmp_path / "hung").read_text())
    assert [timeout for process, timeout in waited_for if process == hung] == [0.0]


def test_a_new_process_that_is_late_is_not_waited_for_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "START_TIMEOUT", 3.0)
    hanging = worker.SubprocessWorker(lambda: time.sleep(1000))  # type: ignore[arg-type, return-value]
    hanging.send("describe")
    with pytest.raises(worker.WorkerLostError, match="did not answer in time"):
        hanging.receive(0.0)
    hanging.close()


def test_simulators_close_together() -> None:
    """Each may take seconds to end: one after the other they would add up."""
    all_are_closing = threading.Barrier(3)

    class Slow:
        def close(self) -> None:
            all_are_closing.wait(60)

    player = EpisodePlayer({}, Nines(), n_envs=3)
    slots = [_Slot({}, True, None) for _ in range(3)]
    for slot in slots:
        slot.worker = Slow()  # type: ignore[assignment]
    player._close(slots)
    assert all(slot.worker is None for slot in slots)
