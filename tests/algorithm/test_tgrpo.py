"""The algorithm: it learns, is deterministic, saves and resumes, and fits SB3's callbacks, logs and wrappers."""

import copy
import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage
from torch import nn
from toy_envs import IdentityEnv, OnceCrashingEnv, ScriptEnv, SignalEnv

from sb3_tgrpo import TGRPO, GroupedRolloutBuffer
from sb3_tgrpo.advantages import tgrpo_advantages
from sb3_tgrpo.envs import GroupVecEnv, GroupVecNormalize, SyncGroupVectorEnv, make_group_env
from sb3_tgrpo.policies import ActorPolicy
from sb3_tgrpo.progress_bar import ValidStepsProgressBar
from sb3_tgrpo.train.callbacks import MetricsCallback
from sb3_tgrpo.train.signal import Group, default_variants

FAST: dict[str, Any] = {"learning_rate": 1e-2, "seed": 0, "device": "cpu", "kl_coef": 0.0}


def identity(kind: str = "discrete", group_size: int = 4, n_groups: int = 1, **kwargs: Any) -> GroupVecEnv:
    return make_group_env(partial(IdentityEnv, kind), group_size, n_groups, subprocess=False, env_kwargs=kwargs)


def parameters(model: TGRPO) -> th.Tensor:
    return th.cat([p.detach().flatten() for p in model.policy.actor.parameters()]).clone()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- learning


@pytest.mark.parametrize(
    ("kind", "policy", "threshold"),
    [
        ("discrete", "MlpPolicy", 19.0),
        ("multidiscrete", "MlpPolicy", 18.0),
        ("multibinary", "MlpPolicy", 19.0),
        ("box", "MlpPolicy", -6.0),
        ("dict", "MultiInputPolicy", 19.0),
        ("image", "CnnPolicy", 19.0),
    ],
)
def test_identity(kind: str, policy: str, threshold: float) -> None:
    """Chance gives 6.7 of 20 (discrete), 10 (multibinary) or -12 and worse (box)."""
    rates = {"dict": 1e-3, "image": 3e-4}  # at 1e-3 two of twenty seeds of the CNN miss one of the images for good
    settings = FAST | {"learning_rate": rates.get(kind, FAST["learning_rate"])}
    model = TGRPO(policy, identity(kind, 8), alpha_step=1.0, alpha_traj=0.0, n_epochs=4, batch_size=64, **settings)
    model.learn(12_000 if kind in ("box", "multidiscrete") else 6_000)
    reward, _ = evaluate_policy(model, Monitor(IdentityEnv(kind)), 10, warn=False)
    assert reward > threshold


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.thorough) for seed in (1, 2))])
def test_cartpole(seed: int) -> None:
    """450 mean reward within 150k valid steps; the reward is the same at every step, so the trajectory level does it alone."""
    env = make_group_env("CartPole-v1", group_size=8, n_groups=4, stop_on="never")
    model = TGRPO("MlpPolicy", env, learning_rate=1e-3, n_epochs=10, batch_size=256, kl_coef=0.0, seed=seed, device="cpu")
    model.learn(130_000)
    assert model.num_timesteps <= 150_000
    evaluation = Monitor(gym.make("CartPole-v1"))
    evaluation.reset(seed=1000)
    reward, _ = evaluate_policy(model, evaluation, 20)
    assert reward > 450


# ---------------------------------------------------------------------- determinism, saving, resuming


def test_two_seeded_runs_are_equal() -> None:
    def run(seed: int) -> th.Tensor:
        return parameters(
            TGRPO("MlpPolicy", identity("box", 4, 2), batch_size=30, n_epochs=2, **FAST | {"seed": seed}).learn(400)
        )

    assert th.equal(run(3), run(3))
    assert not th.equal(run(3), run(4))


@pytest.mark.parametrize("shape", [(2, 3), (1, 3), (1, 1), ()])
def test_the_shape_of_a_box_does_not_change_a_run(shape: tuple[int, ...]) -> None:
    class Still(ScriptEnv):
        def __init__(self, shape: tuple[int, ...]) -> None:
            super().__init__(limit=5)
            self.action_space = spaces.Box(-1.0, 1.0, shape)  # type: ignore[assignment]

        def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            obs, _, *rest = super().step(0)
            return obs, -float(np.square(action).sum()), *rest  # type: ignore[return-value]

    def run(shape: tuple[int, ...]) -> th.Tensor:
        env = make_group_env(partial(Still, shape), 4, subprocess=False)
        return parameters(TGRPO("MlpPolicy", env, **FAST | {"kl_coef": 0.1}).learn(60))

    assert th.equal(run(shape), run((math.prod(shape),)))


def test_processes_do_not_change_a_run() -> None:
    def run(subprocess: bool) -> th.Tensor:
        env = make_group_env(partial(IdentityEnv, "box"), 2, 2, subprocess=subprocess)
        return parameters(TGRPO("MlpPolicy", env, **FAST).learn(160))

    assert th.equal(run(True), run(False))


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_resume_is_exact(tmp_path: Path, kl_coef: float) -> None:
    settings = FAST | {"kl_coef": kl_coef, "batch_size": 30, "n_epochs": 2}
    straight = TGRPO("MlpPolicy", identity("box", 4, 2), **settings).learn(480)
    first = TGRPO("MlpPolicy", identity("box", 4, 2), **settings).learn(320)
    first.save(tmp_path / "half.zip")
    th.manual_seed(99)  # whatever happens in between
    np.random.seed(99)
    resumed = TGRPO.load(tmp_path / "half.zip", env=identity("box", 4, 2), device="cpu")
    assert resumed.num_timesteps == 320
    resumed.learn(160, reset_num_timesteps=False)
    assert resumed.num_timesteps == straight.num_timesteps == 480
    assert th.equal(parameters(straight), parameters(resumed))


def test_saving_a_loaded_model_keeps_where_it_goes_on(tmp_path: Path) -> None:
    straight = TGRPO("MlpPolicy", identity("box"), **FAST).learn(80).learn(80, reset_num_timesteps=False)
    TGRPO("MlpPolicy", identity("box"), **FAST).learn(80).save(tmp_path / "a")
    TGRPO.load(tmp_path / "a", device="cpu").save(tmp_path / "b")
    loaded = TGRPO.load(tmp_path / "b", env=identity("box"), device="cpu")
    loaded.save(tmp_path / "c")
    for model in (loaded, TGRPO.load(tmp_path / "c", env=identity("box"), device="cpu")):
        assert th.equal(parameters(model.learn(80, reset_num_timesteps=False)), parameters(straight))


