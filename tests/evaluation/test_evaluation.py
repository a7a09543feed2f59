"""Evaluation: outcomes that depend on policy and start alone, resumption, comparison."""

import argparse
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from libero_reference import libero_env, random_actions
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_tgrpo import DPO, TGRPO, TPO
from sb3_tgrpo.cli import main
from sb3_tgrpo.cli.eval import add_parser, default_folder, load_algorithm
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.envs.groups.worker import WorkerPool
from sb3_tgrpo.envs.libero.env import SETTLE_ACTION, SETTLE_STEPS, LiberoEnv
from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts
from sb3_tgrpo.evaluation.comparison import mcnemar_p_value
from sb3_tgrpo.evaluation.protocol import (
    EvalEpisode,
    Evaluation,
    _resume_settings,
    evaluate_policy,
    fingerprint,
    paired_comparison,
    policy_name,
    resumable_evaluation,
)
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.run_folder import RunFolder

INSTRUCTION = np.frombuffer(b"pick up the milk".ljust(256, b"\x00"), np.uint8)


class Walk(gym.Env):
    """
    The image follows from start and actions; the sum of the actions decides when and how the episode ends. A chaotic walk: one
    different token anywhere changes lengths and rewards.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012
    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (64, 64, 3), np.uint8), "instruction": spaces.Box(0, 255, (256,), np.uint8)}
    )
    action_space = spaces.Box(-1, 1, (7,), np.float32)

    def __init__(self, render_mode: str | None = None, fail_at: int | None = None, crash_file: str | None = None) -> None:
        self.render_mode, self.fail_at, self.crash_file = render_mode, fail_at, crash_file

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        super().reset(seed=seed)
        start = (options or {}).get("init_state_id", 100 + (seed or 0))
        self.state = np.random.default_rng(start).uniform(0, 1, 7)
        self.steps = 0
        return self.observe(), {"is_success": False}

    def observe(self) -> dict[str, np.ndarray]:
        row = np.resize((255 * self.state).astype(np.uint8), 64 * 3)
        return {"image": np.broadcast_to(row.reshape(1, 64, 3), (64, 64, 3)).copy(), "instruction": INSTRUCTION.copy()}

    def step(self, action: np.ndarray):
        self.steps += 1
        self.state = (3.7 * self.state + 1.3 * np.asarray(action, np.float64)) % 1.0
        if self.crash_file is not None and self.steps == 2 and not os.path.exists(self.crash_file):
            Path(self.crash_file).touch()
            os._exit(3)
        success = bool(self.state[0] < 0.15)
        info = {"is_success": success, "stage": self.steps // 2, "n_stages": 4, "progress": min(1.0, self.steps / 8)}
        return self.observe(), float(self.state[1]), success, self.steps >= 7, info

    def render(self) -> np.ndarray:
        return self.observe()["image"]


def make_policy(space: spaces.Dict = Walk.observation_space) -> OpenVLAPolicy:
    th.manual_seed(0)
    policy = OpenVLAPolicy(space, Walk.action_space, FloatSchedule(0.0), checkpoint="tiny", lora=None, value_head=False)
    with th.no_grad():  # the fresh one hardly looks at the image
        policy.model.language_model.lm_head.weight.mul_(40.0)
    return policy


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return make_policy()


WALKS = {"walk-0": Walk, "walk-1": Walk}


def outcome(evaluation: Evaluation) -> list[EvalEpisode]:
    return evaluation.episodes


# ---------------------------------------------------------------------- outcomes


@pytest.mark.parametrize("how", [{}, {"deterministic": False, "episodes_per_start": 2}])
def test_outcomes_do_not_depend_on_the_environments_at_once(policy: OpenVLAPolicy, how: dict[str, Any]) -> None:
    runs = [
        evaluate_policy(policy, WALKS, init_state_ids=range(5), n_envs=n_envs, subprocess=False, **how) for n_envs in (1, 2, 9)
    ]
    assert outcome(runs[0]) == outcome(runs[1]) == outcome(runs[2])
    episodes = outcome(runs[0])
    assert len({episode.reward for episode in episodes}) > 4 and len({episode.success for episode in episodes}) == 2
    assert [episode.task for episode in episodes] == sorted(episode.task for episode in episodes)
    assert episodes[0].reward != episodes[-1].reward and episodes[0].init_state_id == 0
    assert all(e.max_stage == e.length // 2 and e.n_stages == 4 and e.progress == e.length / 8 for e in episodes)
    if how:
        assert len({episode.reward for episode in episodes[:2]}) == 2  # two samples from one start


def test_equals_a_plain_loop(policy: OpenVLAPolicy) -> None:
    evaluation = evaluate_policy(policy, {"walk": Walk}, seeds=[7, 3], subprocess=False)
    for episode in evaluation.episodes:
        env = Walk()
        observation, _ = env.reset(seed=episode.seed)
        over, rewards = False, []
        while not over:
            batch = {key: th.from_numpy(value[None]) for key, value in observation.items()}
            action = policy.unscale_action(policy.forward(batch, deterministic=True)[0].numpy())[0]
            observation, reward, terminated, truncated, info = env.step(action)
            rewards.append(reward)
            over = terminated or truncated
        assert (episode.length, episode.success) == (len(rewards), info["is_success"])
        assert episode.reward == pytest.approx(sum(rewards)) and episode.init_state_id is None
    assert [episode.seed for episode in evaluation.episodes] == [7, 3]


def test_a_policy_with_channels_first_sees_the_same_images(policy: OpenVLAPolicy) -> None:
    """Stable-Baselines3 wraps image environments, and the policy's space is the wrapped one's."""
    image = spaces.Box(0, 255, (3, 64, 64), np.uint8)
    wrapped = make_policy(spaces.Dict({**Walk.observation_space.spaces, "image": image}))
    how: dict[str, Any] = {"init_state_ids": range(3), "subprocess": False}
    assert evaluate_policy(wrapped, {"walk": Walk}, **how).episodes == evaluate_policy(policy, {"walk": Walk}, **how).episodes


def test_sampling_follows_from_the_seed_and_leaves_torch_alone(policy: OpenVLAPolicy) -> None:
    state = th.get_rng_state()
    how: dict[str, Any] = {"init_state_ids": [0, 1], "deterministic": False, "subprocess": False}
    first, again, other = (evaluate_policy(policy, {"walk": Walk}, seed=seed, **how) for seed in (1, 1, 2))
    assert first.episodes == again.episodes != other.episodes
    cold = evaluate_policy(policy, {"walk": Walk}, temperature=0.01, **how)
    assert [e.reward for e in cold.episodes] != [e.reward for e in first.episodes]
    assert cold.temperature == 0.01 and first.temperature == policy.temperature == 1.0
    assert th.equal(state, th.get_rng_state())


@pytest.mark.parametrize("deterministic", [True, False])
def test_algorithms_of_stable_baselines3(deterministic: bool) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    runs = [
        evaluate_policy(model, "CartPole-v1", seeds=range(4), n_envs=n_envs, deterministic=deterministic) for n_envs in (1, 3)
    ]
    assert runs[0].episodes == runs[1].episodes and runs[0].protocol["step_caps"] == {"CartPole-v1": 500}
    assert [e.reward for e in runs[0].episodes] == [e.length for e in runs[0].episodes]
    assert runs[0].policy == "PPO" and runs[0].assets is None


def test_a_process_that_dies_is_replaced_and_its_episode_played_again(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    plain = evaluate_policy(policy, {"walk": Walk}, init_state_ids=range(2), subprocess=False)
    crashing = evaluate_policy(
        policy, {"walk": Walk}, init_state_ids=range(2), n_envs=1, env_kwargs={"crash_file": str(tmp_path / "crashed")}
    )
    assert (tmp_path / "crashed").exists() and crashing.episodes == plain.episodes


def test_processes_are_kept_for_the_next_evaluation(policy: OpenVLAPolicy) -> None:
    def play(pool: WorkerPool | None, **how: Any) -> list[EvalEpisode]:
        settings = {"init_state_ids": range(4), "n_envs": 2, "subprocess": True, **how}
        return outcome(evaluate_policy(policy, {"walk": Walk}, pool=pool, **settings))

    def running() -> set[int]:
        return {worker.process.popen.pid for worker in pool._idle}

    alone = [play(None), play(None, deterministic=False)]
    with WorkerPool() as pool:
        assert play(pool) == alone[0]
        first = running()
        assert len(first) == 2 and play(pool, deterministic=False) == alone[1] and running() == first
        # Another environment has other processes.
        assert play(pool, env_kwargs={"render_mode": "rgb_array"}) == alone[0] and len(running()) == 4 and first < running()

        def interrupt(*_: Any) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            play(pool, progress=interrupt)
        assert len(running()) == 2 and not first & running()  # who knows what those in the middle of an episode would answer
        workers = list(pool._idle)
    assert not running() and all(worker.process.popen.poll() is not None for worker in workers)


def test_videos_of_failures(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    import imageio.v2 as imageio

    how: dict[str, Any] = {"init_state_ids": range(5), "subprocess": False, "video_folder": tmp_path}
    episodes = evaluate_policy(policy, {"walk-0": Walk}, **how).episodes
    failures = [episode for episode in episodes if not episode.success]
    assert 0 < len(failures) < 5
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"walk-0-start{episode.init_state_id:02d}-failure.mp4" for episode in failures}
    film = tmp_path / f"walk-0-start{failures[0].init_state_id:02d}-failure.mp4"
    assert sum(1 for _ in imageio.get_reader(film)) == failures[0].length + 1
    evaluate_policy(policy, {"two-0": Walk}, record=2, **how)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("two-0-start0")]) == 2


# ---------------------------------------------------------------------- LIBERO


def libero_policy(kind: str = "light", **kwargs: Any) -> tuple[OpenVLAPolicy, dict[str, Any]]:
    made = {"assets": kind, "image_size": 64, "max_episode_steps": 6, **kwargs}
    env = gym.make("LIBERO/libero_object-9-v0", **made)
    return make_policy(env.observation_space), made  # type: ignore[arg-type]


def test_libero_protocol_and_noise() -> None:
    policy, env_kwargs = libero_policy()
    evaluation = evaluate_policy(policy, "LIBERO/libero_object-9-v0", init_state_ids=[0, 49], env_kwargs=env_kwargs)
    assert [(e.task, e.init_state_id, e.seed, e.length) for e in evaluation.episodes] == [
        ("libero_object-9", 0, 0, 6),
        ("libero_object-9", 49, 0, 6),
    ]
    assert evaluation.assets == "light" and evaluation.protocol["versions"]["mujoco"] == "3.3.2"
    # Noise on a stored start: the same for the same seed, another for another, none of the arm's.
    env = LiberoEnv("libero_object", 9, assets="light", observations=())
    states = []
    for seed in (5, 5, 6, None):
        noise = {} if seed is None else {"start_noise": 0.02, "noise_seed": seed}
        env.reset(options={"init_state_id": 3, **noise})
        states.append(env.flat_state())
    env.close()
    np.testing.assert_array_equal(states[0], states[1])
    moved = np.abs(states[0] - states[3])
    assert 0.001 < moved.max() < 0.03 and moved[1:8].max() < 1e-3
    assert np.abs(states[0] - states[2]).max() > 0.001


def test_official_order_equals_liberos_loop() -> None:
    """Seeded once, reset before each stored start: fixtures stand elsewhere in each episode, as in OpenVLA's evaluation."""
    suite, task = "libero_goal", 3
    env = LiberoEnv(suite, task, assets="light", observations=())
    action = random_actions(0, 1)[0]
    fixtures = []
    with libero_env(suite, task, "light") as reference:
        reference.seed(0)
        for k in range(3):
            reference.reset()
            reference.set_init_state(stored_starts(get_task(suite, task))[k])
            for _ in range(SETTLE_STEPS):
                reference.step(np.array(SETTLE_ACTION))
            env.reset(seed=0, options={"init_state_id": k, "earlier_resets": k})
            np.testing.assert_array_equal(env.model.body_pos, reference.sim.model.body_pos)
            np.testing.assert_array_equal(env.flat_state(), reference.get_sim_state())
            reference.step(action.astype(np.float64))
            env.step(action)
            np.testing.assert_array_equal(env.flat_state(), reference.get_sim_state())
            fixtures.append(env.model.body_pos.copy())
    env.close()
    assert not np.array_equal(fixtures[0], fixtures[1]) and not np.array_equal(fixtures[1], fixtures[2])


