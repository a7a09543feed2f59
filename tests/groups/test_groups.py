"""SyncGroupVectorEnv: stop rules, hold and mask, starts, and workers that crash, hang or raise."""

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from toy_envs import OnceCrashingEnv, ScriptEnv, UnseededEnv

from sb3_tgrpo.envs import SyncGroupVectorEnv
from sb3_tgrpo.envs.groups.worker import WorkerLostError

SCRIPT = {1: "success", 2: "terminated", 3: "truncated", 4: "raise", 5: "crash", 6: "hang"}
MakeGroups = Callable[..., SyncGroupVectorEnv]


@pytest.fixture
def make() -> Iterator[MakeGroups]:
    opened: list[SyncGroupVectorEnv] = []

    def make_groups(n_envs: int = 4, group_size: int = 4, env: Any = None, **kwargs: Any) -> SyncGroupVectorEnv:
        kwargs.setdefault("subprocess", False)
        groups = SyncGroupVectorEnv([env or partial(ScriptEnv, SCRIPT)] * n_envs, group_size, **kwargs)
        opened.append(groups)
        return groups

    yield make_groups
    for groups in opened:
        groups.close()


class Pictures(ScriptEnv):
    """Its pictures are larger than what a socket holds (208 KiB)."""

    def __init__(self) -> None:
        super().__init__(SCRIPT)
        self.observation_space = gym.spaces.Box(0, 255, (288, 288, 3), np.uint8)

    def _obs(self) -> np.ndarray:
        return np.full((288, 288, 3), self.total, np.uint8)

    def picture(self, value: int) -> np.ndarray:
        return np.full((288, 288, 3), value + self.total, np.uint8)

    def count_up(self) -> int:
        self.total += 1
        return self.total

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


def flags(result: tuple) -> tuple[list[bool], list[bool], list[bool]]:
    return result[2].tolist(), result[3].tolist(), result[4]["valid"].tolist()


@pytest.mark.parametrize("subprocess", [False, True])
def test_stop_on_success(make: MakeGroups, subprocess: bool) -> None:
    env = make(stop_on="success", subprocess=subprocess)
    env.reset(seed=7)
    # Member 1 ends without success: held and masked, the others go on
    assert flags(env.step(np.array([10, 2, 12, 13]))) == ([False] * 4, [False] * 4, [True] * 4)
    result = env.step(np.array([20, 50, 22, 23]))
    assert flags(result) == ([False] * 4, [False] * 4, [True, False, True, True])
    assert result[1].tolist() == [20.0, 0.0, 22.0, 23.0]
    assert result[0][1].tolist() == [7.0, 1.0, 2.0]  # it stands where it ended
    # Member 2 succeeds: the group ends, members that did not are truncated, the one that had failed before as well
    obs, _rewards, terminations, truncations, infos = env.step(np.array([30, 50, 1, 33]))
    assert terminations.tolist() == [False, False, True, False]
    assert truncations.tolist() == [True, True, False, True]
    assert infos["valid"].tolist() == [True, False, True, True]
    assert [final.tolist() for final in infos["final_obs"]] == [[7, 3, 60], [7, 1, 2], [7, 3, 35], [7, 3, 69]]
    assert infos["final_info"]["is_success"].tolist() == [False, False, True, False]
    # ... and is at its next start at once
    assert (obs[:, 1:] == 0).all() and len(set(obs[:, 0])) == 1 and obs[0, 0] != 7
    assert flags(env.step(np.array([10, 10, 10, 10])))[2] == [True] * 4


def test_stop_on_termination_and_never(make: MakeGroups) -> None:
    env = make(stop_on="termination")
    env.reset(seed=0)
    assert flags(env.step(np.array([3, 10, 10, 10])))[:2] == ([False] * 4, [False] * 4)  # a truncation is no termination
    assert flags(env.step(np.array([10, 10, 2, 10])))[:2] == ([False, False, True, False], [True, True, False, True])

    env = make(stop_on="never")
    env.reset(seed=0)
    for actions, valid in (([1, 10, 10, 10], [True] * 4), ([10, 2, 10, 10], [False, True, True, True])):
        assert flags(env.step(np.array(actions))) == ([False] * 4, [False] * 4, valid)
    assert flags(env.step(np.array([10, 10, 3, 10])))[2] == [False, False, True, True]
    for _ in range(16):
        assert flags(env.step(np.full(4, 10)))[2] == [False, False, False, True]
    terminations, truncations, valid = flags(env.step(np.full(4, 10)))  # the 20th step is the limit
    assert (terminations, truncations) == ([True, True, False, False], [False, False, True, True])
    assert valid == [False, False, False, True]