def test_a_model_saved_before_it_learned_learns_the_same(tmp_path: Path) -> None:
    model = TGRPO("MlpPolicy", identity("box"), **FAST)
    model.save(tmp_path / "new")
    learned = parameters(model.learn(160))
    loaded = TGRPO.load(tmp_path / "new", env=identity("box"), device="cpu")
    loaded.save(tmp_path / "again")
    for other in (loaded, TGRPO.load(tmp_path / "again", env=identity("box"), device="cpu")):
        assert th.equal(parameters(other.learn(160)), learned)
        assert other.env.start_state() == model.env.start_state()  # type: ignore[union-attr]


def test_another_seed_at_loading_gives_another_run(tmp_path: Path) -> None:
    TGRPO("MlpPolicy", identity("box"), batch_size=30, **FAST).learn(80).save(tmp_path / "model")

    def run(set_seed: int | None = None, **kwargs: Any) -> th.Tensor:
        th.manual_seed(99)
        model = TGRPO.load(tmp_path / "model", env=identity("box"), device="cpu", **kwargs)
        model.set_random_seed(set_seed)
        model.save(tmp_path / "loaded")
        learned = parameters(model.learn(160))
        again = TGRPO.load(tmp_path / "loaded", env=identity("box"), device="cpu")
        assert th.equal(parameters(again.learn(160)), learned)  # saving it does not bring the old sequence back
        return learned

    resumed = run()
    different = [run(seed=1), run(seed=2), run(set_seed=1), run(set_seed=2)]
    for i, other in enumerate(different):
        assert not any(th.equal(other, earlier) for earlier in (resumed, *different[:i]))
    assert th.equal(resumed, run(seed=0)) and th.equal(different[0], run(seed=1)) and th.equal(different[2], run(set_seed=1))


def test_a_seed_is_also_of_the_order_of_minibatches() -> None:
    model = TGRPO("MlpPolicy", identity("box"), **FAST).learn(80)
    model.set_random_seed(3)
    assert model._generator.random() == np.random.default_rng(3).random()


def test_a_zip_that_does_not_tell_its_seed_goes_on(tmp_path: Path) -> None:
    straight = TGRPO("MlpPolicy", identity("box"), **FAST).learn(80).learn(80, reset_num_timesteps=False)
    model = TGRPO("MlpPolicy", identity("box"), **FAST).learn(80)
    model._resume_state = {name: value for name, value in model._state().items() if name != "seed"}
    model.save(tmp_path / "old")
    loaded = TGRPO.load(tmp_path / "old", env=identity("box"), device="cpu", seed=5)
    assert th.equal(parameters(loaded.learn(80, reset_num_timesteps=False)), parameters(straight))


@pytest.mark.parametrize("alternate", [False, True])
def test_resume_is_exact_where_members_were_held(tmp_path: Path, alternate: bool) -> None:
    def groups() -> GroupVecEnv:
        script = {a: "terminated" for a in range(20)}
        return make_group_env(
            partial(ScriptEnv, script, limit=10), 4, 3, stop_on="never", subprocess=False, alternate=alternate
        )

    straight = TGRPO("MlpPolicy", groups(), **FAST)
    straight.learn(1).learn(1, reset_num_timesteps=False).learn(1, reset_num_timesteps=False)
    TGRPO("MlpPolicy", groups(), **FAST).learn(1).save(tmp_path / "first.zip")
    resumed = TGRPO.load(tmp_path / "first.zip", env=groups(), device="cpu")
    resumed.learn(1, reset_num_timesteps=False).learn(1, reset_num_timesteps=False)
    assert not straight.rollout_buffer.mask.all()
    assert th.equal(parameters(straight), parameters(resumed))
    # Seeds of starts are so large that they all look alike to the network: what it has learned does not tell them apart
    assert straight.env.start_state() == resumed.env.start_state()  # type: ignore[union-attr]


def test_saving_does_not_disturb_a_run(tmp_path: Path) -> None:
    straight = parameters(TGRPO("MlpPolicy", identity("box"), **FAST).learn(80).learn(80, reset_num_timesteps=False))
    saved = TGRPO("MlpPolicy", identity("box"), **FAST).learn(80)
    saved.save(tmp_path / "model")
    assert th.equal(parameters(saved.learn(80, reset_num_timesteps=False)), straight)


