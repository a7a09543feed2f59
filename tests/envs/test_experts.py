"""Scripted experts: their motion, that they solve tasks, recover, and read nothing but the facts."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evaluate_experts
import numpy as np
import pytest
from evaluate_experts import Result, Settings, evaluate

from sb3_tgrpo.envs.experts.fixtures import handle_of, opening_direction
from sb3_tgrpo.envs.experts.grasps import Obstacle, check_graspable, choose_grasp, obstacles
from sb3_tgrpo.envs.experts.motion import (
    CLOSE,
    OPEN,
    ActionNoise,
    Command,
    about,
    action_towards,
    finger_yaw,
    gripper_down,
    lean,
    rotation_of,
    rotation_vector,
)
from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
from sb3_tgrpo.envs.libero.env import LiberoEnv
from sb3_tgrpo.rewards.episodes.traces import load_traces
from sb3_tgrpo.rewards.facts.task_facts import load_task_facts
from sb3_tgrpo.rewards.facts.task_name import TaskName
from sb3_tgrpo.rewards.facts.vocabulary import State

DOWN = np.diag([1.0, -1.0, -1.0])


# ---------------------------------------------------------------------- motion


@pytest.mark.parametrize("angle", [0.0, 1e-6, 0.3, -2.0, np.pi - 1e-3, np.pi])
def test_rotation_vector_undoes_rotation(angle: float) -> None:
    for axis in range(3):
        vector = rotation_vector(about(axis, angle))
        assert np.linalg.norm(vector) == pytest.approx(abs(angle), abs=1e-6)
        if abs(angle) < np.pi - 1e-6:
            np.testing.assert_allclose(vector, angle * np.eye(3)[axis], atol=1e-6)


def test_rotation_of_quaternion() -> None:
    half = 0.4
    np.testing.assert_allclose(rotation_of((0.0, 0.0, np.sin(half), np.cos(half))), about(2, 2 * half), atol=1e-12)
    np.testing.assert_allclose(rotation_of((1.0, 0.0, 0.0, 0.0)), DOWN, atol=1e-12)


def test_finger_yaw_puts_the_fingers_along_a_direction() -> None:
    for angle in np.linspace(-3, 3, 13):
        direction = np.array([np.cos(angle), np.sin(angle), 0.0])
        for near in (-2.0, 0.0, 1.5):
            yaw = finger_yaw(direction, near)
            assert abs(yaw - near) <= np.pi / 2 + 1e-9
            assert abs(gripper_down(yaw)[:, 1] @ direction) == pytest.approx(1.0)


def test_action_points_to_the_target_within_the_action_space() -> None:
    far = action_towards(Command(np.array([0.5, -0.5, 0.0]), gripper_down(1.0), CLOSE, speed=0.6), np.zeros(3), DOWN)
    assert far.dtype == np.float32 and far.shape == (7,)
    np.testing.assert_allclose(far[:3], [0.6, -0.6, 0.0], atol=1e-6)
    assert far[5] == 1.0 and far[6] == CLOSE
    near = action_towards(Command(np.array([0.001, 0.0, 0.0]), DOWN, OPEN), np.zeros(3), DOWN)
    assert 0 < near[0] < 0.1 and not near[1:6].any() and near[6] == OPEN


def test_the_hand_leans_towards_the_robot_only_where_the_arm_would_be_straight() -> None:
    start = np.array([-0.21, 0.0, 1.17])
    np.testing.assert_allclose(lean(start, start), np.eye(3), atol=1e-12)
    far = np.array([0.02, -0.34, 1.21])
    hand = lean(far, start) @ np.array([0.0, 0.0, 1.0])  # from the fingertips to the wrist
    assert hand[0] < -0.1 and hand[1] > 0.05  # back, and to the middle
    assert hand[2] > 0.8


def test_action_noise() -> None:
    noise = ActionNoise(0.2, np.random.default_rng(0))
    values = np.array([noise(np.zeros(7, np.float32))[:3] for _ in range(4000)])
    assert values.std() == pytest.approx(0.2, abs=0.01)
    assert np.corrcoef(values[1:, 0], values[:-1, 0])[0, 1] == pytest.approx(0.7, abs=0.03)
    action = np.array([1.0, 1.0, 1.0, 0.3, 0.3, 0.3, -1.0], np.float32)
    noisy = noise(action)
    assert np.abs(noisy).max() <= 1 and (noisy[3:] == action[3:]).all()
    with pytest.raises(ValueError, match=r"std must be between 0 and 1 \(action units\), got 2"):
        ActionNoise(2, np.random.default_rng(0))


# ---------------------------------------------------------------------- grasps


def test_flat_box_is_held_across_its_narrow_side_above_the_floor() -> None:
    facts = load_task_facts("libero_object-1")
    thing = facts.objects[0]
    state = load_traces("libero_object-1")[0].states[0]
    grasp = choose_grasp(state, facts, thing, np.random.default_rng(0))
    rotation = rotation_of(state["cream_cheese_1_quat"])  # type: ignore[arg-type]
    point, yaw = grasp.place(np.array(state["cream_cheese_1_pos"]), rotation, 0.0)
    half = (np.array(thing.aabb_hi) - np.array(thing.aabb_lo)) / 2
    narrow = rotation[:, int(np.argmin(np.where(np.abs(rotation[2]) > 0.5, np.inf, half)))]
    assert abs(gripper_down(yaw)[:, 1] @ narrow) == pytest.approx(1.0, abs=1e-3)
    assert 0.009 < point[2] < 0.015


def test_what_is_too_wide_is_refused() -> None:
    facts = load_task_facts("libero_object-3")
    basket = next(thing for thing in facts.objects if thing.kind == "basket")
    with pytest.raises(ValueError, match=r"basket_1 is 0.1\d\d m wide; the gripper goes around 0.074 m"):
        check_graspable(basket)


def test_drawers_open_the_way_their_handles_stick_out() -> None:
    facts = load_task_facts("libero_goal-0")
    handle, joint = handle_of(facts, facts.goal[0].args[0])
    assert joint.name == "wooden_cabinet_1_middle_level"
    np.testing.assert_allclose(opening_direction(facts, handle), [0.0, 1.0, 0.0], atol=1e-6)
    with pytest.raises(ValueError, match="plate_1 has no joint to move"):
        handle_of(facts, "plate_1")


def test_the_way_out_of_a_box_is_the_shortest() -> None:
    box = Obstacle("box", np.array([1.0, 0.0]), np.eye(2), np.array([0.2, 0.1]), 1.0, 0.5)
    np.testing.assert_allclose(box.way_out(np.array([1.05, -0.06, 0.0]), 0.02), [0.0, -0.06])
    np.testing.assert_allclose(box.way_out(np.array([0.85, 0.0, 0.0]), 0.02), [-0.07, 0.0])
    np.testing.assert_allclose(box.way_out(np.array([1.23, 0.0, 0.0]), 0.02), [0.0, 0.0])


def test_the_drawer_of_the_goal_is_in_the_way_and_juts_out() -> None:
    facts = load_task_facts("libero_goal-3")
    things: list[Any] = [*facts.objects, *facts.fixtures, *facts.sites]
    state: dict[str, Any] = {f"{thing.name}_pos": thing.start_pos for thing in things}
    state |= {f"{thing.name}_quat": thing.start_quat for thing in things}
    state |= {f"{handle.name}_pos": handle.start_pos for handle in facts.handles}
    drawer = next(box for box in obstacles(state, facts) if box.name == "wooden_cabinet_1_top_region")
    assert drawer.bottom > facts.support_z + 0.1
    x, y, z = facts.sites[0].start_pos
    state["wooden_cabinet_1_top_region_pos"] = (x, y + 0.15, z)
    opened = next(box for box in obstacles(state, facts) if box.name == "wooden_cabinet_1_top_region")
    assert opened.center[1] == pytest.approx(drawer.center[1] + 0.15)


# ---------------------------------------------------------------------- solving tasks


class _Spy(dict[str, Any]):
    """A state that remembers what was read."""

    def __init__(self, state: State, read: set[str]) -> None:
        super().__init__(state)
        self.read = read

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)


@pytest.fixture(scope="module")
def flat_box() -> Iterator[LiberoEnv]:
    env = LiberoEnv("libero_object", 1, observations=(), assets="light")
    yield env
    env.close()


def solve(env: LiberoEnv, expert: ScriptedExpert, start: int | None, seed: int = 0, read: set[str] | None = None) -> int:
    """:return: steps to success, 0 for a failure."""
    env.reset(seed=seed, options=None if start is None else {"init_state_id": start})
    expert.reset(seed)
    for step in range(1, 1000):
        state = env.facts()
        _, _, success, truncated, _ = env.step(expert.act(state if read is None else _Spy(state, read)))
        if success or truncated:
            return step if success else 0
    raise AssertionError


def test_expert_reads_only_the_facts_of_the_task(flat_box: LiberoEnv) -> None:
    read: set[str] = set()
    assert solve(flat_box, ScriptedExpert("libero_object-1"), start=0, read=read)
    assert "cream_cheese_1_pos" in read and read <= set(load_task_facts("libero_object-1").state_types)


def test_expert_with_noise_and_detours_from_drawn_starts(flat_box: LiberoEnv) -> None:
    expert = ScriptedExpert("LIBERO/libero_object-1-v0", noise=0.15, detour=0.04)
    steps = [solve(flat_box, expert, start=None, seed=seed) for seed in range(3)]
    assert all(steps) and len(set(steps)) > 1


def test_seed_decides_the_episode(flat_box: LiberoEnv) -> None:
    def actions(seed: int) -> np.ndarray:
        expert = ScriptedExpert("libero_object-1", noise=0.1, detour=0.04, seed=seed)
        flat_box.reset(seed=0, options={"init_state_id": 0})
        return np.array([expert.act(flat_box.facts()) for _ in range(2)])

    np.testing.assert_array_equal(actions(3), actions(3))
    assert (actions(3) != actions(4)).any()


def test_expert_picks_a_dropped_object_up_again(flat_box: LiberoEnv) -> None:
    expert = ScriptedExpert("libero_object-1", seed=0)
    flat_box.reset(seed=0, options={"init_state_id": 0})
    dropped = 0
    for _ in range(280):
        state = flat_box.facts()
        action = expert.act(state)
        high = float(state["cream_cheese_1_pos"][2]) > 0.06  # type: ignore[index]
        if dropped or (expert.stage.startswith("lift") and high):
            dropped += 1
        if 0 < dropped <= 8:
            action = np.array([0, 0, 0, 0, 0, 0, OPEN], np.float32)
        _, _, success, truncated, _ = flat_box.step(action)
        if success or truncated:
            break
    assert dropped > 8 and success


@pytest.mark.parametrize("task", ["libero_object-2", "libero_object-8"])
def test_expert_solves_light_tasks(task: str) -> None:
    env = LiberoEnv(*TaskName.parse(task), observations=(), assets="light")
    expert = ScriptedExpert(task)
    assert all(0 < solve(env, expert, start=start) <= 200 for start in (0, 7))
    env.close()


@pytest.mark.parametrize("task", ["libero_goal-0", "libero_goal-3", "libero_goal-5"])
def test_expert_moves_what_is_not_carried(task: str) -> None:
    """A drawer is opened, opened for what goes into it, and a plate is pushed; from drawn starts."""
    env = LiberoEnv(*TaskName.parse(task), observations=(), assets="light")
    assert solve(env, ScriptedExpert(task), start=None, seed=0)
    env.close()


@pytest.mark.full_assets
@pytest.mark.parametrize("task", ["libero_spatial-9", "libero_goal-8", "libero_goal-9", "libero_10-4"])
def test_expert_solves_full_tasks(task: str) -> None:
    """A bowl at the end of the arm's reach, an obstacle beside the way, a tilted rack, two mugs one after the other."""
    env = LiberoEnv(*TaskName.parse(task), observations=(), assets="full")
    assert solve(env, ScriptedExpert(task), start=0)
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("index", range(10))
def test_expert_solves_libero_object_from_stored_starts(index: int) -> None:
    env = LiberoEnv("libero_object", index, observations=(), assets="light")
    expert = ScriptedExpert(f"libero_object-{index}")
    assert np.mean([solve(env, expert, start=start) > 0 for start in range(50)]) >= 0.9
    env.close()