def test_ends_when_nobody_is_left(make: MakeGroups) -> None:
    env = make(stop_on="success")
    env.reset(seed=0)
    env.step(np.array([2, 2, 10, 10]))
    assert flags(env.step(np.array([10, 10, 2, 3])))[:2] == ([True, True, True, False], [False, False, False, True])


def test_success_of_the_last_one_left_truncates_the_others(make: MakeGroups) -> None:
    env = make(stop_on="success")
    env.reset(seed=0)
    env.step(np.array([2, 3, 10, 2]))
    # Member 0 failed before, member 3 as well; nobody is left, but it is a success that ends the group
    assert flags(env.step(np.array([10, 10, 1, 10])))[:2] == ([False, False, True, False], [True, True, False, True])


def test_success_and_failure_in_one_step(make: MakeGroups) -> None:
    env = make(stop_on="success")
    env.reset(seed=0)
    assert flags(env.step(np.array([1, 2, 1, 10])))[:2] == ([True, False, True, False], [False, True, False, True])


@pytest.mark.parametrize("subprocess", [False, True])
def test_final_info_is_of_each_members_own_last_step(make: MakeGroups, subprocess: bool) -> None:
    env = make(n_envs=4, group_size=2, stop_on="never", subprocess=subprocess)
    env.reset(seed=0)
    for actions in ([1, 10, 10, 10], [50, 10, 1, 10], [50, 10, 50, 10]):
        infos = env.step(np.array(actions))[4]
    assert "final_info" not in infos
    infos = env.step(np.array([50, 2, 50, 10]))[4]  # member 0 succeeded three steps ago and was held
    assert infos["final_info"]["_is_success"].tolist() == [True, True, False, False]
    assert infos["final_info"]["is_success"].tolist() == [True, False, False, False]
    infos = env.step(np.array([2, 10, 50, 3]))[4]  # the other group; member 0 fails in its next episode
    assert infos["final_info"]["_is_success"].tolist() == [False, False, True, True]
    assert infos["final_info"]["is_success"].tolist() == [False, False, True, False]
    infos = env.step(np.array([50, 2, 10, 10]))[4]
    assert infos["final_info"]["is_success"].tolist() == [False, False, False, False]


def test_groups_are_independent(make: MakeGroups) -> None:
    env = make(n_envs=4, group_size=2)
    obs, _ = env.reset(seed=100)
    assert obs[:, 0].tolist() == [100, 100, 101, 101]  # group g starts where a plain env with seed + g does
    result = env.step(np.array([1, 10, 10, 10]))
    assert flags(result)[:2] == ([True, False, False, False], [False, True, False, False])
    assert result[0][:, 1].tolist() == [0, 0, 1, 1]
    result = env.step(np.full(4, 10))
    assert result[0][:, 1].tolist() == [1, 1, 2, 2]


def test_starts_are_a_function_of_the_seed(make: MakeGroups) -> None:
    def starts(env: SyncGroupVectorEnv, n: int) -> list[list[float]]:
        return [env.step(np.full(4, 1))[0][:, 0].tolist() for _ in range(n)]

    first, second, other = make(group_size=2), make(group_size=2), make(group_size=2)
    first.reset(seed=5)
    second.reset(seed=5)
    other.reset(seed=6)
    sequence = starts(first, 4)
    assert sequence == starts(second, 4) != starts(other, 4)
    assert len({seeds[i] for seeds in sequence for i in (0, 2)}) == 8  # no start twice, groups differ
    # Groups that end at other times get the same starts
    second.reset(seed=5)
    for actions in ([1, 10, 10, 10], [1, 10, 10, 10], [10, 10, 1, 10], [10, 10, 1, 10]):
        obs = second.step(np.array(actions))[0]
    assert obs[:, 0].tolist() == sequence[1]
    # Going on from a saved position
    first.reset(seed=5)
    starts(first, 2)
    state = first.start_state()
    assert first.reset()[0][:, 0].tolist() == sequence[2]
    second.set_start_state(state)
    assert second.reset()[0][:, 0].tolist() == sequence[1]
    assert starts(second, 2) == sequence[2:4]
    with pytest.raises(ValueError, match="of 2 groups, this environment has 1"):
        make(group_size=4).set_start_state(state)