def test_save_load(tmp_path: Path) -> None:
    env = identity("box", 2)
    model = TGRPO("MlpPolicy", env, temperature=0.5, n_epochs=2, clip_range=0.3, **FAST | {"kl_coef": 0.1}).learn(80)
    model.save(tmp_path / "model")
    obs = env.reset()
    for loaded in (TGRPO.load(tmp_path / "model", device="cpu"), TGRPO.load(tmp_path / "model", env=env, device="cpu")):
        np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
        assert loaded.group_size == 2 and loaded.n_epochs == 2 and loaded.policy.temperature == 0.5
        assert loaded.clip_range(1.0) == 0.3  # type: ignore[operator]
        reference = loaded.policy.reference  # type: ignore[attr-defined]
        saved = model.policy.reference  # type: ignore[attr-defined]
        assert all(th.equal(a, b) for a, b in zip(reference.parameters(), saved.parameters(), strict=True))
    loaded.learn(80, reset_num_timesteps=False)
    # The policy alone
    model.policy.save(tmp_path / "policy.pth")  # type: ignore[attr-defined]
    policy = ActorPolicy.load(tmp_path / "policy.pth", device="cpu")
    np.testing.assert_array_equal(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    with pytest.raises(RuntimeError, match="Missing key"):
        model.set_parameters({"policy": {}}, exact_match=True)


def test_parameters_from_before_the_reference_leave_it() -> None:
    model = TGRPO("MlpPolicy", identity(), **FAST | {"kl_coef": 0.1})
    new = copy.deepcopy(model.get_parameters())
    start = parameters(model)
    model.learn(160)
    reference = model.policy.reference  # type: ignore[attr-defined]
    assert not th.equal(parameters(model), start)
    model.set_parameters(new)
    assert th.equal(parameters(model), start) and model.policy.reference is reference  # type: ignore[attr-defined]
    assert th.equal(th.cat([p.flatten() for p in reference.parameters()]), start)


class Raise(BaseCallback):
    """Raises an exception once, in a callback's step where ``when`` is true."""

    def __init__(self, when: Callable[["Raise"], bool], error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__()
        self.when, self.error, self.raised = when, error, False

    def _on_step(self) -> bool:
        if not self.raised and self.when(self):
            self.raised = True
            raise self.error
        return True


def test_interrupt_saves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorboard")

    def interrupt() -> Raise:
        return Raise(lambda callback: callback.num_timesteps >= 100)

    model = TGRPO("MlpPolicy", identity(), tensorboard_log=str(tmp_path), **FAST)
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, callback=interrupt())
    (saved,) = tmp_path.glob("tgrpo_interrupted_*.zip")
    assert f"TGRPO.load('{saved}', env=env)" in capsys.readouterr().out
    resumed = TGRPO.load(saved, env=identity())
    assert resumed.num_timesteps == 80  # the unfinished rollout has changed nothing
    resumed.learn(160, reset_num_timesteps=False)
    model.learn(160, reset_num_timesteps=False)  # the interrupted one can go on as well: its rollout is begun anew
    saved.unlink()
    model.saves_on_interrupt = False
    with pytest.raises(KeyboardInterrupt):
        model.learn(1000, callback=interrupt())
    assert not list(tmp_path.glob("*.zip"))
    model.save(tmp_path / "model.zip")
    assert TGRPO.load(tmp_path / "model.zip").saves_on_interrupt


def test_a_second_interrupt_while_saving_destroys_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TGRPO("MlpPolicy", identity(), **FAST).learn(80)
    model.save(tmp_path / "model.zip")

    def impatient(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(th, "save", impatient)
        model.save(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]
    assert TGRPO.load(tmp_path / "model").num_timesteps == 80


def test_what_is_saved_in_mid_rollout_goes_on_from_its_beginning(tmp_path: Path) -> None:
    """Steps that no update used are not counted, and their starts are played again: the run ends as if never interrupted."""

    def new(**kwargs: Any) -> TGRPO:
        return TGRPO("MlpPolicy", identity("box", 2, length=5), groups_per_update=6, **FAST)

    straight = new().learn(180)
    stopped = new()
    with pytest.raises(RuntimeError):
        stopped.learn(
            180,
            callback=[CheckpointCallback(1, str(tmp_path), "saved"), Raise(lambda c: c.num_timesteps >= 104, RuntimeError)],
        )
    resumed = TGRPO.load(tmp_path / "saved_100_steps.zip", env=identity("box", 2, length=5), device="cpu")
    assert resumed.num_timesteps == 60
    resumed.learn(120, reset_num_timesteps=False)
    assert resumed.num_timesteps == straight.num_timesteps == 180
    assert th.equal(parameters(resumed), parameters(straight))
    assert list(resumed.ep_info_buffer)[-1]["r"] == list(straight.ep_info_buffer)[-1]["r"]  # type: ignore[arg-type]
    assert len(resumed.ep_info_buffer) == len(straight.ep_info_buffer) == 36  # type: ignore[arg-type]


def test_a_rollout_counts_as_used_once_its_update_has_begun(tmp_path: Path) -> None:
    class SaveAtTheEnd(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.model.save(tmp_path / "end")

    model = TGRPO("MlpPolicy", identity(), **FAST).learn(80, callback=SaveAtTheEnd())
    model.save(tmp_path / "model")
    assert TGRPO.load(tmp_path / "end").num_timesteps == 0 and TGRPO.load(tmp_path / "model").num_timesteps == 80


class Transitions(BaseCallback):
    """Observations, rewards and starts must follow from what was done: ScriptEnv's are [start, step, sum of actions]."""

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        lengths = buffer.mask.sum(axis=0)
        for group, member in np.ndindex(lengths.shape):
            rows = [np.ravel_multi_index((t, group, member), buffer.mask.shape) for t in range(lengths[group, member])]
            (samples,) = buffer.samples(np.array(rows))
            start, count, total = samples.observations.numpy().T
            assert (start == start[0]).all() and count.tolist() == list(range(len(rows)))
            assert total.tolist() == [0, *np.cumsum(samples.actions.numpy().ravel())[:-1]]

    def _on_step(self) -> bool:
        return True


def scripted(n_groups: int = 2, **kwargs: Any) -> GroupVecEnv:
    script = {a: "terminated" for a in range(20)}
    return make_group_env(partial(ScriptEnv, script, limit=12), 4, n_groups, stop_on="never", subprocess=False, **kwargs)


def last_step(callback: BaseCallback) -> bool:
    return callback.locals["dones"].any() and not callback.locals["to_sample"].any()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("when", [last_step, lambda c: c.n_calls == 1, lambda c: c.n_calls == 3])
def test_learning_goes_on_after_any_exception(when: Callable[[BaseCallback], bool], error: type[BaseException]) -> None:
    model = TGRPO("MlpPolicy", scripted(), **FAST)
    model.saves_on_interrupt = False
    model.learn(100)
    with pytest.raises(error):
        model.learn(500, callback=Raise(when, error), reset_num_timesteps=False)
    assert not model.env.groups._paused.any()  # type: ignore[union-attr]
    model.learn(200, callback=Transitions(), reset_num_timesteps=False)


def test_learning_goes_on_after_an_exception_in_the_first_step_of_a_rollout() -> None:
    class Hiccup(ScriptEnv):
        armed = False

        def step(self, action: int) -> Any:
            if self.armed:
                self.armed = False
                raise RuntimeError("hiccup")
            return super().step(action)

    env = make_group_env(partial(Hiccup, limit=12), 4, stop_on="never", subprocess=False)
    model = TGRPO("MlpPolicy", env, **FAST).learn(48)
    env.groups._workers[2].env.armed = True  # type: ignore[attr-defined]  # members 0 and 1 have moved by then
    with pytest.raises(RuntimeError, match="hiccup"):
        model.learn(48, reset_num_timesteps=False)
    model.learn(48, callback=Transitions(), reset_num_timesteps=False)


def test_evaluation_on_the_training_environment() -> None:
    """In the middle of a rollout it is an error; between rollouts new groups begin."""
    model = TGRPO("MlpPolicy", scripted(), **FAST)
    with pytest.raises(ValueError, match="reset or stepped in the middle of a rollout"):
        model.learn(2000, callback=EvalCallback(model.env, eval_freq=3, n_eval_episodes=2, verbose=0))  # type: ignore[arg-type]

    class Plays(Transitions):
        def _on_rollout_start(self) -> None:
            evaluate_policy(self.model, self.training_env, n_eval_episodes=3, deterministic=False)
            self.training_env.step(np.full(8, 50))

        def _on_rollout_end(self) -> None:
            super()._on_rollout_end()
            evaluate_policy(self.model, self.training_env, n_eval_episodes=3, deterministic=False)

    model.learn(200, callback=Plays(), reset_num_timesteps=False)
    evaluate_policy(model, model.env, n_eval_episodes=3, deterministic=False)  # type: ignore[arg-type]
    model.learn(100, callback=Transitions(), reset_num_timesteps=False)


# ---------------------------------------------------------------------- the update


def test_first_ratio_is_one_and_kl_starts_at_zero() -> None:
    model = TGRPO("MlpPolicy", identity("box"), **FAST | {"kl_coef": 0.5})
    model.learn(80)
    assert model.logger.name_to_value == {}
    model.collect_rollouts(model.env, ConvertedCallback(model), model.rollout_buffer, 1)  # type: ignore[arg-type]
    model.policy.set_training_mode(True)  # type: ignore[attr-defined]
    (batch,) = model.rollout_buffer.minibatches(None, np.random.default_rng(0))
    result = model._accumulate_gradient(batch)
    assert result["ratio_error"] < 1e-6
    fresh = TGRPO("MlpPolicy", identity("box"), **FAST | {"kl_coef": 0.5})
    fresh._setup_learn(1)
    fresh.collect_rollouts(fresh.env, ConvertedCallback(fresh), fresh.rollout_buffer, 1)  # type: ignore[arg-type]
    (batch,) = fresh.rollout_buffer.minibatches(None, np.random.default_rng(0))
    assert abs(fresh._accumulate_gradient(batch)["kl_loss"]) < 1e-7


class ConvertedCallback(BaseCallback):
    def __init__(self, model: TGRPO) -> None:
        super().__init__()
        self.init_callback(model)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_recorded_log_prob_is_the_density_sampled_from(temperature: float) -> None:
    box, discrete = IdentityEnv("box"), IdentityEnv("discrete")
    policy = ActorPolicy(box.observation_space, box.action_space, lambda _: 1e-3, temperature=temperature, log_std_init=0.3)
    obs = th.as_tensor(np.tile(box.reset(seed=0)[0], (20_000, 1)))
    with th.no_grad():
        actions, log_prob = policy.sample_actions(obs)
    deviation = math.exp(0.3) * math.sqrt(temperature)
    assert actions.std(dim=0).tolist() == pytest.approx([deviation] * 2, rel=0.03)
    expected = th.distributions.Normal(actions.mean(dim=0), deviation).log_prob(actions).sum(dim=1)
    assert (log_prob.squeeze(1) - expected).abs().mean() < 0.05

    policy = ActorPolicy(discrete.observation_space, discrete.action_space, lambda _: 1e-3, temperature=temperature)
    policy.actor.action_net.weight.data *= 300.0  # far from uniform
    obs = th.as_tensor(np.tile(discrete.reset(seed=0)[0], (20_000, 1)))
    with th.no_grad():
        actions, log_prob = policy.sample_actions(obs)
    every = th.arange(3)
    with th.no_grad():
        scored, _ = policy.action_log_prob(obs[:3], every)
        policy.temperature = 1.0
        plain, _ = policy.action_log_prob(obs[:3], every)
    assert plain.std() > 0.1
    th.testing.assert_close(scored.squeeze(1), (plain.squeeze(1) / temperature).log_softmax(dim=0))
    for action in range(3):
        chosen = actions == action
        assert chosen.float().mean().item() == pytest.approx(log_prob[chosen][:1].exp().sum().item(), abs=0.015)


def test_micro_batches_do_not_change_the_update() -> None:
    results = []
    for micro_batch_size in (None, 7, 1):
        model = TGRPO("MlpPolicy", identity("box", 4, 2), micro_batch_size=micro_batch_size, **FAST | {"kl_coef": 0.1}).learn(
            160
        )
        results.append(parameters(model))
    for other in results[1:]:
        assert (results[0] - other).abs().max() < 2e-6


def test_eq_6_gradient_by_hand() -> None:
    """One group, one pass: the gradient is that of mean over members of mean over their steps of advantage * log_prob."""
    env = make_group_env(
        partial(ScriptEnv, {98: "terminated", 99: "terminated"}, limit=6), 4, stop_on="never", subprocess=False
    )
    model = TGRPO("MlpPolicy", env, **FAST)
    with th.no_grad():
        model.policy.actor.action_net.bias[98:] += 2.5  # type: ignore[attr-defined]  # members of different lengths
    model._setup_learn(1)
    model.collect_rollouts(model.env, ConvertedCallback(model), model.rollout_buffer, 1)  # type: ignore[arg-type]
    buffer = model.rollout_buffer
    lengths = buffer.mask.sum(axis=0)[0]
    assert len(set(lengths)) > 1
    (batch,) = buffer.minibatches(None, np.random.default_rng(0))
    model._accumulate_gradient(batch)
    gradient = [p.grad.clone() for p in model.policy.actor.parameters()]  # type: ignore[attr-defined, union-attr]
    model.policy.optimizer.zero_grad()
    objective = th.zeros(())
    for t, _, i in np.argwhere(buffer.mask):
        (samples,) = buffer.samples(np.array([np.ravel_multi_index((t, 0, i), buffer.mask.shape)]))
        log_prob, _ = model.policy.action_log_prob(samples.observations, samples.actions)
        objective = objective + buffer.advantages[t, 0, i] * log_prob.sum() / (4 * lengths[i])
    (-objective).backward()
    for ours, parameter in zip(gradient, model.policy.actor.parameters(), strict=True):  # type: ignore[attr-defined]
        th.testing.assert_close(ours, parameter.grad, rtol=1e-4, atol=1e-7)


def test_kl_holds_the_policy_near_its_start() -> None:
    def divergence(kl_coef: float) -> float:
        model = TGRPO("MlpPolicy", identity("box"), n_epochs=5, **FAST | {"kl_coef": kl_coef, "learning_rate": 3e-3})
        start = ActorPolicy(model.observation_space, model.action_space, lambda _: 0.0)
        start.load_state_dict(model.policy.state_dict())  # type: ignore[attr-defined]
        model.learn(2000)
        obs = th.rand(200, 2, generator=th.Generator().manual_seed(0)) * 2 - 1
        with th.no_grad():
            ours, theirs = (p._distribution(p.actor, obs).distribution for p in (model.policy, start))  # type: ignore[attr-defined]
        return th.distributions.kl_divergence(ours, theirs).sum(dim=-1).mean().item()

    assert divergence(1.0) < 0.2 * divergence(0.0)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(64), nn.Dropout(0.5)])
def test_the_reference_is_frozen_in_every_respect(layer: nn.Module) -> None:
    class Extractor(FlattenExtractor):
        def __init__(self, space: spaces.Space) -> None:
            super().__init__(space)
            self.layers = nn.Sequential(nn.Linear(self.features_dim, 64), copy.deepcopy(layer))
            self._features_dim = 64

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.layers(super().forward(observations))

    model = TGRPO("MlpPolicy", identity(), policy_kwargs={"features_extractor_class": Extractor}, **FAST | {"kl_coef": 0.1})
    obs, actions = th.eye(3), th.zeros(3)
    model._setup_learn(1)
    start = model.policy.reference_log_prob(obs, actions)
    before = copy.deepcopy(model.policy.reference.state_dict())  # type: ignore[attr-defined]
    model.learn(160)
    assert model.policy.training and not model.policy.reference.training  # type: ignore[attr-defined]
    assert th.equal(model.policy.reference_log_prob(obs, actions), start)
    after = model.policy.reference.state_dict()  # type: ignore[attr-defined]
    assert all(th.equal(value, after[name]) for name, value in before.items())


def test_the_reference_is_what_training_started_from_whatever_was_loaded_before(tmp_path: Path) -> None:
    trained = TGRPO("MlpPolicy", identity(), **FAST | {"kl_coef": 0.1}).learn(160)
    model = TGRPO("MlpPolicy", identity(), **FAST | {"kl_coef": 0.1, "seed": 1})
    model.set_parameters(trained.get_parameters())  # holds the reference of another training
    start = parameters(model)
    model.learn(80)
    assert th.equal(th.cat([p.flatten() for p in model.policy.reference.parameters()]), start)  # type: ignore[attr-defined]


def test_the_reference_scores_each_step_once() -> None:
    """However many epochs there are, and to the same end as asking it every time."""

    def run(forget: bool) -> tuple[th.Tensor, list[int], list[int]]:
        model = TGRPO("MlpPolicy", identity("box"), n_epochs=3, batch_size=30, micro_batch_size=20, **FAST | {"kl_coef": 1.0})
        score, train, scored, sizes = model.policy.reference_log_prob, model.train, [], []

        def counted(obs: Any, actions: th.Tensor) -> th.Tensor:
            scored.append(len(actions))
            return score(obs, actions)

        def noted() -> None:
            sizes.append(model.rollout_buffer.size())
            train()

        model.policy.reference_log_prob = counted  # type: ignore[method-assign, assignment]
        model.train = noted  # type: ignore[method-assign]
        if forget:
            model.rollout_buffer.keep_reference = lambda samples, ref_log_prob: None  # type: ignore[method-assign]
        return parameters(model.learn(200)), scored, sizes

    kept, scored, sizes = run(forget=False)
    asked, every_time, _ = run(forget=True)
    assert len(sizes) > 1 and sum(scored) == sum(sizes) and sum(every_time) == 3 * sum(sizes)
    assert th.allclose(kept, asked, atol=1e-5)


def test_target_kl_stops_the_update(tmp_path: Path) -> None:
    model = TGRPO("MlpPolicy", identity("box"), n_epochs=50, batch_size=20, target_kl=0.01, **FAST)
    steps, step = [], model._optimizer_step
    model._optimizer_step = lambda: steps.append(step()) or steps[-1]  # type: ignore[method-assign, func-returns-value]
    model.set_logger(configure(str(tmp_path), ["json"]))
    model.learn(80)
    assert 1 <= model._n_updates < 50
    logged = [json.loads(line) for line in (tmp_path / "progress.json").read_text().splitlines()]
    assert logged[-1]["train/early_stop"] == 1.0
    assert sum(row.get("train/optimizer_steps", 0) for row in logged) == len(steps) < 50 * 4


def test_ratio_levels_agree_where_an_action_is_one_token() -> None:
    runs = [parameters(TGRPO("MlpPolicy", identity(), ratio_level=level, **FAST).learn(80)) for level in ("action", "token")]  # type: ignore[arg-type]
    assert th.allclose(runs[0], runs[1], atol=1e-6)


def test_grpo_outcome() -> None:
    script = {1: "success", 2: "terminated"}
    env = make_group_env(partial(ScriptEnv, script, limit=5), 4, 2, stop_on="never", subprocess=False)
    model = TGRPO("MlpPolicy", env, alpha_step=0.0, alpha_traj=1.0, outcome_reward="success", **FAST)
    with th.no_grad():
        model.policy.actor.action_net.bias[1] += 3.5  # type: ignore[attr-defined]
    model.learn(40)
    buffer = model.rollout_buffer
    for group in range(2):
        reached = (buffer.rewards[:, group] == 1.0).any(axis=0)  # action 1 succeeds and pays 1
        values = {round(v, 6) for v in buffer.advantages[:, group][buffer.mask[:, group]]}
        n, k = 4, int(reached.sum())
        if 0 < k < n:
            spread = math.sqrt(k * (n - k) / n / (n - 1))
            assert values == {round((1 - k / n) / spread, 6), round(-k / n / spread, 6)}
        else:
            assert values == {0.0}


@pytest.mark.parametrize("compare_ended", [False, True])
def test_ended_members_in_the_step_level(compare_ended: bool, tmp_path: Path) -> None:
    """The setting reaches the rollout's advantages, also of a model that is loaded, and the measurement of the signal."""
    script = {a: "success" for a in range(0, 100, 9)}

    def make() -> VecEnv:
        return make_group_env(partial(ScriptEnv, script, limit=10), 4, 2, stop_on="never", subprocess=False)

    TGRPO("MlpPolicy", make(), alpha_step=0.5, compare_ended=compare_ended, seed=1).save(tmp_path / "model.zip")
    model = TGRPO.load(tmp_path / "model.zip", env=make())
    _, callback = model._setup_learn(1, None)
    model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, 1)  # type: ignore[arg-type]
    buffer = model.rollout_buffer
    expected, other = (
        tgrpo_advantages(buffer.rewards, 0.5, 0.7, buffer.mask, buffer.step_signal, compare_ended=value)
        for value in (compare_ended, not compare_ended)
    )
    np.testing.assert_allclose(buffer.advantages, expected)
    assert not np.allclose(expected, other)
    group = Group(buffer.rewards[:, 0], buffer.mask[:, 0], buffer.step_signal[:, 0], np.zeros(4), buffer.advantages[:, 0])
    variants = default_variants(model)
    np.testing.assert_allclose(variants["as trained"](group), expected[:, 0])
    step = tgrpo_advantages(group.rewards, 1.0, 0.0, group.mask, group.step_signal, compare_ended=compare_ended)
    np.testing.assert_allclose(variants["step only"](group), step)


