"""LiberoEnv as a Gymnasium environment, on the light assets."""

import copy
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes.util import find_library
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from filelock import FileLock
from gymnasium.utils.env_checker import check_env
from spec_templates import write_spec
from stable_baselines3.common import env_checker

from sb3_tgrpo.envs import LiberoEnv, register_envs
from sb3_tgrpo.envs.libero.env import SETTLE_STEPS
from sb3_tgrpo.envs.libero.tasks import get_task, instruction_of, stored_starts
from sb3_tgrpo.envs.registration import STEP_CAPS, SUITES, task_names
from sb3_tgrpo.envs.spaces import InstructionSpace, decode_instruction, encode_instruction
from sb3_tgrpo.rewards import RewardError, RewardProgram, load_reward
from sb3_tgrpo.rewards.episodes.measure import measure
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts

NOOP = np.array([0, 0, 0, 0, 0, 0, -1], np.float32)


def make(task: int = 0, **kwargs: Any) -> LiberoEnv:
    kwargs = {"assets": "light", "observations": (), **kwargs}
    return LiberoEnv("libero_object", task, **kwargs)


@pytest.fixture(scope="module")
def env() -> Iterator[LiberoEnv]:
    env = make(3)
    yield env
    env.close()


# ---------------------------------------------------------------------- ids, spaces, checkers


def test_all_tasks_have_ids() -> None:
    register_envs()
    register_envs()
    ids = [name.gym_id for name in task_names(SUITES)]
    assert len(ids) == 130
    for env_id in ids:
        spec = gym.spec(env_id)
        task = get_task(**spec.kwargs)
        assert task.bddl_file.is_file() and task.init_file is not None and task.init_file.is_file()
        assert spec.max_episode_steps == task.step_cap == STEP_CAPS[task.suite]


@pytest.mark.parametrize(
    ("name", "instruction"),
    [
        ("pick_up_the_milk_and_place_it_in_the_basket", "pick up the milk and place it in the basket"),
        ("KITCHEN_SCENE10_put_the_black_bowl_in_the_top_drawer", "put the black bowl in the top drawer"),
        ("LIVING_ROOM_SCENE2_put_both_the_soup_and_the_sauce_in_the_basket", "put both the soup and the sauce in the basket"),
    ],
)
def test_instruction_is_the_file_name(name: str, instruction: str) -> None:
    assert instruction_of(name) == instruction


def test_environment_checkers() -> None:
    register_envs()
    env = gym.make("LIBERO/libero_object-3-v0", assets="light", image_size=32, render_mode="rgb_array").unwrapped
    check_env(env, skip_render_check=False)
    env_checker.check_env(env)
    env.close()


def test_observation_and_render() -> None:
    env = make(4, observations=("state", "wrist_image", "image"), image_size=64, render_mode="rgb_array")
    observation, info = env.reset(seed=1)
    assert list(observation) == ["image", "wrist_image", "state", "instruction"]
    assert env.observation_space.contains(observation)
    assert decode_instruction(observation["instruction"]) == "pick up the ketchup and place it in the basket"
    assert info == {"is_success": False, "scene_seed": 1, "init_state_id": None}
    observation, *_, info = env.step(NOOP)
    assert info == {"is_success": False}
    frame = env.render()
    assert frame is not None and frame.shape == (64, 64, 3) and frame.std() > 5
    # Nothing moves now, so the upright frame is the raw picture upside down.
    assert np.abs(frame[::-1].astype(int) - observation["image"]).mean() < 1
    assert np.abs(frame.astype(int) - observation["image"]).mean() > 5
    eef = np.array(env.facts()["eef_pos"])
    np.testing.assert_allclose(observation["state"][:3], eef, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(observation["state"][3:6]), np.pi, atol=0.2)  # the hand points down
    env.close()


