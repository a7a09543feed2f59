"""Key poses: critical steps of synthetic and recorded episodes, frames, averages."""

import dataclasses

import numpy as np
import pytest

from sb3_tgrpo.envs import key_poses
from sb3_tgrpo.envs.demos.key_poses import critical_steps
from sb3_tgrpo.rewards import load_reward
from sb3_tgrpo.rewards.episodes.traces import Trace, load_traces


def experts(task: str) -> list[Trace]:
    return [trace for trace in load_traces(task) if trace.kind == "expert"]


def pick_and_place(offset: float = 0.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Down for 10 steps, close for 6, up for 10, across for 20, wait 2, open for 5: positions, commands, openings."""
    z = np.concatenate([np.linspace(0.2, 0.02, 10), np.full(6, 0.02), np.linspace(0.02, 0.2, 10), np.full(27, 0.2)])
    y = np.concatenate([np.zeros(26), np.linspace(0.0, 0.3, 20), np.full(7, 0.3)])
    closed = np.zeros(53, bool)
    closed[10:48] = True
    opening = np.full(53, 0.08)
    opening[10:14] = [0.07, 0.06, 0.05, 0.04]
    opening[14:48] = 0.03
    return np.stack([np.full(53, offset), y, z], axis=1), closed, opening


def test_critical_steps_of_a_pick_and_place() -> None:
    steps = critical_steps(*pick_and_place())
    assert list(steps) == ["grasp", "lift", "above_goal", "release"]
    assert 14 <= steps["grasp"] <= 17  # fingers at rest, hand not away
    assert 23 <= steps["lift"] <= 26
    assert 43 <= steps["above_goal"] <= 46
    assert steps["release"] == 48


def test_a_second_object_is_numbered_and_an_empty_try_is_not_counted() -> None:
    once = pick_and_place()
    still = np.repeat(once[0][:1], 12, axis=0), np.array([False] * 4 + [True] * 6 + [False] * 2), np.full(12, 0.08)
    twice = [np.concatenate(parts) for parts in zip(still, once, once, strict=True)]
    assert list(critical_steps(*twice)) == [
        *("grasp", "lift", "above_goal", "release"),
        *("grasp_2", "lift_2", "above_goal_2", "release_2"),
    ]


def test_success_before_the_release_ends_the_last_pose() -> None:
    position, closed, opening = (values[:40] for values in pick_and_place())
    steps = critical_steps(position, closed, opening)
    assert list(steps)[-1] == "end" and steps["end"] == 39


def test_without_a_grasp_the_minima_of_the_speed_count() -> None:
    y = np.concatenate([np.linspace(0, 0.3, 20), np.full(4, 0.3), np.linspace(0.3, 0.5, 20)])
    position = np.stack([np.zeros(44), y, np.full(44, 0.1)], axis=1)
    steps = critical_steps(position, np.zeros(44, bool), np.full(44, 0.08))
    assert list(steps) == ["rest", "end"] and 19 <= steps["rest"] <= 24


def test_poses_of_recorded_experts_are_in_the_frames_they_belong_to() -> None:
    traces = experts("libero_object-3")
    poses = key_poses(traces)
    assert poses.names == ("grasp", "lift", "above_goal", "release")
    assert [pose.frame for pose in poses] == ["bbq_sauce_1"] * 2 + ["basket_1_contain_region"] * 2
    assert [pose.gripper for pose in poses] == ["closed"] * 3 + ["open"]
    array = np.asarray(poses)
    assert array.shape == (4, 3) and array.dtype == np.float64
    # The bottle stands 5 cm each way from its middle: it is held in its upper half, at its axis.
    np.testing.assert_allclose(array[0], [0.0, 0.0, 0.03], atol=0.01)
    world = np.array([pose.world for pose in poses])
    assert world[1, 2] > world[0, 2] + 0.04
    # The way to the basket depends on where it stands; in its frame, the places agree.
    assert max(np.linalg.norm(pose.spread) for pose in poses) < 0.03
    assert poses[0].n == len(traces)
    by_hand = [np.array(t.states[int(poses[0].step)]["eef_pos"]) for t in traces]
    np.testing.assert_allclose(world[0], np.mean(by_hand, axis=0), atol=0.03)


def test_axes_of_the_frame() -> None:
    traces = experts("libero_object-3")
    world, own = key_poses(traces), key_poses(traces, axes="frame")
    # The basket is turned a quarter about the vertical: x and y change places, heights and distances stay.
    np.testing.assert_allclose(np.linalg.norm(world, axis=1), np.linalg.norm(own, axis=1), atol=0.01)
    np.testing.assert_allclose(np.abs(np.asarray(own)[2, :2]), np.abs(np.asarray(world)[2, 1::-1]), atol=0.01)
    assert own.to_dict()[2]["axes"] == "frame"


def test_stages_of_a_reward_program_are_critical_too() -> None:
    program = load_reward("libero_object-3")
    poses = key_poses(experts("libero_object-3"), program)
    stages = [pose for pose in poses if pose.name.startswith("stage_")]
    assert len(stages) >= 2 and [pose.step for pose in poses] == sorted(pose.step for pose in poses)
    assert {pose.frame for pose in stages} <= {"bbq_sauce_1", "basket_1_contain_region"}


def test_poses_fit_a_reward_specification() -> None:
    from sb3_tgrpo.rewards.program.spec import KeyPose

    for pose in key_poses(experts("libero_object-3")).to_dict():
        assert KeyPose.model_validate(pose).name == pose["name"]


def test_unsuccessful_episodes_do_not_count() -> None:
    traces = load_traces("libero_object-3")
    assert key_poses(traces).n_demos == len(experts("libero_object-3"))
    with pytest.raises(ValueError, match=r"demos has \d+ episodes, and none of them is successful"):
        key_poses([trace for trace in traces if trace.kind != "expert"])
    with pytest.raises(ValueError, match="demos is empty"):
        key_poses([])
    with pytest.raises(ValueError, match=r"demos are of several tasks \(libero_object-3, libero_object-4\)"):
        key_poses([*traces, *experts("libero_object-4")])
    with pytest.raises(ValueError, match="program is for libero_object-4, the demonstrations are of libero_object-3"):
        key_poses(traces, load_reward("libero_object-4"))
    with pytest.raises(ValueError, match="has no actions"):
        key_poses([dataclasses.replace(experts("libero_object-3")[0], actions=None)])
    with pytest.raises(TypeError, match="demonstrations or traces"):
        key_poses([1])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="axes='object'"):
        key_poses(traces, axes="object")  # type: ignore[arg-type]
