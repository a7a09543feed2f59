"""Groups as an SB3 VecEnv: wrappers, callbacks' infos, method calls, video."""

import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecVideoRecorder
from toy_envs import IdentityEnv, ScriptEnv

from sb3_tgrpo.envs import GroupVecEnv, GroupVecNormalize, make_group_env

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


@pytest.mark.parametrize("wrapper", [lambda env: env, Monitor, gym.wrappers.RecordEpisodeStatistics])
def test_each_member_has_one_episode_without_the_steps_it_was_held(wrapper: Callable[[gym.Env], gym.Env]) -> None:
    env = make_group_env(lambda: wrapper(ScriptEnv(SCRIPT)), 2, stop_on="never")
    env.reset()
    entries = []
    for actions in ([10, 2], [10, 50], [3, 50]):  # member 1 ends two steps before member 0
        entries += [
            (i, info["episode"]["r"], info["episode"]["l"])
            for i, info in enumerate(env.step(np.array(actions))[3])
            if "episode" in info
        ]
    assert entries == [(0, 23.0, 3), (1, 2.0, 1)]


def test_evaluation_counts_no_step_at_which_a_member_was_held() -> None:
    class Plays:
        def predict(self, obs: np.ndarray, **kwargs: Any) -> tuple[np.ndarray, None]:
            return np.where(obs[:, 1] < np.arange(1, 5), 10, 2), None  # member i ends in its step i + 2

    env = make(group_size=4, n_groups=1, stop_on="never")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no Monitor is missing
        rewards, lengths = evaluate_policy(Plays(), env, 8, return_episode_rewards=True)  # type: ignore[arg-type]
    assert lengths == [2, 3, 4, 5] * 2 and rewards == [12.0, 22.0, 32.0, 42.0] * 2


def test_infos_are_the_callers_own() -> None:
    groups = make(n_groups=1)
    groups.reset()
    groups.step(np.array([10, 2]))[3][1]["is_success"] = True  # the held member's, as a wrapper may do
    infos = groups.step(np.array([3, 50]))[3]
    assert infos[1]["is_success"] is False


def observed(env: VecEnv, groups: GroupVecEnv, n_steps: int, seed: int = 0) -> tuple[list[float], list[float]]:
    """Raw observations that were acted on, and rewards of steps that count."""
    rng, acted, rewards = np.random.default_rng(seed), [], []
    env.reset()
    for _ in range(n_steps):
        acted += env.get_original_obs()[groups.active, 1].tolist()  # type: ignore[attr-defined]
        actions = np.where(rng.random(env.num_envs) < 0.2, 2, 10)
        env.step(actions)
        rewards += env.get_original_reward()[groups.valid].tolist()  # type: ignore[attr-defined]
    acted += env.get_original_obs()[groups.active, 1].tolist()  # type: ignore[attr-defined]
    return acted, rewards


@pytest.mark.parametrize("alternate", [False, True])
def test_normalisation_is_by_what_is_acted_on(alternate: bool) -> None:
    groups = make(group_size=4, stop_on="never", alternate=alternate, seed=3)
    env = GroupVecNormalize(groups, gamma=0.5)
    acted, rewards = observed(env, groups, 60)
    assert isinstance(env.obs_rms, RunningMeanStd)
    waiting = 4 if alternate else 0  # the other half's first observations are counted, and acted on later
    assert env.obs_rms.count == pytest.approx(len(acted) + waiting, abs=1) and env.ret_rms.count == pytest.approx(
        len(rewards), abs=1
    )
    mean = np.sum(acted) / (len(acted) + waiting)
    assert env.obs_rms.mean[1] == pytest.approx(mean, abs=0.05)
    assert len(rewards) < 60 * 8  # somebody was held


def test_normalisation_equals_sb3s_where_nobody_stands_still(tmp_path: Path) -> None:
    wrapped = [wrapper(make(n_groups=1, seed=5)) for wrapper in (VecNormalize, GroupVecNormalize)]
    rng = np.random.default_rng(0)
    for env in wrapped:
        env.reset()
    for _ in range(30):
        actions = np.where(rng.random() < 0.2, 1, rng.integers(10, 20, 2))  # a success of both ends the group
        (a, b, c, infos), (x, y, z, others) = (env.step(actions) for env in wrapped)
        for one, other in ((a, x), (b, y), (c, z)):
            np.testing.assert_array_equal(one, other)
        for info, other in zip(infos, others, strict=True):
            np.testing.assert_array_equal(info.get("terminal_observation"), other.get("terminal_observation"))
    wrapped[1].save(str(tmp_path / "moments.pkl"))
    assert isinstance(VecNormalize.load(str(tmp_path / "moments.pkl"), make(n_groups=1)), GroupVecNormalize)


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
    pytest.importorskip("moviepy")
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