@pytest.mark.parametrize("outcome", [False, True])
@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_groups_that_teach_the_trajectory_level_nothing_are_counted(gamma: float, outcome: bool) -> None:
    """A success pays the same whenever it comes: only a discount tells its members apart."""
    last = 2 if outcome else 1  # also the reward of success, which the outcome of 1 replaces
    env = make_group_env(partial(ScriptEnv, {last: "success"}, limit=60), 4, 4, stop_on="never", subprocess=False)
    settings: dict[str, Any] = {"outcome_reward": "success", "alpha_traj": 1.0} if outcome else {"alpha_traj": 0.7}
    model = TGRPO("MlpPolicy", env, alpha_step=0.0, gamma=gamma, **FAST, **settings)
    with th.no_grad():  # nearly no other actions
        model.policy.actor.action_net.bias[[0, last]] += 12.0  # type: ignore[attr-defined]
    model._setup_learn(1)
    model.collect_rollouts(model.env, ConvertedCallback(model), model.rollout_buffer, 1)  # type: ignore[arg-type]
    buffer = model.rollout_buffer
    lengths = buffer.mask.sum(axis=0)
    assert (buffer.returns == 1).all() and len(set(lengths.ravel())) > 1
    nothing = ~buffer.advantages.any(axis=(0, 2))
    assert model.logger.name_to_value["rollout/zero_std_groups"] == nothing.mean()
    assert nothing.all() == (gamma == 1.0)
    spread = (gamma ** (lengths - 1)).std(axis=-1, ddof=1)
    assert model.logger.name_to_value["rollout/group_rew_std"] == pytest.approx(spread.mean())