def test_only_what_is_observed_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo.envs.libero.render import OffscreenRenderer

    drawn = []

    def draw(self: OffscreenRenderer, camera: int) -> np.ndarray:
        drawn.append(camera)
        return np.zeros((16, 16, 3), np.uint8)

    monkeypatch.setattr(OffscreenRenderer, "render", draw)
    env = make(observations=("image",), image_size=16)
    env.reset(seed=0)
    assert len(drawn) == 1, "a reset draws one picture, not one per settling step"
    env.step(NOOP)
    assert len(drawn) == 2
    env = make()
    env.reset(seed=0)
    env.step(NOOP)
    assert len(drawn) == 2


def test_instruction_space_survives_copies() -> None:
    space = make().observation_space["instruction"]
    assert isinstance(space, InstructionSpace)
    for other in (space, copy.deepcopy(space), pickle.loads(pickle.dumps(space))):
        assert (other.suite, other.assets, other.assets_by_name) == ("libero_object", "light", True)
        assert other == space
    text = "put the ☕ on the plate"
    assert decode_instruction(encode_instruction(text)) == text
    with pytest.raises(ValueError, match="256 UTF-8 bytes"):
        encode_instruction("é" * 129)


# ---------------------------------------------------------------------- starts


def test_same_seed_same_start_in_any_process(env: LiberoEnv) -> None:
    env.reset(seed=11)
    start = env.flat_state()
    code = (
        "from sb3_tgrpo.envs import LiberoEnv\n"
        "env = LiberoEnv('libero_object', 3, assets='light', observations=())\n"
        "env.reset(seed=2)\n"
        "for _ in range(5): env.step(env.action_space.sample())\n"
        "env.reset(seed=11)\n"
        "print(env.flat_state().tobytes().hex())\n"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert np.frombuffer(bytes.fromhex(printed.strip().splitlines()[-1])).tolist() == start.tolist()


def test_no_state_survives_a_reset(env: LiberoEnv) -> None:
    def episode() -> list[np.ndarray]:
        env.reset(seed=5)
        rng = np.random.default_rng(0)
        states = []
        for _ in range(30):
            env.step(rng.uniform(-1, 1, 7).astype(np.float32))
            states.append(env.flat_state())
        return states

    first = episode()
    env.reset(seed=6, options={"init_state_id": 9})
    for _ in range(15):
        env.step(np.array([1, 1, -1, 0.5, 0, 0, 1], np.float32))
    np.testing.assert_array_equal(first, episode())


def test_unseeded_resets_follow_from_the_seed(env: LiberoEnv) -> None:
    def starts() -> list[np.ndarray]:
        return [(env.reset(seed=seed), env.flat_state())[1] for seed in (3, None, None)]

    first, second = starts(), starts()
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first[1], first[2])


def test_stored_starts(env: LiberoEnv) -> None:
    states = stored_starts(env.task)
    env.reset(options={"init_state_id": 5})
    settled = env.flat_state()
    assert settled[0] == pytest.approx(states[5][0] + SETTLE_STEPS / 20)
    env.reset(seed=0, options={"init_state_id": 5})  # without a seed, fixtures are placed by seed 0
    np.testing.assert_array_equal(settled, env.flat_state())
    env.reset(seed=0, options={"init_state_id": 6})
    assert not np.array_equal(settled, env.flat_state())


def test_start_states_hold_arrays_only(tmp_path: Path) -> None:
    import zipfile
    from dataclasses import replace

    path = tmp_path / "evil.pruned_init"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(os.getcwd))
    with pytest.raises(pickle.UnpicklingError, match="arrays only"):
        stored_starts(replace(get_task("libero_object", 0), init_file=path))