def test_seeds_options_and_start_options(make: MakeGroups) -> None:
    env = make(group_size=2)
    obs, infos = env.reset(seed=[3, 3, 9, 9], options={"k": 1})
    assert obs[:, 0].tolist() == [3, 3, 9, 9]
    assert infos["options"]["k"].tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="seed differs within group 0"):
        env.reset(seed=[3, 4, 9, 9])
    with pytest.raises(ValueError, match="seed has 2 entries"):
        env.reset(seed=[3, 3])
    drawn = make(group_size=2, start_options=lambda rng: {"init_state_id": int(rng.integers(50))})
    ids = drawn.reset(seed=1)[1]["options"]["init_state_id"].tolist()
    assert ids[0] == ids[1] and ids[2] == ids[3]
    assert drawn.reset(seed=1)[1]["options"]["init_state_id"].tolist() == ids


@pytest.mark.parametrize("how", ["crash", pytest.param("hang", marks=pytest.mark.thorough)])
def test_lost_worker_is_restarted_and_the_group_sampled_again(make: MakeGroups, tmp_path: Path, how: str) -> None:
    maker = partial(OnceCrashingEnv, str(tmp_path / "crashed"), how)
    env = make(n_envs=4, group_size=2, env=maker, subprocess=True, timeout=10.0)
    env.reset(seed=11)
    env.step(np.full(4, 10))
    with pytest.warns(UserWarning, match="Environment 1 .*restarted, group 0 is sampled again"):
        obs, rewards, terminations, truncations, infos = env.step(np.array([10, 9, 10, 10]))
    assert infos["resampled"].tolist() == [True, True, False, False]
    assert infos["valid"].tolist() == [False, False, True, True]
    assert rewards.tolist() == [0.0, 0.0, 10.0, 10.0] and not (terminations | truncations).any()
    assert obs.tolist() == [[11, 0, 0], [11, 0, 0], [12, 2, 20], [12, 2, 20]]  # the same start; the other group goes on
    obs = env.step(np.full(4, 10))[0]
    assert obs[:, 1].tolist() == [1, 1, 3, 3]


def test_gives_up_after_three_restarts(make: MakeGroups) -> None:
    env = make(n_envs=2, group_size=2, subprocess=True)
    env.reset(seed=0)
    for _ in range(3):
        with pytest.warns(UserWarning, match="restarted"):
            env.step(np.array([10, 5]))
    message = r"Environment 1 ended unexpectedly, exit status 3, after 3 restarts of it in one group .start seed 0.*timeout"
    with pytest.raises(RuntimeError, match=message):
        env.step(np.array([10, 5]))


def test_restarts_are_counted_for_each_environment(make: MakeGroups) -> None:
    """What strikes a whole group at once, such as a machine that was suspended, is one restart for each, not four."""
    env = make(n_envs=4, group_size=4, subprocess=True)
    env.reset(seed=0)
    for _ in range(3):
        with pytest.warns(UserWarning, match="restarted"):
            infos = env.step(np.full(4, 5))[4]
        assert infos["resampled"].all()
    with pytest.raises(RuntimeError, match=r"Environment 2 .*after 3 restarts of it"):
        env.step(np.array([10, 10, 5, 10]))


def test_a_reset_begins_another_count_of_restarts(make: MakeGroups) -> None:
    env = make(n_envs=2, group_size=2, subprocess=True)
    for _ in range(2):
        env.reset(seed=0)
        env.step(np.array([10, 5]))
        env.step(np.array([10, 5]))
    assert env.step(np.array([10, 10]))[4]["valid"].all()


def test_a_finished_group_clears_the_count_of_restarts(make: MakeGroups) -> None:
    env = make(n_envs=2, group_size=2, subprocess=True)
    env.reset(seed=0)
    for actions in ([10, 5], [10, 5], [1, 10], [10, 5], [10, 5]):  # four restarts, but never more than two in a group
        env.step(np.array(actions))
    assert env.step(np.array([10, 10]))[4]["valid"].all()