def test_step_signal_feeds_the_step_level() -> None:
    env = make_group_env(partial(SignalEnv, limit=3), 4, subprocess=False)
    model = TGRPO("MlpPolicy", env, **FAST).learn(12)
    buffer = model.rollout_buffer
    assert not buffer.rewards[:2].any() and buffer.step_signal[:2].any() and buffer.advantages[:2].any()


# ---------------------------------------------------------------------- SB3 around it


class Counter(BaseCallback):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def _on_training_start(self) -> None:
        self.events.append("training_start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout_start")

    def _on_step(self) -> bool:
        assert {"infos", "dones", "rewards", "new_obs", "n_steps", "actions"} <= set(self.locals)
        assert self.num_timesteps == self.model.num_timesteps
        return True

    def _on_rollout_end(self) -> None:
        assert self.locals["rollout_buffer"].advantages.shape[2] == 4
        self.events.append("rollout_end")

    def _on_training_end(self) -> None:
        self.events.append("training_end")


def test_callbacks(tmp_path: Path) -> None:
    counter = Counter()
    evaluation = EvalCallback(
        Monitor(IdentityEnv()),
        eval_freq=40,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        verbose=0,
        log_path=str(tmp_path),
    )
    checkpoint = CheckpointCallback(30, str(tmp_path))
    model = TGRPO("MlpPolicy", identity(), **FAST)
    model.learn(240, callback=[counter, evaluation, checkpoint], progress_bar=True)
    assert counter.events == ["training_start", *["rollout_start", "rollout_end"] * 3, "training_end"]
    assert len(evaluation.evaluations_results) == 1 and np.isfinite(evaluation.best_mean_reward)
    assert (tmp_path / "best_model.zip").exists()
    resumed = TGRPO.load(tmp_path / "rl_model_120_steps.zip", env=identity())  # saved in the middle of a rollout
    resumed.learn(160, reset_num_timesteps=False)


