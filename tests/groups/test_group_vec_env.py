"""Groups as an SB3 VecEnv: wrappers, callbacks' infos, method calls, video."""

import os
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, VecNormalize, VecVideoRecorder
from toy_envs import IdentityEnv, ScriptEnv

from sb3_tgrpo.envs import GroupVecEnv, make_group_env

SCRIPT = {1: "success", 2: "terminated", 3: "truncated"}


def make(group_size: int = 2, n_groups: int = 2, subprocess: bool = False, **kwargs: object) -> GroupVecEnv:
    return make_group_env(partial(ScriptEnv, SCRIPT), group_size, n_groups, subprocess=subprocess, **kwargs)  # type: ignore[arg-type]


def rendered() -> gym.Env:
    return gym.wrappers.TimeLimit(ScriptEnv(render_mode="rgb_array"), 20)


@pytest.mark.parametrize("subprocess", [False, True])
def test_step_infos(subprocess: bool) -> None:
    env = make(subprocess=subprocess, seed=5)
    assert isinstance(env, VecEnv)
    assert env.reset()[:, 0].tolist() == [5, 5, 6, 6]
    env.step(np.array([10, 2, 10, 10]))  # member 1 is held from here on
    env.step(np.array([10, 99, 10, 10]))
    obs, rewards, dones, infos = env.step(np.array([1, 99, 10, 10]))
    assert dones.tolist() == [True, True, False, False]
    assert [info["valid"] for info in infos] == env.valid.tolist() == [True, False, True, True]
    assert infos[0]["episode"]["r"] == 21.0 and infos[0]["episode"]["l"] == 3
    assert infos[1]["episode"]["r"] == 2.0 and infos[1]["episode"]["l"] == 1  # held steps do not count
    assert infos[0]["is_success"] is True and infos[1]["is_success"] is False
    assert infos[0]["TimeLimit.truncated"] is False
    assert infos[1]["TimeLimit.truncated"] is True  # it had failed by itself, but another's success ended the group
    assert infos[0]["terminal_observation"].tolist() == [5, 3, 21]
    assert "episode" not in infos[2] and rewards.tolist() == [1, 0, 10, 10]
    assert obs[:2, 1].tolist() == [0, 0] and obs[2:, 1].tolist() == [3, 3]
    env.close()


def test_a_seed_for_the_next_reset_is_where_the_starts_are() -> None:
    env, unseeded = make(seed=5), make()
    unseeded.set_start_state(env.start_state())
    env.set_start_state(make().start_state())  # has no seed: that of this one holds
    assert env.start_state() == {"seed": 5, "n_starts": [0, 0]}
    for seeded in (env, unseeded):
        assert seeded.reset()[:, 0].tolist() == [5, 5, 6, 6]
    env.seed(9)
    assert env.start_state() == {"seed": 9, "n_starts": [0, 0]}


def test_success_of_a_member_that_was_held() -> None:
    env = make(n_groups=1, stop_on="never")
    env.reset()
    for actions in ([1, 10], [50, 10], [50, 2]):
        *_, dones, infos = env.step(np.array(actions))
    assert dones.all() and [info["is_success"] for info in infos] == [True, False]
    assert [info["valid"] for info in infos] == [False, True]
    env.step(np.array([2, 10]))
    *_, infos = env.step(np.array([50, 2]))
    assert [info["is_success"] for info in infos] == [False, False]  # nothing is left of the first episode


def test_truncation_flag_of_a_member_that_is_cut_short() -> None:
    env = make(n_groups=1)
    env.reset()
    *_, infos = env.step(np.array([1, 10]))
    assert [info["TimeLimit.truncated"] for info in infos] == [False, True]


def test_vec_monitor_and_normalize() -> None:
    env = VecNormalize(VecMonitor(make(n_groups=1)))
    env.reset()
    env.step(np.array([10, 10]))
    *_, dones, infos = env.step(np.array([10, 1]))
    assert dones.all() and [info["episode"]["r"] for info in infos] == [20.0, 11.0]
    assert env.unwrapped.group_size == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("subprocess", [False, True])
def test_methods_and_attributes(subprocess: bool) -> None:
    env = make_group_env(rendered, 2, 1, subprocess=subprocess)
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [True, True]
    assert env.env_is_wrapped(gym.wrappers.RecordVideo, indices=1) == [False]
    assert env.get_attr("tag", indices=[1]) == ["none"]
    env.set_attr("tag", "blue", indices=0)
    assert env.get_attr("tag") == ["blue", "none"]  # set where it is defined, behind the wrapper
    assert env.env_method("set_tag", "red", indices=[1]) == ["tag red"]
    assert env.get_attr("tag") == ["blue", "red"]
    assert env.render_mode == "rgb_array"
    env.reset()
    env.step(np.array([10, 10]))
    image = env.render()
    assert image is not None and image.shape == (64, 48, 3) and (image == 10).all()
    env.close()