@pytest.mark.parametrize("subprocess", [False, True])
def test_exception_reaches_the_caller(make: MakeGroups, subprocess: bool) -> None:
    env = make(subprocess=subprocess)
    env.reset(seed=0)
    with pytest.raises(ValueError, match="broken on purpose") as error:
        env.step(np.array([10, 10, 4, 10]))
    notes = "".join(error.value.__notes__)
    assert "environment 2 (member 2 of group 0)" in notes
    assert not subprocess or "toy_envs.py" in notes  # the worker's traceback
    # Answers that were still under way are not mistaken for later ones
    obs, _ = env.reset(seed=3)
    assert obs[:, 0].tolist() == [3, 3, 3, 3]
    assert env.step(np.full(4, 10))[0][:, 1].tolist() == [1, 1, 1, 1]


def test_gymnasium_vector_behaviour(make: MakeGroups) -> None:
    env = make(n_envs=4, group_size=2, env=partial(gym.make, "CartPole-v1"), stop_on="termination")
    assert isinstance(env, VectorEnv)
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    assert (env.num_envs, env.n_groups, env.group_size) == (4, 2, 2)
    obs, _ = env.reset(seed=1)
    assert obs in env.observation_space and env.action_space.shape == (4,)
    single, _ = gym.make("CartPole-v1").reset(seed=1)
    np.testing.assert_array_equal(obs[0], single)
    wrapped = gym.wrappers.vector.RecordEpisodeStatistics(env)
    wrapped.reset(seed=1)
    wrapped.action_space.seed(0)
    for _ in range(200):
        *_, terminations, truncations, infos = wrapped.step(wrapped.action_space.sample())
        if "episode" in infos:
            break
    ended = terminations | truncations
    assert ended.sum() == 2 and (infos["episode"]["l"][ended] > 1).all()
    assert env.call("get_wrapper_attr", "spec")[0].id == "CartPole-v1"
    assert env.get_attr("spec")[3].id == "CartPole-v1"


def test_image_and_dict_observations_cross_processes(make: MakeGroups) -> None:
    from toy_envs import IdentityEnv

    env = make(n_envs=2, group_size=2, env=partial(IdentityEnv, "dict"), subprocess=True)
    obs, _ = env.reset(seed=0)
    assert obs["image"].shape == (2, 36, 36, 3) and obs["image"].dtype == np.uint8
    assert obs in env.observation_space
    obs = env.step(np.zeros(2, dtype=int))[0]
    assert obs in env.observation_space and not np.shares_memory(obs["image"], env.step(np.zeros(2, dtype=int))[0]["image"])


def test_pause_and_resume(make: MakeGroups) -> None:
    env = make(n_envs=4, group_size=2)
    env.reset(seed=0)
    env.pause([0])
    assert env.active.tolist() == [False, False, True, True]
    obs, rewards, *_, infos = env.step(np.full(4, 10))
    assert obs[:, 1].tolist() == [0, 0, 1, 1] and rewards.tolist() == [0, 0, 10, 10]
    assert infos["valid"].tolist() == [False, False, True, True]
    env.pause([1])
    with pytest.raises(RuntimeError, match="No environment is left to step"):
        env.step(np.full(4, 10))
    env.resume()
    assert env.active.all()


@pytest.mark.parametrize("subprocess", [False, True])
def test_halves_take_turns(make: MakeGroups, subprocess: bool) -> None:
    env = make(n_envs=6, group_size=2, alternate=True, subprocess=subprocess)  # two groups, then the third
    env.reset(seed=0)
    first, second = [True] * 4 + [False] * 2, [False] * 4 + [True] * 2
    assert env.active.tolist() == first
    obs, rewards, *_, infos = env.step(np.arange(10, 16))  # the first half sets out: nobody's step is back yet
    assert not infos["valid"].any() and (obs[:, 1] == 0).all() and not rewards.any()
    assert env.active.tolist() == second
    obs, rewards, *_, infos = env.step(np.arange(20, 26))  # the second half sets out, the first is back
    assert infos["valid"].tolist() == first and rewards.tolist() == [10, 11, 12, 13, 0, 0]
    assert obs[:, 1].tolist() == [1, 1, 1, 1, 0, 0] and env.active.tolist() == first
    assert env.call("set_tag", "b") == ("tag b",) * 6  # a question on the way does not cost the step that is on its way
    obs, rewards, *_, infos = env.step(np.arange(30, 36))
    assert infos["valid"].tolist() == second and rewards.tolist() == [0, 0, 0, 0, 24, 25]
    # A reset drops what is on its way
    obs, _ = env.reset(seed=0)
    assert (obs[:, 1:] == 0).all() and env.active.tolist() == first
    assert not env.step(np.full(6, 10))[4]["valid"].any()