def test_callback_can_stop_and_learning_go_on() -> None:
    model = TGRPO("MlpPolicy", identity(), **FAST)
    model.learn(1000, callback=lambda local, _: local["n_steps"] < 5)
    assert model.num_timesteps == 20
    model.learn(80, reset_num_timesteps=False)
    assert model.num_timesteps == 100
    assert model.rollout_buffer.mask.shape == (20, 1, 4)


def test_log(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    model = TGRPO("MlpPolicy", identity("discrete", 4, 2), **FAST | {"kl_coef": 0.1})
    model.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    model.learn(480)
    lines = (tmp_path / "progress.csv").read_text().splitlines()
    assert len(lines) == 1 + 4  # three updates, and the last one's metrics
    rows = [dict(zip(lines[0].split(","), line.split(","), strict=True)) for line in lines[1:]]
    assert float(rows[-1]["train/n_updates"]) == 3.0
    assert float(rows[1]["rollout/valid_fraction"]) == 1.0
    for key in rows[1]:
        assert len(key.split("/")[-1]) < 34
        assert key == "" or rows[1][key] == "" or math.isfinite(float(rows[1][key]))
    documented = Path(__file__).parents[2].joinpath("docs/metrics.md").read_text()
    for key in rows[1]:
        assert f"`{key}`" in documented, f"{key} is not explained in docs/metrics.md"
    assert list(tmp_path.glob("events.out.tfevents*"))


def test_counts_valid_steps_only() -> None:
    env = make_group_env(
        partial(ScriptEnv, {a: "terminated" for a in range(50)}, limit=10), 4, stop_on="never", subprocess=False
    )
    model = TGRPO("MlpPolicy", env, **FAST).learn(1)
    assert model.num_timesteps == model.rollout_buffer.mask.sum() == model.rollout_buffer.size() < 40


def test_groups_per_update_and_pausing() -> None:
    env = make_group_env(
        partial(ScriptEnv, {a: "terminated" for a in range(20)}, limit=10), 2, 2, stop_on="termination", subprocess=False
    )
    model = TGRPO("MlpPolicy", env, groups_per_update=6, **FAST | {"seed": 1})  # the groups end at different times
    model.learn(1)
    assert model.rollout_buffer.mask.shape[1:] == (6, 2)
    assert env.active.all() and env.start_state()["n_starts"] == [3, 3]
    model.learn(1, reset_num_timesteps=False)
    # The next rollout goes on from where the groups wait, at their next starts: none is skipped
    assert env.start_state()["n_starts"] == [6, 6]
    # Each of the two groups played three episodes; their lengths are those of the episodes, not of the longest
    lengths = model.rollout_buffer.mask.any(axis=2).sum(axis=0)
    assert len(set(lengths)) > 1


def test_held_members_cost_no_start() -> None:
    """A member that ended before its group is at the next start like the others: the next rollout begins there."""
    env = make_group_env(
        partial(ScriptEnv, {a: "terminated" for a in range(20)}, limit=10), 4, 2, stop_on="never", subprocess=False
    )
    model = TGRPO("MlpPolicy", env, **FAST).learn(1)
    assert not model.rollout_buffer.mask.all()
    for n_rollouts in (1, 2):
        assert env.start_state()["n_starts"] == [n_rollouts] * 2
        model.learn(1, reset_num_timesteps=False)


def test_groups_that_take_turns_are_recorded_as_they_were_played() -> None:
    env = make_group_env(
        partial(ScriptEnv, {a: "terminated" for a in range(5)}, limit=30),
        2,
        3,
        stop_on="never",
        subprocess=False,
        alternate=True,
    )
    model = TGRPO("MlpPolicy", env, groups_per_update=6, **FAST)
    model.learn(1)
    buffer = model.rollout_buffer
    assert buffer.mask.shape[1:] == (6, 2) and model.num_timesteps == buffer.mask.sum()
    lengths = buffer.mask.sum(axis=0)
    assert len(np.unique(lengths)) > 2 and buffer.mask.any(axis=2).sum(axis=0).tolist() == lengths.max(axis=1).tolist()
    for group, member in np.ndindex(6, 2):
        rows = [np.ravel_multi_index((t, group, member), buffer.mask.shape) for t in range(lengths[group, member])]
        (samples,) = buffer.samples(np.array(rows))
        start, count, total = samples.observations.numpy().T  # type: ignore[union-attr]
        actions = samples.actions.numpy().ravel()
        assert (start == start[0]).all() and count.tolist() == list(range(len(rows)))
        assert total.tolist() == [0, *np.cumsum(actions)[:-1]]  # each observation follows from the actions before it
        assert buffer.rewards[: len(rows), group, member].tolist() == actions.tolist()
    assert env.start_state()["n_starts"] == [2, 2, 2]


def test_taking_turns_is_deterministic_and_scores_what_was_sampled() -> None:
    def run() -> tuple[th.Tensor, list[float]]:
        env = make_group_env(partial(IdentityEnv, "box", length=7), 4, 2, subprocess=False, alternate=True)
        model = TGRPO("MlpPolicy", env, groups_per_update=4, batch_size=30, n_epochs=2, **FAST)
        metrics = MetricsCallback()
        model.learn(300, metrics)
        return parameters(model), [row["train/ratio_error_first"] for row in metrics.rows]

    (first, errors), (second, _) = run(), run()
    assert th.equal(first, second)
    assert len(errors) > 1 and max(errors) < 1e-5


def test_wrappers_around_groups_that_take_turns() -> None:
    env = make_group_env(partial(IdentityEnv, "box", length=7), 4, 2, subprocess=False, alternate=True)
    # VecNormalize changes what it makes of an observation while its action is on the way: what was acted on is recorded
    metrics = MetricsCallback()
    TGRPO("MlpPolicy", GroupVecNormalize(env, norm_reward=False), groups_per_update=4, **FAST).learn(300, metrics)
    assert max(row["train/ratio_error_first"] for row in metrics.rows) < 1e-5


def test_lost_worker_costs_a_group_not_the_run(tmp_path: Path) -> None:
    maker = partial(OnceCrashingEnv, str(tmp_path / "crashed"), limit=15)
    env = make_group_env(maker, 2, stop_on="never", subprocess=True)
    model = TGRPO("MlpPolicy", env, **FAST)
    with th.no_grad():
        model.policy.actor.action_net.bias[9] += 2.5  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="restarted"):
        model.learn(30)
    assert (tmp_path / "crashed").exists()
    assert model.rollout_buffer.mask.shape == (15, 1, 2) and model.rollout_buffer.mask.all()
    env.close()


