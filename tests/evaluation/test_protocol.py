"""evaluate_policy: outcomes that depend on policy, initial state and seed alone; folders that go on; records."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from libero_reference import libero_env, random_actions
from stable_baselines3 import PPO
from stable_baselines3.common.utils import FloatSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from walking import WALKS, Walk, fake, make_policy

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.envs.groups.worker import WorkerPool
from sb3_tgrpo.envs.libero.env import SETTLE_ACTION, SETTLE_STEPS, LiberoEnv
from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts
from sb3_tgrpo.evaluation.adapters import sampled
from sb3_tgrpo.evaluation.evaluate import evaluate_policy
from sb3_tgrpo.evaluation.identity import fingerprint, policy_name
from sb3_tgrpo.evaluation.protocol import Execution, Protocol
from sb3_tgrpo.evaluation.results import EvalEpisode, Evaluation, read_episodes
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.rewards import load_reward

SAMPLED = Decoding(1.0)
HERE = Execution(subprocess=False)


@pytest.fixture(scope="module")
def policy() -> OpenVLAPolicy:
    return make_policy()


def walk(policy: Any, folder: Path | None = None, execution: Execution = HERE, **protocol: Any) -> Evaluation:
    settings = {"init_state_ids": [0], **protocol}
    return evaluate_policy(policy, {"walk": Walk}, Protocol(**settings), folder=folder, execution=execution)


# ---------------------------------------------------------------------- outcomes


@pytest.mark.parametrize("how", [{}, {"decoding": SAMPLED, "repetitions": 2}])
def test_outcomes_do_not_depend_on_the_environments_at_once(policy: OpenVLAPolicy, how: dict[str, Any]) -> None:
    protocol = Protocol(init_state_ids=range(5), **how)
    runs = [evaluate_policy(policy, WALKS, protocol, execution=replace(HERE, n_envs=n_envs)) for n_envs in (1, 2, 9)]
    assert runs[0].episodes == runs[1].episodes == runs[2].episodes
    episodes = runs[0].episodes
    assert len({episode.reward for episode in episodes}) > 4 and len({episode.success for episode in episodes}) == 2
    assert [episode.task for episode in episodes] == sorted(episode.task for episode in episodes)
    assert episodes[0].reward != episodes[-1].reward and episodes[0].init_state_id == 0
    assert all(e.max_stage == e.length // 2 and e.n_stages == 4 and e.progress == e.length / 8 for e in episodes)
    if how:
        assert len({episode.reward for episode in episodes[:2]}) == 2  # two samples from one initial state


def test_equals_a_plain_loop(policy: OpenVLAPolicy) -> None:
    evaluation = walk(policy, seeds=[7, 3])
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
    assert walk(wrapped, init_state_ids=range(3)).episodes == walk(policy, init_state_ids=range(3)).episodes


def test_sampling_follows_from_the_seed_and_leaves_torch_alone(policy: OpenVLAPolicy) -> None:
    state = th.get_rng_state()
    first, again, other = (walk(policy, seed=seed, init_state_ids=[0, 1], decoding=sampled(policy)) for seed in (1, 1, 2))
    assert first.episodes == again.episodes != other.episodes
    cold = walk(policy, init_state_ids=[0, 1], decoding=Decoding(0.01))
    assert [e.reward for e in cold.episodes] != [e.reward for e in first.episodes]
    assert cold.decoding.temperature == 0.01 and first.decoding.temperature == policy.temperature == 1.0
    assert th.equal(state, th.get_rng_state())


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_algorithms_of_stable_baselines3(temperature: float) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    protocol = Protocol(seeds=range(4), decoding=Decoding(temperature))
    runs = [evaluate_policy(model, "CartPole-v1", protocol, execution=Execution(n_envs=n_envs)) for n_envs in (1, 3)]
    assert runs[0].episodes == runs[1].episodes and runs[0].protocol["step_limits"] == {"CartPole-v1": 500}
    assert [e.reward for e in runs[0].episodes] == [e.length for e in runs[0].episodes]
    assert runs[0].policy == "PPO" and runs[0].assets is None


def test_a_process_that_dies_is_replaced_and_its_episode_played_again(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    plain = walk(policy, init_state_ids=range(2))
    kwargs = {"crash_file": str(tmp_path / "crashed")}
    crashing = walk(policy, init_state_ids=range(2), env_kwargs=kwargs, execution=Execution(n_envs=1))
    assert (tmp_path / "crashed").exists() and crashing.episodes == plain.episodes


def test_processes_are_kept_for_the_next_evaluation(policy: OpenVLAPolicy) -> None:
    def play(pool: WorkerPool, progress: Any = None, **protocol: Any) -> list[EvalEpisode]:
        execution = Execution(n_envs=2, subprocess=True, pool=pool, progress=progress)
        return walk(policy, init_state_ids=range(4), execution=execution, **protocol).episodes

    def running() -> set[int]:
        return {worker.process.popen.pid for worker in pool._idle}

    alone = [walk(policy, init_state_ids=range(4), decoding=decoding).episodes for decoding in (Decoding(), SAMPLED)]
    with WorkerPool() as pool:
        assert play(pool) == alone[0]
        first = running()
        assert len(first) == 2 and play(pool, decoding=SAMPLED) == alone[1] and running() == first
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

    def films(folder: Path, videos: Any) -> tuple[Evaluation, dict[str, Path]]:
        protocol = Protocol(init_state_ids=range(5))
        played = evaluate_policy(policy, {"walk-0": Walk}, protocol, folder=folder, execution=replace(HERE, videos=videos))
        return played, {path.name: path for path in folder.glob("videos/*")}

    evaluation, found = films(tmp_path / "failures", "failures")
    failures = [episode for episode in evaluation.episodes if not episode.success]
    assert 0 < len(failures) < 5
    assert set(found) == {f"walk-0-start{episode.init_state_id:02d}-failure.mp4" for episode in failures}
    film = found[f"walk-0-start{failures[0].init_state_id:02d}-failure.mp4"]
    assert sum(1 for _ in imageio.get_reader(film)) == failures[0].length + 1
    assert len([name for name in films(tmp_path / "two", 2)[1] if name.startswith("walk-0-start0")]) == 2


class Odd(Walk):
    """Reports an outcome that is not a number."""

    def step(self, action: np.ndarray):
        observation, reward, _, truncated, info = super().step(action)
        return observation, reward, False, truncated, {**info, "is_success": float("nan")}


class Named(Walk):
    """Reports its outcome under a name of its own."""

    def step(self, action: np.ndarray):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {"success": info["is_success"]}


def test_an_outcome_that_is_not_a_number_is_no_success(policy: OpenVLAPolicy) -> None:
    assert evaluate_policy(policy, {"odd": Odd}, Protocol(range(2)), execution=HERE).success_rate == 0.0


def test_an_environment_that_reports_success_is_told_about_is_success(policy: OpenVLAPolicy) -> None:
    with pytest.warns(UserWarning, match=r"info\['success'\].*is_success.*count as failures"):
        evaluate_policy(policy, {"named": Named}, Protocol(range(2)), execution=HERE)


# ---------------------------------------------------------------------- LIBERO


def libero_policy(**kwargs: Any) -> tuple[OpenVLAPolicy, dict[str, Any]]:
    made = {"assets": "light", "image_size": 64, "max_episode_steps": 6, **kwargs}
    env = gym.make("LIBERO/libero_object-9-v0", **made)
    return make_policy(env.observation_space), made  # type: ignore[arg-type]


def test_libero_protocol_and_noise() -> None:
    policy, env_kwargs = libero_policy()
    evaluation = evaluate_policy(policy, "LIBERO/libero_object-9-v0", Protocol([0, 49], env_kwargs=env_kwargs), execution=HERE)
    assert [(e.task, e.init_state_id, e.seed, e.length) for e in evaluation.episodes] == [
        ("libero_object-9", 0, 0, 6),
        ("libero_object-9", 49, 0, 6),
    ]
    assert evaluation.assets == "light" and evaluation.protocol["versions"]["mujoco"] == "3.3.2"
    # Noise on a stored initial state: the same for the same seed, another for another, none of the arm's.
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
    """Seeded once, reset before each stored state: fixtures stand elsewhere in each episode, as in OpenVLA's evaluation."""
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


