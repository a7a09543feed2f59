"""Goal predicates against LIBERO's own, judged on the same simulator state."""

from collections import Counter

import mujoco
import numpy as np
import pytest

from sb3_tgrpo.envs.libero.env import LiberoEnv


def scatter(env: LiberoEnv, rng: np.random.Generator) -> None:
    """Put the goal's objects near what the goal asks for, and joints anywhere, half of the time close to thresholds."""
    scene, state = env.sim.scene, env.facts()
    model, data, problem = scene.model, scene.data, scene.problem
    for atom in env.sim.goal.atoms:
        thing = atom[1]
        if len(atom) == 3 and thing in problem.objects_dict:
            center = np.array(state[f"{atom[2]}_pos"])
            address = model.joint(problem.objects_dict[thing].joints[-1]).qposadr[0]
            offset = rng.normal(0, [0.03, 0.03, 0.05]) if rng.random() < 0.8 else rng.normal(0, 0.3, 3)
            data.qpos[address : address + 3] = center + offset
    for joint in env.sim.facts_reader.entities.joints:
        low, high = model.joint(joint).range
        value = rng.uniform(low, high)
        if rng.random() < 0.5:
            value = rng.choice(
                [0.0, 1e-4, -1e-4, -0.005, -0.0051, -0.0049, -0.14, -0.1401, -0.1399, 0.5, 0.4999, -1.3, -1.3001]
            )
        data.qpos[model.joint(joint).qposadr[0]] = value
    mujoco.mj_forward(model, data)


def compare_with_libero(suite: str, task: int, assets: str, n_states: int) -> Counter[tuple[int, bool]]:
    """:return: how often each atom was seen true and false."""
    env = LiberoEnv(suite, task, assets=assets, observations=())  # type: ignore[arg-type]
    env.reset(seed=0)
    problem, rng = env.sim.scene.problem, np.random.default_rng(task)
    seen: Counter[tuple[int, bool]] = Counter()
    for _ in range(n_states):
        scatter(env, rng)
        ours = env.sim.goal.evaluate()
        theirs = [bool(problem._eval_predicate(atom)) for atom in problem.parsed_problem["goal_state"]]
        assert ours == theirs
        assert all(ours) == bool(problem._check_success())
        seen.update(enumerate(ours))
    env.close()
    return seen


def assert_both(seen: Counter[tuple[int, bool]]) -> None:
    for k in {k for k, _ in seen}:
        assert seen[k, True] > 5 and seen[k, False] > 5, f"atom {k} was hardly ever true, or hardly ever false: {seen}"


def test_in_basket_on_light_assets() -> None:
    assert_both(compare_with_libero("libero_object", 5, "light", 200))


@pytest.mark.full_assets
@pytest.mark.parametrize(
    ("suite", "task"),
    [
        ("libero_spatial", 0),  # On an object
        ("libero_goal", 0),  # Open a drawer
        ("libero_goal", 1),  # On the region of a fixture
        ("libero_goal", 5),  # On a zone of the table
        ("libero_goal", 7),  # Turnon
        ("libero_goal", 9),  # On a tilted region
        ("libero_10", 3),  # Close a drawer, In it
        ("libero_10", 5),  # In a narrow compartment
        ("libero_10", 9),  # In the microwave, Close it
    ],
)
def test_predicates_equal_liberos(suite: str, task: int) -> None:
    assert_both(compare_with_libero(suite, task, "full", 300))


@pytest.mark.full_assets
@pytest.mark.parametrize(
    ("suite", "task", "name", "joint", "n_geoms"),
    [
        ("libero_goal", 0, "wooden_cabinet_1_middle_handle", "wooden_cabinet_1_middle_level", 3),  # a bar on two posts
        ("libero_10", 9, "microwave_1_door_handle", "microwave_1_microjoint", 3),
        ("libero_goal", 7, "flat_stove_1_knob", "flat_stove_1_button", 18),  # all of it
    ],
)
def test_handles(suite: str, task: int, name: str, joint: str, n_geoms: int) -> None:
    """LIBERO names no handles; they are found by where they are."""
    env = LiberoEnv(suite, task, assets="full", observations=())
    env.reset(seed=0)
    model, data = env.model, env.data
    (handle,) = env.sim.facts_reader.entities.handles
    assert (handle.name, handle.joint, len(handle.geoms)) == (name, joint, n_geoms)
    low = model.joint(joint).range[0]
    positions = []
    for value in (low, 0.0):
        data.qpos[model.joint(joint).qposadr[0]] = value
        mujoco.mj_forward(model, data)
        state = env.facts()
        assert state[f"{joint}_qpos"] == value
        positions.append(np.array(state[f"{name}_pos"]))
        assert np.linalg.norm(data.geom_xpos[list(handle.geoms)] - positions[-1], axis=1).max() < 0.08
    travel = np.linalg.norm(positions[0] - positions[1])
    if "cabinet" in name:
        assert travel == pytest.approx(abs(low), abs=1e-6)  # a drawer's handle goes as far as the drawer
    elif "door" in name:
        assert travel > 0.3
    else:
        assert travel < 0.02  # a knob turns in place
    env.close()
