"""The environment against LIBERO's own, bit for bit."""

import numpy as np
import pytest
from libero_reference import libero_env, random_actions, start, step_with_its_own_context

from sb3_tgrpo.envs.libero.env import LiberoEnv

# One drawn or stored start each: plain, in an open drawer, on another object, on a stove that is on, with a door, ...
TASKS = [
    ("libero_object", 3, None),
    ("libero_object", 0, 4),
    ("libero_spatial", 4, None),
    ("libero_spatial", 3, 11),
    ("libero_goal", 3, 0),
    ("libero_goal", 7, None),
    ("libero_10", 8, 49),
    ("libero_10", 9, None),
    ("libero_90", 44, 7),
]


def compare(suite: str, task: int, init_state_id: int | None, assets: str, seed: int = 7) -> None:
    options = None if init_state_id is None else {"init_state_id": init_state_id}
    with libero_env(suite, task, assets) as reference:
        observation = start(reference, suite, task, seed, init_state_id)
        theirs = reference.sim.data._data
        env = LiberoEnv(suite, task, assets=assets, observations=("state",))  # type: ignore[arg-type]
        ours_observation, _ = env.reset(seed=seed, options=options)
        ours = env.data
        np.testing.assert_array_equal(ours.qpos, theirs.qpos)
        np.testing.assert_array_equal(ours.qvel, theirs.qvel)
        np.testing.assert_array_equal(env.model.body_pos, reference.sim.model.body_pos)
        for action in random_actions(seed):
            np.testing.assert_array_equal(ours_observation["state"][:3], observation["robot0_eef_pos"])
            np.testing.assert_array_equal(ours_observation["state"][6:], observation["robot0_gripper_qpos"])
            observation, _, done, _ = reference.step(action.astype(np.float64))
            ours_observation, reward, terminated, truncated, info = env.step(action)
            np.testing.assert_array_equal(ours.qpos, theirs.qpos)
            np.testing.assert_array_equal(ours.qvel, theirs.qvel)
            assert terminated == info["is_success"] == bool(reward) == bool(done)
            if terminated or truncated:
                break
        env.close()


@pytest.mark.full_assets
@pytest.mark.parametrize(("suite", "task", "init_state_id"), TASKS)
def test_trajectories_equal_liberos(suite: str, task: int, init_state_id: int | None) -> None:
    compare(suite, task, init_state_id, "full")


@pytest.mark.parametrize(("task", "init_state_id"), [(1, None), (6, 21)])
def test_trajectories_equal_liberos_on_light_assets(task: int, init_state_id: int | None) -> None:
    compare("libero_object", task, init_state_id, "light")


@pytest.mark.full_assets
@pytest.mark.parametrize(("suite", "task", "init_state_id"), [("libero_object", 2, None), ("libero_10", 8, 3)])
def test_pixels_equal_liberos(suite: str, task: int, init_state_id: int | None) -> None:
    """Stored and drawn starts differ in when, within a step, robosuite takes its pictures; a stove is lit in libero_10 8."""
    with libero_env(suite, task, images=True) as reference:
        observation = start(reference, suite, task, 5, init_state_id)
        env = LiberoEnv(suite, task, assets="full")
        ours, _ = env.reset(seed=5, options=None if init_state_id is None else {"init_state_id": init_state_id})
        np.testing.assert_array_equal(ours["image"], observation["agentview_image"])
        for action in random_actions(5, 30):
            observation, *_ = step_with_its_own_context(reference, action.astype(np.float64))
            ours, *_ = env.step(action)
            np.testing.assert_array_equal(ours["image"], observation["agentview_image"])
        env.close()


@pytest.mark.full_assets
def test_success_at_the_same_step() -> None:
    """The soup is dropped into the basket from 30 cm above."""
    with libero_env("libero_object", 0) as reference:
        start(reference, "libero_object", 0, 0, 0)
        env = LiberoEnv("libero_object", 0, assets="full", observations=())
        env.reset(seed=0, options={"init_state_id": 0})
        state = env.flat_state()
        np.testing.assert_array_equal(state, reference.get_sim_state())
        address = 1 + env.model.joint("alphabet_soup_1_joint0").qposadr[0]
        state[address : address + 3] = np.add(env.facts()["basket_1_contain_region_pos"], [0.0, 0.0, 0.3])
        env.set_state(state)
        reference.set_init_state(state)
        rewards: list[float] = []
        while len(rewards) < 60:
            _, reward, terminated, _, _ = env.step(np.zeros(7))
            _, their_reward, done, _ = reference.step(np.zeros(7))
            assert (terminated, reward) == (bool(done), their_reward)
            rewards.append(reward)
            if terminated:
                break
        assert sum(rewards) == 1.0 and 3 < len(rewards) < 60
        env.close()