def test_start_noise_widens_and_keeps_objects_apart() -> None:
    plain, noisy = make(3), make(3, start_noise=0.05)
    names = list(plain.sim.scene.problem.objects_dict) if plain.reset(seed=0) else []
    spread: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for seed in range(12):
        plain.reset(seed=seed)
        noisy.reset(seed=seed)
        before, after = plain.facts(), noisy.facts()
        for name in names:
            shift = np.array(after[f"{name}_pos"]) - np.array(before[f"{name}_pos"])
            assert np.abs(shift[:2]).max() < 0.05 + 0.005
            assert abs(shift[2]) < 0.005, f"{name} lies on something or has fallen over"
            spread[name].append(shift[:2])
    assert all(np.std(shifts) > 0.01 for shifts in spread.values())
    noisy.reset(seed=4)
    start = noisy.flat_state()
    noisy.reset(seed=5)
    noisy.reset(seed=4)
    np.testing.assert_array_equal(start, noisy.flat_state())


def test_start_noise_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo.envs.libero import starts as libero_starts

    pairs = iter(range(1000))
    monkeypatch.setattr(libero_starts, "_touching_pairs", lambda scene, owner: {(0, next(pairs))})
    with pytest.raises(RuntimeError, match=r"start_noise=0.5.*smaller"):
        make(3, start_noise=0.5).reset(seed=0)


def test_global_numpy_generator_is_left_alone(env: LiberoEnv) -> None:
    np.random.seed(123)
    expected = np.random.RandomState(123).rand(3)
    env.reset(seed=9)
    env.reset(options={"init_state_id": 0})
    make(1).reset(seed=1)
    np.testing.assert_array_equal(np.random.rand(3), expected)


def test_reset_does_not_rebuild(env: LiberoEnv) -> None:
    env.reset(seed=0)
    model, data = env.model, env.data
    env.reset(seed=1)
    assert env.model is model and env.data is data


def test_flat_state_round_trip(env: LiberoEnv) -> None:
    env.reset(seed=2)
    state = env.flat_state()
    for _ in range(5):
        env.step(np.ones(7, np.float32))
    env.set_state(state)
    np.testing.assert_array_equal(env.flat_state(), state)
    with pytest.raises(ValueError, match=r"has shape \(\d+,\)"):
        env.set_state(state[:-1])


# ---------------------------------------------------------------------- episodes


def test_truncates_at_the_cap_once() -> None:
    register_envs()
    direct = make(max_episode_steps=3)
    wrapped = gym.make("LIBERO/libero_object-0-v0", assets="light", observations=(), max_episode_steps=3)
    longer = gym.make("LIBERO/libero_object-0-v0", assets="light", observations=(), max_episode_steps=290)
    for env in (direct, wrapped):
        env.reset(seed=0)
        assert [env.step(NOOP)[3] for _ in range(3)] == [False, False, True]
    longer.reset(seed=0)
    assert [longer.step(NOOP)[3] for _ in range(290)] == [False] * 289 + [True]
    assert make()._step_cap == 280


def test_success_ends_the_episode() -> None:
    env = make(4)
    env.reset(seed=0)
    state = env.flat_state()
    address = 1 + env.model.joint("ketchup_1_joint0").qposadr[0]
    state[address : address + 3] = np.add(env.facts()["basket_1_contain_region_pos"], [0, 0, 0.2])
    env.set_state(state)
    rewards = []
    for _ in range(60):
        _, reward, terminated, truncated, info = env.step(NOOP)
        rewards.append(reward)
        if terminated:
            break
    assert terminated and not truncated and info["is_success"] is True
    assert rewards[-1] == 1.0 and sum(rewards) == 1.0 and len(rewards) > 2
    assert env.facts()["success"] is True and env.facts()["goal_0"] is True
    with pytest.raises(RuntimeError, match=r"step\(\) was called after the end of the episode"):
        env.step(NOOP)


class Step(NamedTuple):
    reward: float
    stage: int
    n_stages: int
    progress: float
    signal: float
    terms: dict[str, float]


