"""The expert for small networks, and the disturbances of its demonstrations."""

import numpy as np
import pytest

from sb3_tgrpo.envs import LiberoEnv
from sb3_tgrpo.envs.demos.collection import CollectionSettings, record_episode
from sb3_tgrpo.envs.experts.disturbances import Disturbance
from sb3_tgrpo.envs.experts.smooth import SmoothExpert, smoothstep


@pytest.mark.parametrize("task", [1, 3, 5])
def test_it_solves_tasks_with_and_without_turning_the_gripper(task):
    env = LiberoEnv("libero_object", task, assets="light", observations=("state",))
    expert = SmoothExpert(f"libero_object-{task}")
    successes = 0
    for seed in range(2):
        env.reset(seed=seed)
        over = success = False
        while not over:
            _, _, success, truncated, _ = env.step(expert.act(env.facts()))
            over = success or truncated
        successes += success
    env.close()
    assert successes == 2


def test_small_differences_of_the_state_make_small_differences_of_the_action():
    """On the way to the object, a millimetre changes no component by more than a few hundredths (gain 0.8: 0.016 per mm)."""
    env = LiberoEnv("libero_object", 1, assets="light", observations=("state",))
    expert = SmoothExpert("libero_object-1")
    env.reset(seed=0)
    largest = 0.0
    for _ in range(30):
        state = env.facts()
        action = expert.act(state)
        for axis in range(3):
            moved = dict(state)
            moved["eef_pos"] = tuple(np.array(state["eef_pos"]) + 1e-3 * np.eye(3)[axis])
            other = SmoothExpert("libero_object-1").act(moved)
            if other[6] == action[6]:
                largest = max(largest, float(np.abs(other[:3] - action[:3]).max()))
        env.step(action)
    env.close()
    assert 0.01 < largest < 0.06


def test_an_upright_hand_is_commanded_a_rotation_of_exactly_zero():
    """At the smallest other rotation robosuite's controller follows the arm's drift instead of holding the hand."""
    env = LiberoEnv("libero_object", 8, assets="light", observations=("state",))
    expert = SmoothExpert("libero_object-8")
    env.reset(seed=0)
    rotations = []
    for _ in range(60):
        action = expert.act(env.facts())
        rotations.append(action[3:6])
        env.step(action)
    env.close()
    assert (np.array(rotations) == 0.0).all(axis=1).mean() > 0.9


def test_other_tasks_are_refused():
    with pytest.raises(ValueError, match=r"libero_goal-0.*LIBERO-Object"):
        SmoothExpert("libero_goal-0")
    with pytest.raises(ValueError, match="gain"):
        SmoothExpert("libero_object-1", gain=0.0)


def test_smoothstep():
    assert [smoothstep(x) for x in (-1.0, 0.0, 0.5, 1.0, 2.0)] == [0.0, 0.0, 0.5, 1.0, 1.0]


def test_disturbances_are_executed_but_not_recorded():
    settings = CollectionSettings(
        "libero_object-1", 1, seed=3, dart=0.15, pushes=0.05, slips=0.02, expert="smooth", detour=0.0, assets="light",
        image_size=64,
    )  # fmt: skip
    env = LiberoEnv("libero_object", 1, assets="light", observations=("image", "state"), image_size=64)
    demo, again = record_episode(env, settings, 0), record_episode(env, settings, 0)
    env.close()
    assert np.array_equal(demo.actions, again.actions)
    expert = SmoothExpert("libero_object-1")
    first = {name: values[0] for name, values in demo.facts.items()}
    assert np.allclose(expert.act(first), demo.actions[0], atol=1e-6)
    # A slip shows: the fingers move against the command.
    opening = np.asarray(demo.facts["gripper_opening"], float).ravel()
    assert (np.diff(opening)[demo.actions[:-1, 6] < 0] < -5e-3).any() or (
        np.diff(opening)[demo.actions[:-1, 6] > 0] > 5e-3
    ).any()


def test_pushes_and_slips_come_as_often_as_asked():
    action = np.array([0.1, 0.0, 0.0, 0, 0, 0, -1.0], np.float32)
    disturb = Disturbance(0.0, np.random.default_rng(0), pushes=0.02, slips=0.01)
    executed = np.array([disturb(action) for _ in range(5000)])
    pushed = np.abs(executed[:, :3] - action[:3]).max(axis=1) > 1e-6
    slipped = executed[:, 6] > 0
    # Renewal: a push of 6 steps on average every 1/0.02 + 5 steps or so; a slip of 7.5 every 1/0.01 + 6.5.
    assert pushed.mean() == pytest.approx(6 / 55, abs=0.03)
    assert slipped.mean() == pytest.approx(7.5 / 106, abs=0.03)
    assert np.abs(executed).max() <= 1.0
    assert np.array_equal(Disturbance(0.0, np.random.default_rng(0))(action), action)
    with pytest.raises(ValueError, match="slips"):
        Disturbance(0.1, np.random.default_rng(0), slips=2.0)
    with pytest.raises(ValueError, match="pushes"):
        CollectionSettings("libero_object-1", 1, pushes=-0.1)
    with pytest.raises(ValueError, match="expert"):
        CollectionSettings("libero_object-1", 1, expert="human")  # type: ignore[arg-type]