def test_steps_of_a_discarded_group_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = str(tmp_path / "crashed")

    class CrashesOnce(ScriptEnv):
        """One of all environments crashes in its fifth step; here, so that its process need not import this module."""

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            if self.count == 4:
                try:
                    open(marker, "x").close()
                    os._exit(3)
                except FileExistsError:
                    pass
            return super().step(action)

    class Watch(ConvertedCallback):
        def _on_step(self) -> bool:
            counts.append(self.num_timesteps)
            return True

        def _on_rollout_end(self) -> None:
            fractions.append(self.locals["n_valid"] / self.locals["n_slots"])
            resampled.append(self.logger.name_to_value["rollout/resampled_groups"])

    def noted(self: ValidStepsProgressBar) -> bool:
        on_step(self)
        shown.append(self.pbar.n)
        return True

    on_step = ValidStepsProgressBar._on_step
    monkeypatch.setattr(ValidStepsProgressBar, "_on_step", noted)
    counts: list[int] = []
    shown: list[int] = []
    fractions: list[float] = []
    resampled: list[float] = []
    env = make_group_env(CrashesOnce, 2, 2, stop_on="never", subprocess=True, env_kwargs={"limit": 10})
    model = TGRPO("MlpPolicy", env, **FAST)
    with pytest.warns(UserWarning, match="restarted"):
        model.learn(40, callback=Watch(model), progress_bar=True)
    # The crash takes away the four steps of two members and adds none for them, the other group goes on
    assert counts == [4, 8, 12, 16, 16 - 8 + 2, 14, 18, 22, 26, 30, 32, 34, 36, 38, 40]
    assert shown == counts
    assert model.num_timesteps == model.rollout_buffer.mask.sum() == 40 and fractions == [40 / 50]
    assert resampled == [1]
    env.close()


def test_wrappers_that_count_steps_at_which_members_stand_still_are_refused() -> None:
    for wrapped, name in (
        (VecNormalize(identity()), "GroupVecNormalize"),
        (VecTransposeImage(VecMonitor(identity("image"))), "VecMonitor"),
        (VecFrameStack(identity("box", 4, 2), 2), "FrameStackObservation"),
    ):
        with pytest.raises(ValueError, match=name):
            TGRPO("MlpPolicy", wrapped, **FAST)
    trained = VecNormalize(identity(), training=False)
    assert TGRPO("MlpPolicy", trained, **FAST).learn(80)
    assert TGRPO("MlpPolicy", VecFrameStack(identity("box"), 2), **FAST).learn(80)  # one group never waits for another
    model = TGRPO("MlpPolicy", identity(), **FAST)
    with pytest.raises(ValueError, match="GroupVecNormalize"):
        model.set_env(VecNormalize(identity()))


def test_vector_env_accepted() -> None:
    groups = SyncGroupVectorEnv([IdentityEnv] * 4, 4, subprocess=False)
    assert TGRPO("MlpPolicy", groups, **FAST).learn(80).group_size == 4


def test_groups_from_an_id_or_an_env(tmp_path: Path) -> None:
    for env in ("CartPole-v1", gym.make("CartPole-v1")):
        model = TGRPO("MlpPolicy", env, group_size=3, **FAST)
        assert model.n_envs == 3
        model.set_env(env)  # type: ignore[arg-type]
        model.learn(1).save(tmp_path / "model.zip")
        with (tmp_path / "model.zip").open("rb") as file:
            for source in (tmp_path / "model.zip", file):
                assert TGRPO.load(source, env=env).learn(1).group_size == 3  # type: ignore[arg-type]
    two = TGRPO("MlpPolicy", make_group_env("CartPole-v1", 3, 2), **FAST)
    two.set_env("CartPole-v1")  # type: ignore[arg-type]
    assert two.env.num_envs == 6  # type: ignore[union-attr]
    assert TGRPO("MlpPolicy", "CartPole-v1", **FAST).group_size == 4


def test_schedule_never_sees_a_negative_remainder() -> None:
    seen: list[float] = []
    model = TGRPO("MlpPolicy", identity(), **FAST | {"learning_rate": lambda p: seen.append(p) or 1e-3})  # type: ignore[func-returns-value]
    model.learn(100)
    assert min(seen) == 0.0


def test_evaluation_is_like_ppos() -> None:
    env = make_vec_env(IdentityEnv, 2)
    model = TGRPO("MlpPolicy", identity(), **FAST)
    rewards, lengths = evaluate_policy(model, env, 4, return_episode_rewards=True)
    assert lengths == [20] * 4 and len(rewards) == 4  # type: ignore[arg-type]
    assert PPO("MlpPolicy", env).predict(env.reset())[0].shape == model.predict(env.reset())[0].shape


# ---------------------------------------------------------------------- bad input


