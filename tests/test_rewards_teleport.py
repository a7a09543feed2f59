"""Episodes of a hand that is set along a plan: what the simulator decides in them, and when they give way to real ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sb3_tgrpo.envs import teleport_traces
from sb3_tgrpo.envs.expert_motion import CLOSE, OPEN, Command, rotation_of
from sb3_tgrpo.envs.placed_hand import REACH, PlacedHandEnv, placed_action
from sb3_tgrpo.envs.placed_plan import Plan
from sb3_tgrpo.envs.record_traces import Start, play
from sb3_tgrpo.rewards import load_task_facts
from sb3_tgrpo.rewards.traces import Trace, load_traces, save_traces

TASK = "libero_10-8"
FACTS = load_task_facts(TASK)


@pytest.fixture(scope="module")
def env() -> PlacedHandEnv:
    """Two moka pots and a stove, on the built-in assets."""
    return PlacedHandEnv("libero_10", 8, observations=(), assets="light")


def test_the_hand_goes_where_it_is_told_and_physics_does_the_rest(env: PlacedHandEnv) -> None:
    env.reset(seed=0, options={"init_state_id": 0})
    before = env.facts()
    start = np.array(before["eef_pos"])
    rotation = rotation_of(before["eef_quat"])  # type: ignore[arg-type]
    to = start + np.array([0.03, 0.10, -0.12])
    for _ in range(30):
        state = env.facts()
        env.step(placed_action(Command(to, rotation, OPEN), state))
        assert np.linalg.norm(np.subtract(env.facts()["eef_pos"], state["eef_pos"])) < REACH + 1e-4
    after = env.facts()
    np.testing.assert_allclose(after["eef_pos"], to, atol=1e-4)
    np.testing.assert_allclose(rotation_of(after["eef_quat"]), rotation, atol=1e-3)  # type: ignore[arg-type]
    for name in FACTS.names("object"):
        np.testing.assert_allclose(after[f"{name}_pos"], before[f"{name}_pos"], atol=1e-3)
    for _ in range(20):
        env.step(placed_action(Command(to, rotation, CLOSE), env.facts()))
    assert env.facts()["gripper_opening"] < 0.01, "the fingers close on nothing"


def test_a_plan_reaches_liberos_own_goal(env: PlacedHandEnv) -> None:
    """Held from a real grasp until let go, then falling: both pots stand on the stove, and the goal says so."""
    start = Start(0, 0)
    episode = play(env, start, Plan(env, FACTS, start.seed))
    assert episode.success
    assert env.sim.success()
    assert [bool(state["success"]) for state in episode.states[-2:]] == [False, True]
    stages = list(episode.stage_starts())
    assert stages[:6] == [f"{part} moka_pot_1" for part in ("approach", "grasp", "lift", "move", "lower", "release")]
    states = episode.states
    grasped = [bool(state["moka_pot_1_grasped"]) for state in states]
    lift, release = (episode.stage_starts()[f"{part} moka_pot_1"] for part in ("lift", "release"))
    assert all(grasped[lift + 1 : release + 1]), "contact of both pads lasts from the lift to the release"
    assert not any(grasped[release + 4 : release + 12])
    gaps = [np.subtract(state["moka_pot_1_pos"], state["eef_pos"]) for state in states[lift + 1 : release]]
    assert np.ptp([np.linalg.norm(gap) for gap in gaps]) < 1e-3, "held, it moves with the hand"


def test_the_same_plan_gives_the_same_episode(env: PlacedHandEnv) -> None:
    start = Start(3, None, 0.03)
    first, second = (play(env, start, Plan(env, FACTS, start.seed, start.detour)) for _ in range(2))
    assert first.states == second.states
    np.testing.assert_array_equal(first.actions, second.actions)


def test_traces_of_a_real_expert_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / f"{TASK}.npz"
    (shipped, *_) = load_traces("libero_goal-8")
    state = shipped.states[-1]
    real = Trace(shipped.task, "expert", [{**state, "success": False}, state])
    save_traces(path, [replace(real, source="teleported")])
    assert not teleport_traces.has_real_expert(path)
    save_traces(path, [replace(real, kind="noop")])
    assert not teleport_traces.has_real_expert(path)
    save_traces(path, [real])
    assert teleport_traces.has_real_expert(path)
    monkeypatch.setattr(teleport_traces.Teleporter, "record", lambda self: pytest.fail("recorded over a real expert"))
    before = path.read_bytes()
    assert teleport_traces.main([TASK, "--assets", "light", "--out", str(tmp_path)]) == 0
    assert path.read_bytes() == before