def test_reward_program_protocol() -> None:
    calls = []

    class Program:
        def reset(self) -> int:
            return 0

        def __call__(self, state: Any, info: Any, memory: int) -> tuple[Step, int]:
            calls.append((memory, info["step"], state["eef_pos"]))
            return Step(0.5 * memory, 1, 4, 0.25, 0.75, {"approach": 0.1}), memory + 1

    env = make(2, reward=Program())
    _, info = env.reset(seed=0)
    expected = {"stage": 1, "n_stages": 4, "progress": 0.25, "step_signal": 0.75, "approach": 0.1}
    assert expected.items() <= info.items()
    _, reward, *_, info = env.step(NOOP)
    assert reward == 0.5 and info == {"is_success": False, **expected}
    env.step(NOOP)
    assert [(memory, step) for memory, step, _ in calls] == [(0, 0), (1, 1), (2, 2)]
    env.reset(seed=0)
    assert calls[-1] == calls[0]


def test_own_bddl_file(tmp_path: Path) -> None:
    path = tmp_path / "put_the_milk_away.bddl"
    path.write_text(get_task("libero_object", 7).bddl_file.read_text())
    env = LiberoEnv.from_bddl(path, assets="light", observations=())
    assert env.instruction == "put the milk away" and env.suite == ""
    env.reset(seed=0)
    start = env.flat_state()
    other = make(7)
    other.reset(seed=0)
    np.testing.assert_array_equal(start, other.flat_state())
    with pytest.raises(ValueError, match="no stored initial states"):
        env.reset(options={"init_state_id": 0})
    with pytest.raises(TypeError, match="image_sise"):
        LiberoEnv.from_bddl(path, assets="light", image_sise=64)
    assert LiberoEnv.from_bddl(path, instruction="milk!", assets="light").instruction == "milk!"
    with pytest.raises(FileNotFoundError, match=r"nowhere\.bddl"):
        LiberoEnv.from_bddl(tmp_path / "nowhere.bddl")
    path.write_text("(define (problem nonsense")
    with pytest.raises(ValueError, match="BDDL problem of LIBERO's"):
        LiberoEnv.from_bddl(path, assets="light").reset()


def test_a_bddl_file_whose_language_is_not_its_name_warns(tmp_path: Path) -> None:
    task = get_task("libero_goal", 8)
    other = task.read_bddl().replace("(:language Put the bowl on the plate", "(:language put the bowl on the stove")
    own, changed, suffixed = (tmp_path / f"{name}.bddl" for name in (task.name, "a/" + task.name, task.name + "_view_3"))
    (tmp_path / "a").mkdir()
    own.write_text(task.read_bddl())
    changed.write_text(other)
    suffixed.write_text(task.read_bddl())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for known in (own, get_task("libero_spatial", 3).bddl_file, get_task("libero_90", 14).bddl_file):
            LiberoEnv.from_bddl(known, assets="light")
        LiberoEnv.from_bddl(changed, assets="light", instruction="put the bowl on the stove")
    with pytest.warns(UserWarning, match="asks for 'put the bowl on the plate', its .* for 'put the bowl on the stove'"):
        assert LiberoEnv.from_bddl(changed, assets="light").instruction == "put the bowl on the plate"
    with pytest.warns(UserWarning, match="'put the bowl on the plate view 3'.*instruction="):
        LiberoEnv.from_bddl(suffixed, assets="light")


# ---------------------------------------------------------------------- facts


def test_facts_fill_the_vocabulary(env: LiberoEnv) -> None:
    env.reset(seed=0)
    state = env.facts()
    types = load_task_facts("libero_object-3").state_types
    assert set(state) == set(types)
    for key, kind in types.items():
        value = state[key]
        if kind == "bool":
            assert value is True or value is False, key
        elif kind == "scalar":
            assert type(value) is float, key
        else:
            assert isinstance(value, tuple) and len(value) == {"vec3": 3, "quat": 4}[kind], key
            assert all(type(number) is float for number in value), key