def test_official_order_reaches_the_environment() -> None:
    seen: list[Any] = []

    class Note(Walk):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
            seen.append((seed, options))
            return super().reset(seed=seed, options=options)

    evaluate_policy(make_policy(), {"walk": Note}, init_state_ids=range(3), official_order=True, subprocess=False, seed=7)
    assert sorted(seen, key=str) == [(0, {"init_state_id": k, "earlier_resets": k}) for k in range(3)]


# ---------------------------------------------------------------------- resumption


SCRIPT = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from test_evaluation import Walk, make_policy
    from sb3_tgrpo.evaluation.protocol import resumable_evaluation

    def slow(episode, done, total):
        print(done, flush=True)
        time.sleep(0.2 if done < 3 else 60)

    resumable_evaluation({folder!r}, make_policy(), {{"walk": Walk}}, init_state_ids=range(8), subprocess=False,
                         deterministic=False, progress=slow)
"""


def test_killed_evaluation_goes_on_to_the_same_result(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    how: dict[str, Any] = {"init_state_ids": range(8), "subprocess": False, "deterministic": False}
    folder = tmp_path / "killed"
    code = textwrap.dedent(SCRIPT).format(tests=str(Path(__file__).parents[1] / "helpers"), folder=str(folder))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "3":
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    lines = (folder / "episodes.jsonl").read_text().splitlines()
    assert len(lines) == 3 and not (folder / "evaluation.json").exists()
    with open(folder / "episodes.jsonl", "a") as file:
        file.write(lines[0][:30])  # a line cut short
    played: list[int] = []
    resumed = resumable_evaluation(folder, policy, {"walk": Walk}, progress=lambda e, n, _: played.append(n), **how)
    assert played == [4, 5, 6, 7, 8]
    assert resumed.episodes == evaluate_policy(policy, {"walk": Walk}, **how).episodes
    assert Evaluation.load(folder / "evaluation.json") == resumed
    assert resumable_evaluation(folder, policy, {"walk": Walk}, n_envs=1, **how) == resumed  # nothing is played again


def test_a_folder_is_of_one_evaluation(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    resumable_evaluation(tmp_path, policy, {"walk": Walk}, init_state_ids=[0], subprocess=False)
    with pytest.raises(ValueError, match=r"init_state_ids: \[0\] then, \[1\] now"):
        resumable_evaluation(tmp_path, policy, {"walk": Walk}, init_state_ids=[1], subprocess=False)
    other = make_policy()
    with th.no_grad():
        other.model.language_model.lm_head.weight.mul_(1.01)
    with pytest.raises(ValueError, match="policy_fingerprint"):
        resumable_evaluation(tmp_path, other, {"walk": Walk}, init_state_ids=[0], subprocess=False)


def test_a_folder_is_of_one_way_to_act(tmp_path: Path) -> None:
    policy = make_policy()
    sampled: dict[str, Any] = {"init_state_ids": [0], "deterministic": False, "subprocess": False}
    resumable_evaluation(tmp_path / "greedy", policy, {"walk": Walk}, init_state_ids=[0], subprocess=False)
    resumable_evaluation(tmp_path / "sampled", policy, {"walk": Walk}, **sampled)
    policy.temperature = 0.1
    resumable_evaluation(tmp_path / "greedy", policy, {"walk": Walk}, init_state_ids=[0], subprocess=False)
    with pytest.raises(ValueError, match=r"policy\.temperature: 1\.0 then, 0\.1 now"):
        resumable_evaluation(tmp_path / "sampled", policy, {"walk": Walk}, **sampled)
    policy.temperature = 1.0
    (key,) = policy.model.norm_stats
    wider = {name: [2.0 * value for value in values] for name, values in policy.model.norm_stats[key]["action"].items()}
    for change, value, message in (
        ("gripper", "raw", "policy.gripper"),
        ("instruction", "wait", "policy.instruction: None then, wait now"),
        (
            "statistics",
            {key: {"action": {**wider, "mask": policy.model.norm_stats[key]["action"]["mask"]}}},
            "policy.statistics",
        ),
        ("statistics", {"other": policy.model.norm_stats[key]}, r"policy.unnorm_key: .* then, other now"),
    ):
        other = make_policy()
        if change == "statistics":
            other.set_statistics(value)
        else:
            setattr(other, change, value)
        with pytest.raises(ValueError, match=message):
            resumable_evaluation(tmp_path / "greedy", other, {"walk": Walk}, init_state_ids=[0], subprocess=False)
    settings = json.loads((tmp_path / "greedy" / "settings.json").read_text())
    older = {name: value for name, value in settings.items() if not name.startswith("policy.")}
    (tmp_path / "greedy" / "settings.json").write_text(json.dumps(older))
    resumable_evaluation(tmp_path / "greedy", policy, {"walk": Walk}, init_state_ids=[0], subprocess=False)


def test_observations_normalised_in_another_way_are_another_evaluation(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0)
    how: dict[str, Any] = {"seeds": [0], "subprocess": False, "record": "none"}
    resumable_evaluation(tmp_path, model, "CartPole-v1", **how)
    resumable_evaluation(tmp_path, model, "CartPole-v1", **how)
    env.obs_rms.mean += 1.0
    with pytest.raises(ValueError, match=r"policy\.normaliser"):
        resumable_evaluation(tmp_path, model, "CartPole-v1", **how)


@pytest.mark.parametrize("lora", ["language", {"target_modules": ["embed_tokens"]}])
def test_a_new_adapter_is_the_same_whatever_its_random_factor(lora: Any) -> None:
    def made(seed: int) -> OpenVLAPolicy:
        th.manual_seed(seed)
        spaces_of = Walk.observation_space, Walk.action_space
        return OpenVLAPolicy(*spaces_of, FloatSchedule(0.0), checkpoint="tiny", lora=lora, value_head=False)

    first, second = made(0), made(1)
    factors = [name for name in first.state_dict() if "lora_" in name]
    assert any(not th.equal(first.state_dict()[name], second.state_dict()[name]) for name in factors)
    assert fingerprint(first) == fingerprint(second)
    for name, parameter in second.named_parameters():
        if "lora_" in name and not parameter.any():
            with th.no_grad():
                parameter.flatten()[0] = 1.0
    assert fingerprint(first) != fingerprint(second) != fingerprint(made(2))


# ---------------------------------------------------------------------- comparison


def fake(outcomes: list[int], name: str = "a", task: str = "libero_object-3", noise: float = 0.0) -> Evaluation:
    episodes = [EvalEpisode(task, k, 0, bool(success), 10, float(success)) for k, success in enumerate(outcomes)]
    return Evaluation(name, [f"LIBERO/{task}-v0"], True, None, "light", {"start_noise": noise}, episodes)


def test_mcnemar_exactly() -> None:
    assert mcnemar_p_value(0, 5) == 2 / 32 and mcnemar_p_value(5, 0) == 2 / 32
    assert mcnemar_p_value(1, 9) == 2 * (1 + 10) / 1024
    assert mcnemar_p_value(0, 0) == 1.0 and mcnemar_p_value(4, 4) == 1.0 and mcnemar_p_value(2, 3) == 1.0


def test_paired_counts_and_interval() -> None:
    before = fake([1, 1, 0, 0, 0, 0, 0, 1, 0, 0])
    after = fake([1, 0, 1, 1, 1, 1, 0, 1, 0, 1], "b")
    comparison = paired_comparison(before, after)
    assert (comparison.both, comparison.only_before, comparison.only_after, comparison.neither) == (2, 1, 5, 2)
    assert comparison.difference == pytest.approx(0.4) and comparison.p_value == 2 * (1 + 6) / 64
    # Gains +1 x5, -1, 0 x4: standard error sqrt((0.6 - 0.16) / 10) = 0.21; 1.96 of it about the mean, in steps of 0.1.
    low, high = comparison.interval
    assert low == pytest.approx(0.4 - 0.41, abs=0.1001) and high == pytest.approx(0.4 + 0.41, abs=0.1001)
    assert paired_comparison(after, before).difference == pytest.approx(-0.4)
    assert paired_comparison(before, before).interval == (0.0, 0.0)
    text = str(comparison)
    assert "only before 1, only after 5" in text and "+40.0 points" in text and "3/10" in text and "7/10" in text


def test_what_is_resampled() -> None:
    """Five seeds on the same ten starts, all outcomes decided by the start: not fifty independent pairs."""
    before, after = fake([0] * 10), fake([1] * 5 + [0] * 5, "b")
    by_start = paired_comparison([before] * 5, [after] * 5)
    by_pair = paired_comparison([before] * 5, [after] * 5, unit="pair")
    by_evaluation = paired_comparison([before] * 5, [after] * 5, unit="evaluation")
    assert by_start.interval == paired_comparison(before, after).interval
    widths = [c.interval[1] - c.interval[0] for c in (by_start, by_pair, by_evaluation)]
    assert widths[0] / widths[1] == pytest.approx(5**0.5, rel=0.2) and widths[2] == 0.0
    assert by_start.n_pairs == 50 and by_start.n_evaluations == 5 and "5 evaluations pooled" in str(by_start)
    assert by_start.p_value is None and "McNemar" not in str(by_start) and by_start.to_dict()["p_value"] is None


def test_tasks_are_fixed_and_their_starts_are_drawn() -> None:
    tasks = "libero_object-3", "libero_object-4"
    before = [fake([0] * 10, task=task) for task in tasks]
    after = [fake([0] * 10, "b", tasks[0]), fake([1] * 10, "b", tasks[1])]
    together = Evaluation("b", [], True, None, "light", {}, [e for evaluation in after for e in evaluation.episodes])
    nothing = replace(together, policy="a", episodes=[e for evaluation in before for e in evaluation.episodes])
    for comparison in (paired_comparison(before, after), paired_comparison(nothing, together)):
        assert comparison.difference == 0.5 and comparison.interval == (0.5, 0.5)  # no start of either task differs


def test_one_run_of_each_task_has_no_interval_over_runs() -> None:
    before = [fake([0] * 10), fake([0] * 10, task="libero_object-4")]
    after = [fake([1] * 10, "b"), fake([0, 1] * 5, "b", "libero_object-4")]
    with pytest.raises(ValueError, match="at least two"):
        paired_comparison(before, after, unit="evaluation")
    assert paired_comparison(before * 2, after * 2, unit="evaluation").interval == (0.75, 0.75)


def test_repetitions_of_a_start_are_no_independent_pairs() -> None:
    def repeated(name: str, successes: int) -> Evaluation:
        once = fake([k < successes for k in range(5)], name)
        once.episodes = [replace(episode, repetition=n) for episode in once.episodes for n in range(10)]
        return once

    comparison = paired_comparison(repeated("a", 0), repeated("b", 2))
    assert (comparison.n_pairs, comparison.n_starts, comparison.p_value) == (50, 5, None)
    assert comparison.interval == (0.0, 0.8)


def test_only_identical_starts_are_paired() -> None:
    with pytest.raises(ValueError, match=r"starts differ.*1 without a partner"):
        paired_comparison(fake([1, 0]), fake([1, 0, 1]))
    with pytest.raises(ValueError, match="starts differ"):
        paired_comparison(fake([1, 0]), fake([1, 0], noise=0.02))
    with pytest.raises(ValueError, match="as many evaluations, got 1 and 2"):
        paired_comparison(fake([1]), [fake([1]), fake([1])])
    with pytest.raises(ValueError, match="at least two"):
        paired_comparison(fake([1]), fake([1]), unit="evaluation")
    with pytest.raises(ValueError, match="The assets differ, light and full"):
        paired_comparison(fake([1, 0]), replace(fake([1, 0]), assets="full"))
    with pytest.raises(ValueError, match=r"The step caps differ, .*280.* and .*150"):
        paired_comparison(*(replace(fake([1, 0]), protocol={"step_caps": {"libero_object-3": n}}) for n in (280, 150)))
    sampled = replace(fake([1, 0]), deterministic=False, temperature=0.7)
    assert "before      1/2" in (text := str(paired_comparison(fake([1, 0]), sampled)))
    assert "a (greedy)" in text and "a (T=0.7)" in text and "greedy" not in str(paired_comparison(sampled, sampled))


def test_assets_are_part_of_what_an_interrupted_evaluation_is_of(
    policy: OpenVLAPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full ones may turn up while it is interrupted, and auto would then go on with these."""
    found = []
    for kind in ("light", "full"):
        monkeypatch.setattr("sb3_tgrpo.envs.libero.assets.resolve_assets", lambda _, kind=kind: SimpleNamespace(kind=kind))
        for kwargs in ({}, {"assets": "auto"}, {"assets": "light"}):
            settings = _resume_settings(policy, "LIBERO/libero_object-3-v0", {"env_kwargs": kwargs})
            found.append(settings["env_kwargs"]["assets"])
    assert found == ["light", "light", "light", "full", "full", "light"]
    assert _resume_settings(policy, {"walk": Walk}, {})["env_kwargs"] == {}