def test_turns_give_the_trajectories_of_lockstep(make: MakeGroups) -> None:
    def play(alternate: bool, n_groups: int) -> list[list[tuple]]:
        rng = np.random.default_rng(3)
        scripts = rng.choice([1, 2, 3, 10, 11], (n_groups, 400, 2), p=[0.04, 0.08, 0.08, 0.4, 0.4])
        env = make(n_envs=2 * n_groups, group_size=2, alternate=alternate)
        obs, _ = env.reset(seed=1)
        made: list[list[tuple]] = [[] for _ in range(n_groups)]
        sent = np.zeros(n_groups, dtype=int)
        while min(map(len, made)) < 60:
            actions = np.zeros(2 * n_groups, dtype=int)
            for group in np.flatnonzero(env.active.reshape(-1, 2).any(axis=1)):
                actions[2 * group : 2 * group + 2] = scripts[group, sent[group]]
                sent[group] += 1
            obs, rewards, terminations, truncations, infos = env.step(actions)
            for group in np.flatnonzero(infos["valid"].reshape(-1, 2).any(axis=1)):
                mine = slice(2 * group, 2 * group + 2)
                arrays = (obs, rewards, terminations, truncations, infos["valid"])
                made[group].append(tuple(array[mine].tolist() for array in arrays))
        return [steps[:60] for steps in made]

    for n_groups in (1, 2, 3):
        assert play(True, n_groups) == play(False, n_groups)


def test_a_paused_half_gives_its_turns_away(make: MakeGroups) -> None:
    env = make(n_envs=4, group_size=2, alternate=True)
    env.reset(seed=0)
    env.step(np.full(4, 10))
    assert env.step(np.full(4, 10))[4]["valid"].tolist() == [True, True, False, False]
    env.pause([0])
    assert not env.active.any()
    assert env.step(np.full(4, 10))[4]["valid"].tolist() == [False, False, True, True]  # sends nobody, receives
    for _ in range(3):  # alone, it steps like any group
        assert env.active.tolist() == [False, False, True, True]
        assert env.step(np.full(4, 10))[4]["valid"].tolist() == [False, False, True, True]
    env.pause([1])
    with pytest.raises(RuntimeError, match="No environment is left to step"):
        env.step(np.full(4, 10))
    env.resume()  # a training that is resumed from a file begins here too, after a reset
    assert env.active.tolist() == [True, True, False, False]


def test_a_crash_on_the_way_costs_its_group_alone(make: MakeGroups, tmp_path: Path) -> None:
    maker = partial(OnceCrashingEnv, str(tmp_path / "crashed"))
    env = make(n_envs=4, group_size=2, env=maker, alternate=True, subprocess=True)
    env.reset(seed=0)
    env.step(np.array([9, 10, 10, 10]))
    with pytest.warns(UserWarning, match="group 0 is sampled again"):
        obs, *_, infos = env.step(np.array([10, 10, 10, 10]))
    assert infos["resampled"].tolist() == [True, True, False, False] and not infos["valid"].any()
    assert obs[:, 1].tolist() == [0, 0, 0, 0] and env.active.tolist() == [True, True, False, False]
    obs, *_, infos = env.step(np.array([10, 10, 10, 10]))
    assert infos["valid"].tolist() == [False, False, True, True] and obs[:, 1].tolist() == [0, 0, 1, 1]