def test_facts_are_liberos_observations(env: LiberoEnv) -> None:
    env.reset(seed=3)
    for action in np.random.default_rng(0).uniform(-1, 1, (20, 7)):
        env.step(action)
    problem, state = env.sim.scene.problem, env.facts()
    problem._update_observables(force=True)
    theirs = problem._get_observations()
    np.testing.assert_array_equal(state["eef_pos"], theirs["robot0_eef_pos"])
    np.testing.assert_array_equal(state["eef_quat"], theirs["robot0_eef_quat"])
    assert state["gripper_opening"] == theirs["robot0_gripper_qpos"] @ [1, -1]
    for name in problem.objects_dict:
        np.testing.assert_array_equal(state[f"{name}_pos"], theirs[f"{name}_pos"])
        np.testing.assert_array_equal(state[f"{name}_quat"], theirs[f"{name}_quat"])


def test_contacts_are_robosuites() -> None:
    """Butter is put in and around the hand; each contact fact against robosuite's own checks."""
    env = make(6)
    env.reset(seed=0)
    problem, gripper, rng = env.sim.scene.problem, env.sim.scene.robot.gripper, np.random.default_rng(0)
    address = env.model.joint("butter_1_joint0").qposadr[0]
    hand = np.array(env.facts()["eef_pos"])
    seen = set()
    fingers = env.sim.scene.robot._ref_gripper_joint_pos_indexes
    for _ in range(200):
        env.data.qpos[fingers] = np.array([1.0, -1.0]) * rng.uniform(0, 0.04)
        env.data.qpos[address : address + 3] = hand + rng.normal(0, [0.01, 0.02, 0.01])
        mujoco.mj_forward(env.model, env.data)
        state = env.facts()
        for name, thing in problem.objects_dict.items():
            pads = [problem.check_contact(gripper.important_geoms[f"{side}_fingerpad"], thing) for side in ("left", "right")]
            assert [state[f"{name}_left_pad"], state[f"{name}_right_pad"]] == pads
            assert state[f"{name}_grasped"] == problem._check_grasp(gripper, thing)
            assert state[f"{name}_touched"] == problem.check_contact(gripper, thing)
        seen.add((*(state[f"butter_1_{side}_pad"] for side in ("left", "right")), state["butter_1_touched"]))
    assert seen == {
        (False, False, False),
        (False, False, True),  # by the back of the hand
        (True, False, True),
        (False, True, True),
        (True, True, True),
    }
    env.close()


def test_facts_ship_as_measured() -> None:
    """The shipped task facts, measured anew on light assets: collision geometry is the same on both."""
    from write_task_facts import measure

    assert measure("libero_object-6", "light") == load_task_facts("libero_object-6").to_dict()


# ---------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"suite": "libero_objects"}, "libero_spatial, libero_object, libero_goal, libero_10, libero_90"),
        ({"suite": "libero_object", "task": 10}, "Available: 0 to 9"),
        ({"suite": "libero_object", "task": -1}, "Available: 0 to 9"),
        ({"suite": "libero_object", "observations": ("picture",)}, "image, wrist_image, state"),
        ({"suite": "libero_object", "image_size": 0}, "image_size must be a positive integer"),
        ({"suite": "libero_object", "render_mode": "human"}, "rgb_array"),
        ({"suite": "libero_object", "start_noise": -0.1}, "start_noise must be"),
        ({"suite": "libero_object", "max_episode_steps": 0}, "max_episode_steps must be positive"),
        ({"suite": "libero_object", "assets": "heavy"}, "'auto', 'full', 'light'"),
    ],
)
def test_bad_arguments(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LiberoEnv(**{"assets": "light", **kwargs})


def test_bad_task_type_and_reward_type() -> None:
    with pytest.raises(TypeError, match="task must be an integer"):
        make("3")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="RewardProgram"):
        make(reward=3)
    with pytest.raises(TypeError, match="RewardProgram"):
        make(reward=lambda state, info, memory: (0.0, memory))


def test_a_reward_of_another_task_is_refused() -> None:
    for reward in ("libero_object-4", load_reward("libero_object-4")):
        with pytest.raises(ValueError, match="reward is for libero_object-4, not for libero_object-3: pass that of"):
            make(3, reward=reward)