def test_bad_input() -> None:
    env = identity()
    with pytest.raises(TypeError, match=r"TGRPO needs groups that start alike.*make_group_env"):
        TGRPO("MlpPolicy", DummyVecEnv([IdentityEnv]))
    with pytest.raises(ValueError, match="group_size=1"):
        TGRPO("MlpPolicy", "CartPole-v1", group_size=1)
    with pytest.raises(ValueError, match="group_size=8, but env has groups of 4"):
        TGRPO("MlpPolicy", env, group_size=8)
    with pytest.raises(ValueError, match=r"Policy 'LstmPolicy' is unknown: choose one of MlpPolicy, .*OpenVLAPolicy"):
        TGRPO("LstmPolicy", env)
    with pytest.raises(ValueError, match="ActorCriticPolicy can't be trained by TGRPO, it lacks sample_actions"):
        from stable_baselines3.common.policies import ActorCriticPolicy

        TGRPO(ActorCriticPolicy, env)
    with pytest.raises(TypeError, match="unexpected keyword argument 'gama'"):
        TGRPO("MlpPolicy", env, gama=0.9)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument 'net_ach'"):
        TGRPO("MlpPolicy", env, policy_kwargs={"net_ach": [8]})
    with pytest.raises(ValueError, match="pass temperature to TGRPO itself"):
        TGRPO("MlpPolicy", env, policy_kwargs={"temperature": 0.5})
    with pytest.raises(ValueError, match="reward of environment 2 is nan at step 0"):
        nan = make_group_env(partial(ScriptEnv, {a: "nan" for a in range(100)}), 4, subprocess=False)
        nan.groups._workers[0].env.script = nan.groups._workers[1].env.script = {}  # type: ignore[attr-defined]
        TGRPO("MlpPolicy", nan).learn(10)
    with pytest.raises(ValueError, match="needs groups with stop_on='never', not 'success'"):
        TGRPO("MlpPolicy", env, alpha_step=0.0, outcome_reward="success")
    never = make_group_env(IdentityEnv, 4, stop_on="never", subprocess=False)
    with pytest.raises(ValueError, match=r"outcome_reward='return' leaves no rewards of steps .* alpha_step=0 \(it is 0.3\)"):
        TGRPO("MlpPolicy", never, outcome_reward="return")
    grpo = TGRPO("MlpPolicy", never, alpha_step=0.0, outcome_reward="return")
    with pytest.raises(ValueError, match="needs groups with stop_on='never', not 'success'"):
        grpo.set_env(env)
    with pytest.raises(ValueError, match="group_size=4, but env has groups of 2"):
        TGRPO("MlpPolicy", identity(group_size=4)).set_env(identity(group_size=2, n_groups=2))
    with pytest.raises(ValueError, match=r"reports no info\['is_success'\]"):
        TGRPO("MlpPolicy", never, alpha_step=0.0, outcome_reward="success").learn(10)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("batch_size", 0),
        ("micro_batch_size", 0),
        ("groups_per_update", 0),
        ("n_epochs", 0),
        ("clip_range", 0.0),
        ("clip_range_high", -0.1),
        ("kl_coef", -1.0),
        ("alpha_step", -0.3),
        ("alpha_traj", float("nan")),
        ("temperature", 0.0),
        ("gamma", 0.0),
        ("gamma", 1.01),
        ("max_grad_norm", 0.0),
        ("target_kl", 0.0),
        ("max_grad_norm", None),
        ("temperature", None),
        ("temperature", float("nan")),
        ("n_epochs", 2.0),
        ("n_epochs", "2"),
        ("batch_size", 64.0),
        ("groups_per_update", True),
        ("group_size", 4.0),
        ("kl_coef", lambda remaining: 0.1),
        ("clip_range_high", lambda remaining: 0.3),
        ("clip_range", float("nan")),
        ("gamma", "0.9"),
        ("min_spread", float("inf")),
        ("learning_rate", -1.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "3e-4"),
        ("ratio_level", "sequence"),
        ("outcome_reward", "sparse"),
    ],
)
def test_bad_settings(argument: str, value: Any) -> None:
    with pytest.raises((ValueError, TypeError), match=f"{argument}="):
        TGRPO("MlpPolicy", identity(), **{argument: value})
    model = TGRPO("MlpPolicy", identity(), seed=0)
    setattr(model, argument, value)
    with pytest.raises((ValueError, TypeError), match=f"{argument}="):
        model.learn(1)
    assert model.num_timesteps == 0


def test_settings_that_leave_nothing_to_learn() -> None:
    with pytest.raises(ValueError, match="alpha_step=0 and alpha_traj=0"):
        TGRPO("MlpPolicy", identity(), alpha_step=0.0, alpha_traj=0.0)


def test_settings_changed_after_creation(tmp_path: Path) -> None:
    model = TGRPO("MlpPolicy", identity(), **FAST)
    model.temperature, model.clip_range = 0.5, 0.1
    assert model.learn(80).policy.temperature == 0.5
    model.policy.temperature = 0.25  # a callback that anneals it there
    assert model.temperature == 0.25
    model.save(tmp_path / "model")
    loaded = TGRPO.load(tmp_path / "model", env=identity())
    assert loaded.temperature == loaded.policy.temperature == 0.25 and loaded.clip_range(1.0) == 0.1  # type: ignore[operator]
    assert TGRPO.load(tmp_path / "model", temperature=2.0).policy.temperature == 2.0


@pytest.mark.filterwarnings("ignore:net_arch=")
@pytest.mark.parametrize("net_arch", [{"pi": [7], "vf": [5]}, [{"pi": [7], "vf": [5]}]])
def test_sb3s_net_arch(net_arch: Any) -> None:
    model = TGRPO("MlpPolicy", identity(), policy_kwargs={"net_arch": net_arch}, **FAST).learn(80)
    assert [layer.out_features for layer in model.policy.actor.latent if hasattr(layer, "out_features")] == [7]  # type: ignore[attr-defined]


def test_discount_reaches_the_buffer(tmp_path: Path) -> None:
    """Also of a model that is loaded; there is none by default."""
    assert TGRPO("MlpPolicy", identity()).rollout_buffer.gamma == 1.0
    TGRPO("MlpPolicy", identity(), gamma=0.5).save(tmp_path / "model.zip")
    model = TGRPO.load(tmp_path / "model.zip", env=identity())
    assert model.gamma == model.rollout_buffer.gamma == 0.5


def test_bad_groups_per_update() -> None:
    with pytest.raises(ValueError, match="groups_per_update=3 is not a multiple of the 2 groups of env"):
        TGRPO("MlpPolicy", identity("discrete", 2, 2), groups_per_update=3)


def test_diverged_loss_says_what_to_change() -> None:
    model = TGRPO("MlpPolicy", identity("box"), n_epochs=3, batch_size=10, **FAST | {"learning_rate": 1e30})
    with pytest.raises(
        ValueError, match=r"The loss is (nan|inf|-inf) after .* lower learning_rate|normal expects|invalid values"
    ):
        model.learn(400)


def test_buffer_class_and_kwargs() -> None:
    class Mine(GroupedRolloutBuffer):
        pass

    assert isinstance(TGRPO("MlpPolicy", identity(), rollout_buffer_class=Mine).rollout_buffer, Mine)