def test_environments_share_processes(make: MakeGroups) -> None:
    class Tells(ScriptEnv):
        def pid(self) -> int:
            import os

            return os.getpid()

    env = make(n_envs=6, group_size=3, env=Tells, subprocess=True, processes=2)
    pids = env.call("pid")
    assert pids == (pids[0], pids[1]) * 3 and pids[0] != pids[1]
    obs, _ = env.reset(seed=5)
    assert obs[:, 0].tolist() == [5, 5, 5, 6, 6, 6]
    assert env.step(np.arange(10, 16))[1].tolist() == [10, 11, 12, 13, 14, 15]
    env.close()
    assert all(worker.process.popen.poll() is not None for worker in env._workers)  # type: ignore[attr-defined]
    assert len(set(make(n_envs=4, group_size=2, env=Tells, subprocess=True).call("pid"))) == 4


@pytest.mark.parametrize("how", ["crash", pytest.param("hang", marks=pytest.mark.thorough)])
def test_a_shared_process_that_is_lost_costs_all_its_groups_once(make: MakeGroups, tmp_path: Path, how: str) -> None:
    maker = partial(OnceCrashingEnv, str(tmp_path / "crashed"), how)
    env = make(n_envs=4, group_size=2, env=maker, subprocess=True, processes=1, timeout=10.0)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="restarted"):
        obs, *_, infos = env.step(np.array([10, 9, 10, 10]))
    assert infos["resampled"].all() and obs[:, 1].tolist() == [0, 0, 0, 0]
    obs, rewards, *_, infos = env.step(np.array([10, 9, 12, 13]))
    assert infos["valid"].all() and rewards.tolist() == [10, 9, 12, 13]
    assert len({worker.process.popen.pid for worker in env._workers}) == 4  # type: ignore[attr-defined]