def test_a_reward_of_a_task_without_shipped_facts_is_made_with_facts_of_its_own(tmp_path: Path) -> None:
    env = LiberoEnv("libero_90", 0, assets="light", observations=())
    facts = TaskFacts.from_dict(env.task_facts())
    env.close()
    document = write_spec(facts, measure(facts, [])).model_dump(mode="json")
    (tmp_path / "spec.json").write_text(json.dumps(document))
    with pytest.raises(RewardError, match=r"No task facts for 'libero_90-0'.*facts=TaskFacts\.from_dict\(env\.task_facts"):
        LiberoEnv("libero_90", 0, reward=tmp_path / "spec.json", assets="light", observations=())
    program = RewardProgram.from_spec(tmp_path / "spec.json", facts=facts)
    assert LiberoEnv("libero_90", 0, reward=program, assets="light", observations=()).reward_program is program
    with pytest.raises(ValueError, match="reward is for libero_90-0, not for libero_90-1"):
        LiberoEnv("libero_90", 1, reward=program, assets="light", observations=())


@pytest.mark.parametrize("options", [{"init_state_id": 50}, {"init_state_id": -1}, {"init_state_id": "first"}])
def test_bad_init_state_id(env: LiberoEnv, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="init_state_id"):
        env.reset(options=options)


def test_bad_options_and_seed(env: LiberoEnv) -> None:
    with pytest.raises(ValueError, match=r"Unknown reset options \['init_state'\]"):
        env.reset(options={"init_state": 3})
    with pytest.raises(ValueError, match="seed must be between"):
        env.reset(seed=2**32)


@pytest.mark.parametrize("action", [np.zeros(6), np.zeros((1, 7)), np.full(7, np.nan), np.full(7, np.inf)])
def test_bad_action(env: LiberoEnv, action: np.ndarray) -> None:
    env.reset(seed=0)
    before = env.flat_state()
    with pytest.raises(ValueError, match="action must be 7 finite numbers"):
        env.step(action)
    np.testing.assert_array_equal(before, env.flat_state())


def test_calls_before_reset() -> None:
    env = make(render_mode="rgb_array")
    for call in (lambda: env.step(NOOP), env.render, lambda: env.set_state(np.zeros(3))):
        with pytest.raises(RuntimeError, match=r"before reset\(\)"):
            call()
    env.close()