def test_video_recorder(tmp_path: Path) -> None:
    env = make_group_env(rendered, 2)
    recorder = VecVideoRecorder(env, str(tmp_path), record_video_trigger=lambda step: step == 0, video_length=5)
    recorder.reset()
    for _ in range(8):
        recorder.step(np.full(2, 10))
    recorder.close()
    assert [path.stat().st_size > 0 for path in tmp_path.glob("*.mp4")] == [True]


def test_several_ids_and_kwargs() -> None:
    env = make_group_env(["CartPole-v1", "CartPole-v1"], group_size=3, n_groups=2, env_kwargs={"max_episode_steps": 7})
    assert env.num_envs == 12 and env.n_groups == 4
    assert env.get_attr("spec", indices=0)[0].max_episode_steps == 7


def test_seed_and_options() -> None:
    env = make()
    assert env.seed(9) == [9, 9, 10, 10]
    env.set_options({"k": 4})
    env.reset()
    assert [info["options"] for info in env.reset_infos] == [{"k": 4}] * 4
    env.reset()
    assert env.reset_infos[0]["options"] is None  # options act once, as in SB3
    env.set_options([{"k": 1}, {"k": 2}, {"k": 1}, {"k": 1}])
    with pytest.raises(ValueError, match="different options per environment"):
        env.reset()
    env.reset()
    assert env.reset_infos[0]["options"] is None  # those that were refused are gone


def test_ids_that_this_process_alone_has_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gym.registry, "Images-v0", gym.envs.registration.EnvSpec("Images-v0", partial(IdentityEnv, "image")))
    env = make_group_env("Images-v0", 2, subprocess=True, env_kwargs={"length": 3})
    env.reset()
    for _ in range(3):
        *_, dones, _ = env.step(np.zeros(2, dtype=int))
    assert dones.all()
    env.close()
    (tmp_path / "registering.py").write_text("import gymnasium\ngymnasium.register('Named-v0', 'toy_envs:IdentityEnv')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert make_group_env("registering:Named-v0", 2).reset().shape == (2, 3)
    del gym.registry["Named-v0"]


@pytest.mark.parametrize("n_actions", [1, 5])
def test_a_wrong_number_of_actions_moves_nobody(n_actions: int) -> None:
    env = make(subprocess=True, seed=0)
    env.reset()
    with pytest.raises(ValueError, match=f"There are {n_actions} actions, .*: 4"):
        env.step(np.full(n_actions, 10))
    assert env.step(np.full(4, 10))[0][:, 1].tolist() == [1] * 4
    env.close()


def test_processes_are_the_default_for_images_only() -> None:
    from sb3_tgrpo.envs.groups.worker import InProcessWorker, SubprocessWorker

    plain = make_group_env("CartPole-v1", 2)
    images = make_group_env(partial(IdentityEnv, "image"), 2)
    assert isinstance(plain.groups._workers[0], InProcessWorker)
    assert isinstance(images.groups._workers[0], SubprocessWorker)
    images.close()


def test_processes_do_not_fight_for_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo.envs.groups.worker import SubprocessWorker

    for name in ("OMP_NUM_THREADS", "LP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)

    class Tells(gym.Env):
        def threads(self, name: str) -> str | None:
            return os.environ.get(name)

    def asked(name: str) -> str | None:
        worker = SubprocessWorker(Tells)
        try:
            worker.send("call", "threads", (name,), {})
            return worker.receive(60.0)
        finally:
            worker.close()

    assert asked("OMP_NUM_THREADS") == "1" and asked("LP_NUM_THREADS") == "0"
    monkeypatch.setenv("LP_NUM_THREADS", "3")
    assert asked("LP_NUM_THREADS") == "3"  # the user's choice


def test_bad_input() -> None:
    with pytest.raises(gym.error.NameNotFound):
        make_group_env("NoSuchEnv-v0")
    with pytest.raises(ValueError, match="n_groups=0"):
        make_group_env("CartPole-v1", n_groups=0)
    with pytest.raises(ValueError, match="env_id is an empty list"):
        make_group_env([])
    with pytest.raises(TypeError, match="env_id must be an id"):
        make_group_env([3])  # type: ignore[list-item]
    with pytest.raises(TypeError, match=r"env_id must be an id, .* not None"):
        make_group_env(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="env_id must be an id"):
        make_group_env(gym.make("CartPole-v1"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="group_size=1"):
        make_group_env("CartPole-v1", group_size=1)