@pytest.mark.parametrize("alternate", [False, True])
def test_large_pictures_do_not_block_a_shared_process(make: MakeGroups, alternate: bool) -> None:
    def play(**how: Any) -> list[list[tuple]]:
        env = make(n_envs=6, group_size=2, env=Pictures, alternate=alternate, **how)
        made: list[list[tuple]] = [[], [], []]
        env.reset(seed=0)
        while min(map(len, made)) < 4:  # a group ends, and is reset, while the step of another is on its way
            obs, _, terminations, truncations, infos = env.step(np.array([1, 10, 20, 30, 3, 2]))
            for i in np.flatnonzero(infos["valid"]):
                made[i // 2].append((i, obs[i].max(), terminations[i], truncations[i]))
        env.reset(seed=0)  # drops what is on its way
        return [steps[:4] for steps in made]

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no environment is lost
        assert play(subprocess=True, processes=1, timeout=60.0) == play()


def test_a_process_that_dies_in_the_middle_of_its_answer_is_lost(make: MakeGroups) -> None:
    env = make(n_envs=4, group_size=2, env=Pictures, alternate=True, subprocess=True)
    env.reset(seed=0)
    env.step(np.full(4, 10))
    answering = env._workers[0]
    wait([answering])  # type: ignore[list-item]
    time.sleep(0.1)  # now it has written what the socket holds
    answering.process.kill()  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="Environment 0 ended unexpectedly, exit status -9: restarted"):
        infos = env.step(np.full(4, 10))[4]
    assert infos["resampled"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("how", [{"subprocess": False}, {"subprocess": True, "processes": 1, "timeout": 60.0}])
def test_questions_in_any_order_and_more_than_once(make: MakeGroups, how: dict[str, Any]) -> None:
    env = make(n_envs=4, group_size=2, env=Pictures, alternate=True, **how)
    env.reset(seed=0)
    env.step(np.array([10, 20, 0, 0]))  # on its way
    assert [picture.max() for picture in env.call("picture", 100, indices=[3, 1, 0])] == [100, 120, 110]
    assert [picture.max() for picture in env.call("picture", 100, indices=[0, -4, 1, 0])] == [110, 110, 120, 110]
    assert env.call("count_up", indices=[2, 3, 2]) == (1, 1, 2)
    assert env.step(np.array([0, 0, 30, 40]))[4]["valid"].tolist() == [True, True, False, False]


@pytest.mark.thorough  # waits for a timeout
def test_an_environment_lost_in_a_question_is_restarted_by_the_next_step_or_reset(make: MakeGroups) -> None:
    env = make(n_envs=2, group_size=2, env=Pictures, subprocess=True, timeout=5.0)
    env.reset(seed=0)
    for go_on in (lambda: env.step(np.array([10, 10])), lambda: env.reset(seed=0)):
        with pytest.raises(WorkerLostError, match="did not answer within 5 s"):
            env.call("sleep", 1000.0, indices=[1])
        with pytest.raises(WorkerLostError, match="ended unexpectedly"):
            env.get_attr("total")
        with pytest.warns(UserWarning, match="Environment 1 .*: restarted, group 0 is sampled again"):
            go_on()
        assert env.get_attr("total") == (0, 0)


def test_the_first_reset_of_a_process_may_take_long(make: MakeGroups) -> None:
    class BuildsInReset(ScriptEnv):
        built = False

        def reset(self, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
            if not self.built:
                time.sleep(1.0)
            self.built = True
            return super().reset(**how)

    env = make(n_envs=2, group_size=2, env=BuildsInReset, subprocess=True, timeout=0.1)
    env.get_attr("tag")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env.reset(seed=0)


def test_closing_with_large_answers_unread(make: MakeGroups, tmp_path: Path) -> None:
    class NotesItsEnd(Pictures):
        def close(self) -> None:
            import os

            (tmp_path / str(os.getpid())).touch()

    env = make(n_envs=4, group_size=2, env=NotesItsEnd, alternate=True, subprocess=True)
    env.reset(seed=0)
    env.step(np.full(4, 10))
    env.close()
    assert len(list(tmp_path.iterdir())) == 4  # none had to be killed
    with pytest.raises(OSError, match="closed"):  # and none is taken for lost and started again
        env.reset(seed=0)


class Borrowed(gym.Env):
    """Hands out the same arrays and dictionaries at every step, and writes into those that it is given."""

    def __init__(self) -> None:
        box = gym.spaces.Box(-99.0, 99.0, (2,), np.float64)
        self.observation_space, self.action_space = gym.spaces.Dict({"x": box}), box
        self.obs, self.info = {"x": np.zeros(2)}, {"nested": {"x": np.zeros(2)}}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        assert options is None or options.pop("k") == 1  # each member has its own
        self.obs["x"][:] = 0.0
        return self.obs, self.info

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.obs["x"] += action
        self.info["nested"]["x"] += 1.0
        action *= 2.0
        return self.obs, 1.0, False, bool(self.obs["x"][0] >= 3.0), self.info


def test_nothing_is_shared_with_the_environment(make: MakeGroups) -> None:
    groups = make(n_envs=2, group_size=2, env=Borrowed)
    groups.reset(seed=0, options={"k": 1})
    actions = np.ones((2, 2))
    first = groups.step_groups(actions)
    second = groups.step_groups(actions)
    assert actions.tolist() == [[1, 1], [1, 1]]
    assert first.observations[0]["x"].tolist() == [1, 1] and second.observations[0]["x"].tolist() == [2, 2]
    assert first.infos[0]["nested"]["x"].tolist() == [1, 1]
    first.infos[0]["nested"]["x"][:] = 50.0
    ended = groups.step_groups(actions)
    assert ended.final_observations[0]["x"].tolist() == [3, 3] and ended.observations[0]["x"].tolist() == [0, 0]
    assert groups.step_groups(actions).infos[0]["nested"]["x"].tolist() == [4, 4]
    for env in groups._workers:
        assert set(env.env.info) == {"nested"}  # type: ignore[attr-defined]
    groups.single_action_space.seed(0)
    assert groups.single_action_space is not groups._workers[0].env.action_space  # type: ignore[attr-defined]


class Refused(Exception):
    """Takes other arguments than its message."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"joint {code}: {reason}")
        self.code = code


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (lambda: Refused(4, "out of range"), RuntimeError, "Refused: joint 4: out of range"),
        (lambda: SystemExit("licence expired"), RuntimeError, "SystemExit: licence expired"),
        (lambda: KeyError("lever"), KeyError, "'lever'"),
    ],
)
def test_the_text_and_traceback_of_any_exception_arrive(
    make: MakeGroups, error: Callable[[], BaseException], kind: type[Exception], text: str
) -> None:
    class Raises(ScriptEnv):
        def step(self, action: int) -> Any:
            raise error()

    env = make(n_envs=2, group_size=2, env=Raises, subprocess=True)
    env.reset(seed=0)
    with pytest.raises(kind) as raised:
        env.step(np.zeros(2))
    notes = "".join(raised.value.__notes__)
    assert str(raised.value) == text and "raise error()" in notes and "environment 0" in notes


def runs(pid: int) -> bool:
    """Whether a process is there and is no zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_processes_end_with_the_one_that_started_them(tmp_path: Path) -> None:
    """Also while they build an environment, which is when they read no command."""
    program = (
        "import os, signal, sys, time; from sb3_tgrpo.envs import SyncGroupVectorEnv\n"
        "def slow():\n"
        f"    open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'w').close(); time.sleep(300)\n"
        "SyncGroupVectorEnv([slow] * 2, 2)"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    while len(pids := [int(path.name) for path in tmp_path.iterdir()]) < 2:
        assert parent.poll() is None
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    while any(runs(pid) for pid in pids):  # 300 s if they stay
        time.sleep(0.05)


@pytest.mark.parametrize("value", [float("nan"), np.float32("nan"), None, 0.0, np.array([False])])
def test_what_is_no_success(make: MakeGroups, value: Any) -> None:
    class Reports(ScriptEnv):
        def step(self, action: int) -> Any:
            return *super().step(action)[:4], {"is_success": value}

    env = make(n_envs=2, group_size=2, env=Reports)
    env.reset(seed=0)
    assert flags(env.step(np.full(2, 10)))[:2] == ([False] * 2, [False] * 2)


def test_an_environment_that_reports_success_by_another_name_is_told(make: MakeGroups) -> None:
    class Reports(ScriptEnv):
        def step(self, action: int) -> Any:
            return *super().step(action)[:4], {"success": True}

    env = make(n_envs=2, group_size=2, env=Reports)
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="is_success"):
        env.step(np.full(2, 10))


def test_one_environment_for_several_members_is_refused(make: MakeGroups) -> None:
    env = ScriptEnv()
    with pytest.raises(ValueError, match="the same one several times"):
        make(env=lambda: env)
    with pytest.raises(ValueError, match="the same one several times"):
        make(env=lambda: gym.wrappers.TimeLimit(env, 5))


def test_members_with_running_statistics_are_refused(make: MakeGroups) -> None:
    def normalised(update: bool = True) -> gym.Env:
        env = gym.wrappers.NormalizeReward(ScriptEnv())
        env.update_running_mean = update
        return gym.wrappers.TimeLimit(env, 5)

    for subprocess_ in (False, True):
        with pytest.raises(ValueError, match="NormalizeReward updates running statistics"):
            make(n_envs=2, group_size=2, env=normalised, subprocess=subprocess_)
    make(n_envs=2, group_size=2, env=partial(normalised, False))


def test_values_for_each_environment_and_partial_resets(make: MakeGroups) -> None:
    env = make()
    env.set_attr("tag", ["a", "b", "c", "d"])
    assert env.get_attr("tag") == ("a", "b", "c", "d")
    env.set_attr("tag", ("x", "y"), indices=[3, 0])
    assert env.get_attr("tag") == ("y", "b", "c", "x")
    with pytest.raises(ValueError, match="3 values of 'tag' for 4 environments"):
        env.set_attr("tag", [1, 2, 3])
    with pytest.raises(ValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([True, False, False, False])})


def test_bad_input(make: MakeGroups) -> None:
    with pytest.raises(ValueError, match="group_size=1"):
        make(group_size=1)
    with pytest.raises(ValueError, match=r"5 environments do not make up whole groups of group_size=4"):
        make(n_envs=5)
    with pytest.raises(ValueError, match=r"stop_on='first': it must be one of 'success', 'termination', 'never'"):
        make(stop_on="first")
    with pytest.raises(ValueError, match="timeout=0"):
        make(timeout=0)
    with pytest.raises(ValueError, match="processes=0"):
        make(processes=0)
    with pytest.raises(ValueError, match=r"Environment 1 has observation space Box.* environment 0"):
        SyncGroupVectorEnv([ScriptEnv, partial(gym.make, "CartPole-v1")], 2, subprocess=False)
    with pytest.raises(ValueError, match=r"differ after reset\(seed=4\)"):
        make(env=UnseededEnv).reset(seed=4)
    with pytest.raises(RuntimeError, match=r"call reset\(\) first"):
        make().step(np.zeros(4))
    with pytest.raises(ZeroDivisionError):  # a maker that fails, in its process
        make(env=lambda: 1 / 0, subprocess=True)