def test_arguments() -> None:
    with pytest.raises(ValueError, match=r"detour must be between 0 and 0\.2 metres, got 1"):
        ScriptedExpert("libero_object-1", detour=1)
    with pytest.raises(ValueError, match="task must look like"):
        ScriptedExpert("nonsense")
    with pytest.raises(ValueError, match="std must be between"):
        ScriptedExpert("libero_object-1", noise=-1)


# ---------------------------------------------------------------------- evaluation


def test_evaluation_continues_and_refuses_other_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[int] = []
    interrupted_at = [4]

    def play(env: object, expert: object, start: int, seed: int) -> int | None:
        played.append(start)
        if start in interrupted_at:
            interrupted_at.clear()
            raise KeyboardInterrupt
        return None if start == 1 else 100 + seed

    monkeypatch.setattr(evaluate_experts, "LiberoEnv", lambda *_, **__: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(evaluate_experts, "_play", play)
    file, settings = tmp_path / "libero_goal-0.json", Settings("light", seed=7, code="abc")
    with pytest.raises(KeyboardInterrupt):
        evaluate("libero_goal-0", range(6), settings, file)
    assert played == [0, 1, 2, 3, 4]
    result = evaluate("libero_goal-0", range(6), settings, file)
    assert played == [0, 1, 2, 3, 4, 4, 5]
    assert result.lengths() == [107, 109, 110, 111, 112] and result.failed() == [1]
    assert Result.from_json(file.read_bytes()) == result
    assert len(evaluate("libero_goal-0", range(3), settings, file).steps) == 3
    with pytest.raises(ValueError, match="remove it, or choose another --out"):
        evaluate("libero_goal-0", range(6), Settings("light", seed=7, code="abd"), file)


def test_the_experts_code_is_all_of_it_and_never_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(str(evaluate_experts.experts_module.__file__)).parent
    for path in source.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    code = evaluate_experts.expert_code()
    monkeypatch.setattr(evaluate_experts.experts_module, "__file__", str(tmp_path / "scripted.py"))
    assert evaluate_experts.expert_code() == code
    for name in ("scripted", "skills", "place", "fixtures", "grasps", "motion", "smooth", "disturbances"):
        (tmp_path / f"{name}.py").open("a").write("# changed")
        assert code != (code := evaluate_experts.expert_code())
    monkeypatch.setattr(evaluate_experts.experts_module, "__file__", str(tmp_path / "gone" / "scripted.py"))
    with pytest.raises(FileNotFoundError, match="source is missing"):
        evaluate_experts.expert_code()


def test_table_has_interval_and_lengths() -> None:
    steps: dict[int, int | None] = {start: 90 + start for start in range(48)}
    text = evaluate_experts.table([Result("libero_object-3", Settings("full"), steps | {48: None, 49: None})])
    assert "### libero_object, full assets" in text
    assert "| 48/50 | 96 % | 87 to 99 % | 114 (137) | 280 |" in text