def test_missing_and_incomplete_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SB3_TGRPO_LIBERO_ASSETS", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make(assets="full")
    monkeypatch.setenv("SB3_TGRPO_LIBERO_ASSETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"file\(s\) missing: \S+\.(xml|obj|png|stl|msh)"):
        make(assets="full")


# ---------------------------------------------------------------------- process hygiene


def run_python(code: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {
        key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM", "LIBERO_CONFIG_PATH")
    }
    variables |= {"SB3_TGRPO_CACHE": os.environ.get("SB3_TGRPO_CACHE", str(tmp_path / "cache")), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


RENDERING = (
    "import os, sys\n"
    "from sb3_tgrpo.envs import LiberoEnv\n"
    "env = LiberoEnv('libero_object', 0, assets='light', image_size=32)\n"
    "print(env.reset(seed=0)[0]['image'].mean(), os.environ['MUJOCO_GL'], 'torch._dynamo' in sys.modules)\n"
)


def test_a_fresh_home_no_questions_and_a_quiet_exit(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = run_python(RENDERING, tmp_path, HOME=str(home), XDG_CACHE_HOME=str(tmp_path / "xdg"))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1
    assert not (home / ".libero").exists()


def test_egl_device_beside_visible_cuda_devices(tmp_path: Path) -> None:
    done = run_python(RENDERING, tmp_path, MUJOCO_EGL_DEVICE_ID="0", CUDA_VISIBLE_DEVICES="3")
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_library("OSMesa") is None, reason="OSMesa is not installed; Mesa has it no more since 25.1")
def test_osmesa_after_torchs_compiler(tmp_path: Path) -> None:
    done = run_python(RENDERING + "import torch._dynamo", tmp_path, MUJOCO_GL="osmesa")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[1:] == ["osmesa", "True"]


def test_the_simulator_is_created_by_the_first_reset(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from sb3_tgrpo.envs import LiberoEnv, register_envs\n"
        "register_envs()\n"
        "heavy = {'libero', 'robosuite', 'mujoco', 'transformers', 'peft'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "env = LiberoEnv('libero_object', 0, assets='light')\n"
        "heavy = {'libero', 'robosuite', 'mujoco', 'torch'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = run_python(code, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_controller_is_compiled_by_one_process_at_a_time(
    env: LiberoEnv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sb3_tgrpo.envs.libero import controller

    sim, compiled = env.sim, threading.Event()
    stub = SimpleNamespace(signatures=[], stats=SimpleNamespace(cache_path=str(tmp_path)))
    monkeypatch.setattr(controller, "_advance", stub)
    monkeypatch.setattr(controller.ArmController, "advance", lambda *args, **kwargs: compiled.set())
    make_controller = threading.Thread(target=controller.ArmController, args=(sim.model, sim.data, sim.scene.robot))
    with FileLock(tmp_path / "libero_controller.lock"):  # as another process that compiles
        make_controller.start()
        assert not compiled.wait(0.3)
    make_controller.join()
    assert compiled.is_set()


@pytest.mark.slow
def test_simulators_that_start_together_compile_the_controller_once(tmp_path: Path) -> None:
    code = (
        "from sb3_tgrpo.envs import LiberoEnv\n"
        "from sb3_tgrpo.envs.libero.controller import _advance\n"
        "LiberoEnv('libero_object', 0, assets='light').reset(seed=0)\n"
        "print(sum(_advance.stats.cache_misses.values()))\n"
    )
    cache = str(tmp_path / "numba")
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda _: run_python(code, tmp_path, NUMBA_CACHE_DIR=cache), range(2)))
    assert [one.returncode for one in done] == [0, 0], done[0].stderr + done[1].stderr
    assert sorted(one.stdout.split()[-1] for one in done) == ["0", "1"]


def test_no_gl_library_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo.envs.libero import gl

    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.setattr(gl, "has_egl_device", lambda: False)
    monkeypatch.setattr(gl.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setattr(gl.sys, "platform", "linux")
    for packages in (gl.EGL_PACKAGES, gl.OSMESA_PACKAGES):
        with pytest.raises(gl.GLError, match=f"apt-get install {' '.join(packages)}"):
            gl.choose_gl()
    monkeypatch.setattr(gl, "has_egl_device", lambda: True)
    assert gl.choose_gl() == os.environ["MUJOCO_GL"] == "egl"


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "7"}, "MUJOCO_EGL_DEVICE_ID=7: .*a number from 0 to 1"),
        ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "cuda:0"}, "MUJOCO_EGL_DEVICE_ID=cuda:0: .*a number from 0 to 1"),
        ({"MUJOCO_GL": "egl", "MUJOCO_EGL_DEVICE_ID": "-1"}, "MUJOCO_EGL_DEVICE_ID=-1: "),
        ({"MUJOCO_GL": "glfw"}, "MUJOCO_GL=glfw needs a display"),
        ({"MUJOCO_GL": "off"}, "MUJOCO_GL=off turns rendering off"),
        ({"MUJOCO_GL": "vulkan"}, "MUJOCO_GL=vulkan: MuJoCo has no such backend"),
        ({"MUJOCO_GL": "egl", "PYOPENGL_PLATFORM": "osmesa"}, "PYOPENGL_PLATFORM=osmesa contradicts MUJOCO_GL=egl"),
    ],
)
def test_gl_variables_that_can_not_work_are_named(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    from sb3_tgrpo.envs.libero import gl, render

    monkeypatch.setattr(gl, "egl_device_count", lambda: 2)
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_EGL_DEVICE_ID", "PYOPENGL_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    model = mujoco.MjModel.from_xml_string("<mujoco/>")
    with pytest.raises(ValueError, match=message) as raised:
        render.OffscreenRenderer(model, mujoco.MjData(model), 8, 8).render(0)
    assert "apt-get" not in str(raised.value)


def test_rendering_in_a_fork_of_a_process_that_has_rendered_is_an_error(env: LiberoEnv) -> None:
    from sb3_tgrpo.envs.libero.render import OffscreenRenderer

    env.reset(seed=0)
    OffscreenRenderer(env.model, env.data, 8, 8).render(0)
    context = multiprocessing.get_context("fork")
    ours, childs = context.Pipe()

    def child() -> None:
        try:
            OffscreenRenderer(env.model, env.data, 8, 8).render(0)
        except RuntimeError as error:
            childs.send(str(error))
        os._exit(0)

    process = context.Process(target=child, daemon=True)
    process.start()
    heard = ours.poll(30)
    process.kill()
    assert heard and 'start_method="forkserver"' in ours.recv()


def test_robosuites_log_of_another_user_is_left_alone(tmp_path: Path) -> None:
    code = (
        "import logging\n"
        "def denied(self, path, *args, **kwargs):\n"
        "    raise PermissionError(13, 'Permission denied', path)\n"
        "logging.FileHandler.__init__ = denied\n"
        "from sb3_tgrpo.envs import LiberoEnv\n"
        "LiberoEnv('libero_object', 0, assets='light', observations=()).task_facts()\n"
        "try:\n"
        "    logging.FileHandler('x')\n"
        "except PermissionError:\n"
        "    print('as before')\n"
    )
    done = run_python(code, tmp_path)
    assert (done.stdout, done.stderr) == ("as before\n", "")


def test_numba_gets_a_cache_where_neither_installation_nor_home_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from numba.core import config

    from sb3_tgrpo.envs.libero import process

    monkeypatch.setattr(config, "CACHE_DIR", config.CACHE_DIR)
    monkeypatch.setattr(process, "writable_cache_folder", lambda: tmp_path)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    process._find_numba_a_cache()
    assert "NUMBA_CACHE_DIR" not in os.environ
    monkeypatch.setattr(process, "is_writable", lambda folder: False)
    process._find_numba_a_cache()
    assert os.environ["NUMBA_CACHE_DIR"] == config.CACHE_DIR == str(tmp_path / "numba")
    monkeypatch.delenv("NUMBA_CACHE_DIR")


def test_warns_about_another_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_tgrpo.envs.libero import sim as libero_sim

    monkeypatch.setattr(libero_sim, "PINNED_MUJOCO", "2.3.7")
    with pytest.warns(UserWarning, match=r"pip install mujoco==2\.3\.7"):
        make().reset(seed=0)


def test_joint_noise_gives_drawn_starts_the_spread_of_the_stored_ones():
    env = LiberoEnv("libero_object", 8, assets="light", observations=("state",), joint_noise=0.02)
    plain = LiberoEnv("libero_object", 8, assets="light", observations=("state",))
    plain.reset(seed=0)
    posture = plain.data.qpos[:7].copy()
    spread = []
    for seed in range(12):
        env.reset(seed=seed)
        spread.append(env.data.qpos[:7] - posture)
    assert 0.012 < np.std(spread) < 0.03
    env.reset(seed=3)
    again = env.data.qpos.copy()
    env.reset(seed=3)
    assert np.array_equal(env.data.qpos, again)
    for other in (env, plain):  # stored starts are LIBERO's
        other.reset(seed=0, options={"init_state_id": 5})
    assert np.array_equal(env.data.qpos, plain.data.qpos)
    with pytest.raises(ValueError, match="joint_noise"):
        LiberoEnv("libero_object", 8, assets="light", joint_noise=-1.0)
    env.close()
    plain.close()