# ---------------------------------------------------------------------- records


def test_rates_and_files(tmp_path: Path) -> None:
    evaluation = fake([1, 0, 1, 1])
    evaluation.episodes += fake([0, 0], task="libero_object-4").episodes + fake([1, 1], task="libero_goal-0").episodes
    evaluation.env_ids += ["LIBERO/libero_object-4-v0", "LIBERO/libero_goal-0-v0"]
    assert evaluation.success_rate == 5 / 8 and evaluation.mean_length == 10
    assert {name: rate.rate for name, rate in evaluation.per_task().items()} == {
        "libero_object-3": 0.75,
        "libero_object-4": 0.0,
        "libero_goal-0": 1.0,
    }
    assert evaluation.per_suite()["libero_object"].rate == 0.5 and "libero_object    3/6 = 50% [19%, 81%]" in str(evaluation)
    assert evaluation.interval() == evaluation.rate.interval()
    evaluation.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == evaluation
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["rates"]["libero_object"]["rate"] == 0.5
    (tmp_path / "other.json").write_text('{"policy": 1}')
    with pytest.raises(ValueError, match=r"other.json can't be read as an evaluation"):
        Evaluation.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_state_ids": []}, "init_state_ids must be different starts"),
        ({"seeds": [1, 1]}, "seeds must be different starts"),
        ({"episodes_per_start": 0}, "episodes_per_start"),
        ({"temperature": 0.5}, "deterministic=False"),
        ({"episodes_per_start": 2}, "episodes_per_start=2 would count one greedy episode several times"),
        ({"deterministic": False, "temperature": 0.0}, "temperature must be positive"),
        ({"start_noise": -0.1}, "start_noise"),
        ({"official_order": True, "init_state_ids": [1, 0]}, "official_order"),
        ({"record": "some"}, "record must be"),
        ({"n_envs": 0}, "n_envs"),
    ],
)
def test_bad_arguments(policy: OpenVLAPolicy, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate_policy(policy, {"walk": Walk}, subprocess=False, **arguments)


def test_policies_made_for_something_else(policy: OpenVLAPolicy) -> None:
    with pytest.raises(ValueError, match="observations are"):
        evaluate_policy(policy, "LIBERO/libero_object-9-v0", env_kwargs={"assets": "light", "image_size": 128})
    with pytest.raises(ValueError, match="env_ids is empty"):
        evaluate_policy(policy, [])
    made_for_full, env_kwargs = libero_policy()
    made_for_full.observation_space["instruction"].assets = "full"  # type: ignore[index]
    light = gym.make("LIBERO/libero_object-9-v0", **env_kwargs)
    light.observation_space["instruction"].assets_by_name = False  # type: ignore[index]
    with pytest.raises(ValueError, match="made for full assets, walk would be played on light ones"):
        evaluate_policy(made_for_full, {"walk": lambda: light}, subprocess=False)
    with pytest.raises(ValueError, match="can't be changed"):
        evaluate_policy(
            PPO("MlpPolicy", "CartPole-v1", device="cpu"), "CartPole-v1", seeds=[0], deterministic=False, temperature=0.5
        )


# ---------------------------------------------------------------------- command line


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, env_kwargs = libero_policy(max_episode_steps=2)
    before = evaluate_policy(
        policy, "LIBERO/libero_object-9-v0", init_state_ids=[0], env_kwargs={**env_kwargs, "max_episode_steps": 2}, n_envs=1
    )
    before.protocol["step_caps"] = {"libero_object-9": 280}  # only so many are compared; two steps are played faster
    before.save(tmp_path / "before.json")
    arguments = ["--env", "LIBERO/libero_object-9-v0", "--assets", "light", "--image-size", "64", "--quiet", "--video", "all"]
    arguments += ["--starts", "0", "--out", str(tmp_path / "out"), "--compare", str(tmp_path / "before.json"), "--n-envs", "1"]
    started = time.time()
    assert main(["eval", "--checkpoint", "tiny", *arguments]) == 0
    text = capsys.readouterr().out
    assert "libero_object-9" in text and "0/1" in text and "McNemar" in text and "light assets" in text
    evaluation = Evaluation.load(tmp_path / "out" / "evaluation.json")
    assert evaluation.episodes[0].length == 280 and evaluation.protocol["step_caps"] == {"libero_object-9": 280}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "settings.json", "episodes.jsonl", "evaluation.json", "report.txt", "command.json", "comparison.json", "videos",
        ".lock",
    }  # fmt: skip
    assert (tmp_path / "out" / "videos" / "libero_object-9-start00-failure.mp4").stat().st_mtime >= started - 1
    assert main(["eval", "--checkpoint", "tiny", *arguments, "--sampled"]) == 1
    assert "holds another evaluation (deterministic: True then, False now)" in capsys.readouterr().err
    with RunFolder(tmp_path / "out").locked():
        assert main(["eval", "--checkpoint", "tiny", *arguments]) == 1
    assert "in use by another process" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "tiny"], "Name what to evaluate on"),
        (["--checkpoint", "tiny", "--suite", "libero_easy"], "--suite libero_easy: unknown"),
        (["--checkpoint", "nowhere", "--env", "LIBERO/libero_object-9-v0"], "neither a folder nor a hub id"),
        (["--checkpoint", "tiny", "--env", "LIBERO/libero_object-9-v0", "--episodes", "0"], "--episodes must be at least 1"),
        (["--model", __file__, "--env", "LIBERO/libero_object-9-v0"], "is not a saved algorithm"),
        (
            ["--model", "m.zip", "--adapter", "A", "--env", "LIBERO/libero_object-9-v0"],
            "--adapter A is merged into --checkpoint",
        ),
    ],
)
def test_command_line_bad_input(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", *arguments]) == 1
    assert message in capsys.readouterr().err


def arguments_of(*options: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["eval", "--env", "libero_object-9", *options])


def test_an_adapter_is_part_of_the_name_and_of_the_folder(tmp_path: Path) -> None:
    spaces_of = Walk.observation_space, Walk.action_space, FloatSchedule(0.0)
    base = OpenVLAPolicy(*spaces_of, checkpoint="tiny")
    adapter = str(base.export_adapter(tmp_path / "A"))
    assert policy_name(base) == "tiny"
    assert policy_name(OpenVLAPolicy(*spaces_of, checkpoint="tiny", adapter=adapter)) == f"tiny + {adapter}"
    arguments = [arguments_of("--checkpoint", "tiny", *more) for more in ((), ("--adapter", adapter))]
    folders = [default_folder(args, ["LIBERO/libero_object-9-v0"]).name for args in arguments]
    assert folders[0].startswith("tiny-libero") and folders[1].startswith("tiny+A-libero")


def test_saved_algorithms_are_told_apart(tmp_path: Path) -> None:
    contrib = pytest.importorskip("sb3_contrib")
    small: dict[str, Any] = {"device": "cpu", "policy_kwargs": {"net_arch": [4]}}
    for kind in (PPO, A2C, contrib.TRPO, contrib.RecurrentPPO, DQN):
        path = tmp_path / f"{kind.__name__}.zip"
        kind("MlpLstmPolicy" if kind is contrib.RecurrentPPO else "MlpPolicy", "CartPole-v1", **small).save(path)
        if kind in (PPO, A2C):
            assert type(load_algorithm(path, "cpu")) is kind
        else:
            with pytest.raises(ValueError, match=rf"{kind.__name__}\.zip: only TGRPO, DPO, TPO, PPO and A2C are known"):
                load_algorithm(path, "cpu")
    groups = make_group_env("CartPole-v1", 2, 1, stop_on="never", subprocess=False)
    for grouped in (TGRPO, DPO, TPO):
        grouped("MlpPolicy", groups, device="cpu").save(tmp_path / "grouped.zip")
        assert type(load_algorithm(tmp_path / "grouped.zip", "cpu")) is grouped