@pytest.mark.parametrize(
    ("protocol", "options"),
    [
        (Protocol(range(2), official_order=True, seed=7), [{"init_state_id": k, "earlier_resets": k} for k in range(2)]),
        (Protocol([4], start_noise=0.02, seed=7), [{"init_state_id": 4, "start_noise": 0.02, "noise_seed": 7}]),
    ],
)
def test_reset_options(protocol: Protocol, options: list[dict[str, Any]]) -> None:
    requests = list(protocol.requests(["walk"]).values())
    assert [request.options for request in requests] == options and {request.seed for request in requests} == {0}


# ---------------------------------------------------------------------- folders


SCRIPT = """
    import sys, time
    sys.path.insert(0, {tests!r})
    from walking import Walk, make_policy
    from sb3_tgrpo.decoding import Decoding
    from sb3_tgrpo.evaluation import Execution, Protocol, evaluate_policy

    def slow(episode, done, total):
        print(done, flush=True)
        time.sleep(0.2 if done < 3 else 60)

    evaluate_policy(make_policy(), {{"walk": Walk}}, Protocol(range(8), decoding=Decoding(1.0)), folder={folder!r},
                    execution=Execution(subprocess=False, progress=slow))
"""


def test_killed_evaluation_goes_on_to_the_same_result(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    how: dict[str, Any] = {"init_state_ids": range(8), "decoding": SAMPLED}
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
    execution = replace(HERE, progress=lambda e, n, _: played.append(n))
    with pytest.warns(UserWarning, match="1 of 4 lines can't be read. Their episodes are played again"):
        resumed = walk(policy, folder, execution, **how)
    assert played == [4, 5, 6, 7, 8]
    assert resumed.episodes == walk(policy, **how).episodes
    assert Evaluation.load(folder / "evaluation.json") == resumed
    assert walk(policy, folder, **how) == resumed and len(played) == 5  # nothing is played again


@pytest.mark.parametrize("damage", [b"\xff\xfe\x00", b'{"task": "walk"}', b"[1]", b'{"task": "walk", "speed": 3}'])
def test_what_cannot_be_read_counts_as_not_played(policy: OpenVLAPolicy, tmp_path: Path, damage: bytes) -> None:
    plain = walk(policy, tmp_path, replace(HERE, n_envs=1), init_state_ids=range(3))
    lines = (tmp_path / "episodes.jsonl").read_bytes().splitlines()
    (tmp_path / "episodes.jsonl").write_bytes(b"\n".join([lines[0], damage, lines[2]]) + b"\n")
    (tmp_path / "evaluation.json").write_bytes(damage)
    played: list[EvalEpisode] = []
    execution = replace(HERE, progress=lambda episode, *_: played.append(episode))
    with pytest.warns(UserWarning) as warned:
        again = walk(policy, tmp_path, execution, init_state_ids=range(3))
    assert again == plain and [episode.init_state_id for episode in played] == [1]
    texts = " ".join(str(warning.message) for warning in warned)
    assert "evaluation.json can't be read" in texts and "1 of 3 lines can't be read" in texts
    assert read_episodes(tmp_path / "episodes.jsonl") and Evaluation.load(tmp_path / "evaluation.json") == plain


def test_results_without_their_settings_are_refused(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    walk(policy, tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ValueError, match=r"settings.json, which records its settings, is missing"):
        walk(policy, tmp_path, init_state_ids=[1])


def test_a_folder_that_is_removed_on_the_way_is_an_error(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    """Else the later episodes would look like all of them."""
    execution = replace(HERE, n_envs=1, progress=lambda *_: shutil.rmtree(tmp_path / "gone", ignore_errors=True))
    with pytest.raises(OSError, match="was removed while its evaluation ran"):
        walk(policy, tmp_path / "gone", execution, init_state_ids=range(3))
    assert not (tmp_path / "gone/episodes.jsonl").exists()


def test_a_folder_is_of_one_protocol(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    walk(policy, tmp_path)
    with pytest.raises(ValueError, match=r"protocol.init_state_ids was \[0\], is \[1\]"):
        walk(policy, tmp_path, init_state_ids=[1])
    with pytest.raises(ValueError, match=r"protocol.decoding.temperature was 0.0, is 0.5"):
        walk(policy, tmp_path, decoding=Decoding(0.5))
    with pytest.raises(ValueError, match=r"envs.walk was 'Walk'.*envs.other was 'not set'"):
        evaluate_policy(policy, {"other": Walk}, Protocol([0]), folder=tmp_path, execution=HERE)


def test_the_reward_program_is_part_of_what_a_folder_is_of(policy: OpenVLAPolicy) -> None:
    """Stages reached under one reward are not stages reached under another."""
    program = load_reward("libero_object-9")
    with_reward = Protocol(env_kwargs={"reward": program}).record(["walk"])
    assert with_reward["env_kwargs"] == {"reward": program.sha256}


def test_envs_with_arguments_are_part_of_what_a_folder_is_of(policy: OpenVLAPolicy, tmp_path: Path) -> None:
    evaluate_policy(policy, {"walk": partial(Walk, render_mode=None)}, Protocol([0]), folder=tmp_path, execution=HERE)
    with pytest.raises(ValueError, match=r"envs\.walk\.render_mode was None, is 'rgb_array'"):
        made = {"walk": partial(Walk, render_mode="rgb_array")}
        evaluate_policy(policy, made, Protocol([0]), folder=tmp_path, execution=HERE)


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_folder_is_of_one_policy_in_every_number(policy: OpenVLAPolicy, tmp_path: Path, place: int) -> None:
    walk(policy, tmp_path)
    other = make_policy()
    with th.no_grad():
        other.model.language_model.lm_head.weight.flatten()[place] += 1e-3
    with pytest.raises(ValueError, match=r"policy\.fingerprint"):
        walk(other, tmp_path)


def test_a_folder_is_of_one_way_to_act(tmp_path: Path) -> None:
    policy = make_policy()
    walk(policy, tmp_path / "greedy")
    policy.temperature = 0.1
    walk(policy, tmp_path / "greedy")
    (key,) = policy.model.norm_stats
    wider = {name: [2.0 * value for value in values] for name, values in policy.model.norm_stats[key]["action"].items()}
    for change, value, message in (
        ("gripper", "raw", "policy.gripper"),
        ("instruction", "wait", "policy.instruction was None, is 'wait'"),
        (
            "statistics",
            {key: {"action": {**wider, "mask": policy.model.norm_stats[key]["action"]["mask"]}}},
            "policy.statistics",
        ),
        ("statistics", {"other": policy.model.norm_stats[key]}, r"policy.unnorm_key was .*, is 'other'"),
    ):
        other = make_policy()
        if change == "statistics":
            other.set_statistics(value)
        else:
            setattr(other, change, value)
        with pytest.raises(ValueError, match=message):
            walk(other, tmp_path / "greedy")


def test_observations_normalised_in_another_way_are_another_evaluation(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: gym.make("CartPole-v1")]))
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0)
    how: dict[str, Any] = {"folder": tmp_path, "execution": replace(HERE, videos="none")}
    evaluate_policy(model, "CartPole-v1", Protocol(seeds=[0]), **how)
    evaluate_policy(model, "CartPole-v1", Protocol(seeds=[0]), **how)
    env.obs_rms.mean += 1.0
    with pytest.raises(ValueError, match=r"policy\.normaliser"):
        evaluate_policy(model, "CartPole-v1", Protocol(seeds=[0]), **how)


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


def test_an_adapter_is_part_of_the_name(tmp_path: Path) -> None:
    spaces_of = Walk.observation_space, Walk.action_space, FloatSchedule(0.0)
    base = OpenVLAPolicy(*spaces_of, checkpoint="tiny")
    adapter = str(base.export_adapter(tmp_path / "A"))
    assert policy_name(base) == "tiny"
    assert policy_name(OpenVLAPolicy(*spaces_of, checkpoint="tiny", adapter=adapter)) == f"tiny + {adapter}"


def test_assets_are_part_of_what_a_folder_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """Full ones may turn up while an evaluation is interrupted, and auto would then go on with these."""
    found = []
    for kind in ("light", "full"):
        monkeypatch.setattr("sb3_tgrpo.envs.libero.assets.resolve_assets", lambda _, kind=kind: SimpleNamespace(kind=kind))
        for kwargs in ({}, {"assets": "auto"}, {"assets": "light"}):
            found.append(Protocol(env_kwargs=kwargs).record(["libero_object-3"])["env_kwargs"]["assets"])
    assert found == ["light", "light", "light", "full", "full", "light"]
    assert Protocol().record(["walk"])["env_kwargs"] == {}


# ---------------------------------------------------------------------- records


def test_rates_and_files(tmp_path: Path) -> None:
    evaluation = fake([1, 0, 1, 1])
    evaluation.episodes += fake([0, 0], task="libero_object-4").episodes + fake([1, 1], task="libero_goal-0").episodes
    evaluation.env_ids += ["LIBERO/libero_object-4-v0", "LIBERO/libero_goal-0-v0"]
    assert evaluation.success_rate == 5 / 8
    assert {name: rate.rate for name, rate in evaluation.per_task().items()} == {
        "libero_object-3": 0.75,
        "libero_object-4": 0.0,
        "libero_goal-0": 1.0,
    }
    assert evaluation.per_suite()["libero_object"].rate == 0.5 and "libero_object    3/6 = 50% [19%, 81%]" in str(evaluation)
    evaluation.save(tmp_path / "evaluation.json")
    assert Evaluation.load(tmp_path / "evaluation.json") == evaluation
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert content["rates"]["libero_object"]["rate"] == 0.5
    (tmp_path / "other.json").write_text('{"policy": 1}')
    with pytest.raises(ValueError, match=r"other.json can't be read as an evaluation"):
        Evaluation.load(tmp_path / "other.json")


@pytest.mark.parametrize(
    ("older", "decoding"),
    [
        ({"deterministic": True, "temperature": None}, Decoding()),
        ({"deterministic": False, "temperature": 0.7}, Decoding(0.7)),
        ({"deterministic": False, "temperature": None}, Decoding(1.0)),
    ],
)
def test_records_of_the_version_before_are_read(older: dict[str, Any], decoding: Decoding) -> None:
    content = fake([1, 0]).to_dict()
    del content["decoding"]
    assert Evaluation.from_dict(content | older) == replace(fake([1, 0]), decoding=decoding)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_state_ids": []}, r"init_state_ids=\[\] must be one or more different"),
        ({"seeds": [1, 1]}, r"seeds=\[1, 1\] must be one or more different"),
        ({"init_state_ids": [-1]}, r"init_state_ids=\[-1\]"),
        ({"repetitions": 0}, "repetitions=0"),
        ({"repetitions": 2}, "repetitions=2 would count one greedy episode several times"),
        ({"start_noise": -0.1}, "start_noise=-0.1"),
        ({"start_noise": float("nan")}, "start_noise=nan"),
        ({"official_order": True, "init_state_ids": [1, 0]}, "official_order"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_protocols_that_cannot_be(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Protocol(**arguments)


def test_executions_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="videos='some' must be"):
        Execution(videos="some")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="n_envs=0"):
        Execution(n_envs=0)


def test_policies_made_for_something_else(policy: OpenVLAPolicy) -> None:
    with pytest.raises(ValueError, match="observations are"):
        evaluate_policy(policy, "LIBERO/libero_object-9-v0", Protocol(env_kwargs={"assets": "light", "image_size": 128}))
    with pytest.raises(ValueError, match="envs is empty"):
        evaluate_policy(policy, [])
    with pytest.raises(TypeError, match="must be Gymnasium ids, or functions by task name"):
        evaluate_policy(policy, Walk())  # type: ignore[arg-type]
    made_for_full, env_kwargs = libero_policy()
    made_for_full.observation_space["instruction"].assets = "full"  # type: ignore[index]
    light = gym.make("LIBERO/libero_object-9-v0", **env_kwargs)
    light.observation_space["instruction"].assets_by_name = False  # type: ignore[index]
    with pytest.raises(ValueError, match="light assets, but the policy that would play walk was trained with LIBERO's own"):
        evaluate_policy(made_for_full, {"walk": lambda: light}, execution=HERE)
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(ValueError, match=r"temperature=0.5 can't be set for ActorCriticPolicy: use 0 or 1"):
        evaluate_policy(model, "CartPole-v1", Protocol(seeds=[0], decoding=Decoding(0.5)))
