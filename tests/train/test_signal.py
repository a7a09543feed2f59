"""The signal in the gradients of groups: the arithmetic on synthetic gradients, and a model that is left as it was."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch as th
from openvla_toys import FollowInstruction
from toy_envs import IdentityEnv, ScriptEnv

from sb3_tgrpo import TGRPO
from sb3_tgrpo.advantages import trajectory_advantages
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.train import signal as diagnostics
from sb3_tgrpo.train.signal import batch_cosine, default_variants, fused, half_batch_cosine, measure_signal, signal_share


def gram(gradients: np.ndarray) -> np.ndarray:
    return gradients @ gradients.T


def noisy_gradients(n: int, signal: float, noise: float, dims: int = 4000, seed: int = 0) -> np.ndarray:
    """A common gradient of norm ``signal`` plus independent noise of norm ``noise``."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=dims)
    return signal * direction / np.linalg.norm(direction) + noise * rng.normal(size=(n, dims)) / np.sqrt(dims)


def test_share_by_hand() -> None:
    # Inner products 2, -1, 3 of three groups with squared norms 4, 5, 9: mean 4/3 over mean 6.
    matrix = np.array([[4.0, 2, -1], [2, 5, 3], [-1, 3, 9]])
    share, error = signal_share(matrix)
    assert share == pytest.approx((4 / 3) / 6)
    without = np.array([3 / 7, -1 / 6.5, 2 / 4.5])  # of groups 0, 1, 2
    assert error == pytest.approx(np.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum()))


@pytest.mark.parametrize(("signal", "noise"), [(1.0, 1.0), (1.0, 3.0), (0.0, 1.0)])
def test_share_is_the_known_one(signal: float, noise: float) -> None:
    share, error = signal_share(gram(noisy_gradients(60, signal, noise)))
    assert abs(share - signal**2 / (signal**2 + noise**2)) < 4 * error + 0.005
    assert error < 0.05


def test_standard_error_is_the_spread_over_repetitions() -> None:
    found = np.array([signal_share(gram(noisy_gradients(20, 1.0, 3.0, dims=50, seed=seed))) for seed in range(200)])
    assert found[:, 1].mean() == pytest.approx(found[:, 0].std(), rel=0.25)


def test_equal_and_no_gradients() -> None:
    equal = gram(np.tile([[3.0, 4.0]], (5, 1)))
    assert signal_share(equal) == (pytest.approx(1.0), pytest.approx(0.0)) and half_batch_cosine(equal) == pytest.approx(1.0)
    assert signal_share(np.zeros((4, 4))) == (0.0, 0.0) and half_batch_cosine(np.zeros((4, 4))) == 0.0


def test_cosines_agree_with_the_batch_gradient() -> None:
    signal, noise, n = 1.0, 3.0, 40
    cosines = [half_batch_cosine(gram(noisy_gradients(n, signal, noise, seed=seed))) for seed in range(5)]
    # Each half has n / 2 groups: the product of both halves' cosines with the true gradient.
    assert np.mean(cosines) == pytest.approx(batch_cosine(0.1, n // 2) ** 2, abs=0.05)
    gradients = noisy_gradients(n, signal, noise)
    direction = noisy_gradients(1, signal, 0.0)[0]
    mean = gradients.mean(axis=0)
    true = mean @ direction / np.linalg.norm(mean) / np.linalg.norm(direction)
    assert true == pytest.approx(batch_cosine(0.1, n), abs=0.03)
    assert batch_cosine(-0.01, 64) == 0.0 and batch_cosine(1.0, 1) == 1.0


def test_bad_matrices() -> None:
    with pytest.raises(ValueError, match="2 groups are too few"):
        signal_share(np.eye(2))
    with pytest.raises(ValueError, match="square"):
        signal_share(np.ones((3, 4)))


def toy_model(**kwargs) -> TGRPO:
    env = make_group_env(IdentityEnv, 4, n_groups=2, env_kwargs={"length": 5})
    return TGRPO("MlpPolicy", env, learning_rate=3e-3, seed=3, device="cpu", **kwargs)


def test_measured_gradient_is_the_updates() -> None:
    model = toy_model(kl_coef=0.0, max_grad_norm=1e9)
    _, callback = model._setup_learn(1, None)
    model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, 1)
    (group, _) = diagnostics._groups_of(model, [np.zeros(4)] * 2)
    gradients = diagnostics._group_gradients(model, 0, {"own": fused(0.3, 0.7)(group), "step": fused(1.0, 0.0)(group),
                                                        "traj": fused(0.0, 1.0)(group)})  # fmt: skip
    indices = np.arange(model.rollout_buffer.mask.size).reshape(model.rollout_buffer.mask.shape)[:, 0].ravel()
    model._accumulate_gradient(indices, 2)
    expected = th.cat([p.grad.flatten() for p in model.policy.parameters() if p.grad is not None]).numpy()
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(gradients["own"], expected, atol=1e-6)
    # Equal lengths and ratio 1: the gradient is linear in the weights of the two levels.
    np.testing.assert_allclose(gradients["own"], 0.3 * gradients["step"] + 0.7 * gradients["traj"], atol=1e-6)


def test_micro_batches_do_not_change_the_gradient() -> None:
    reports = [measure_signal(toy_model(micro_batch_size=size), 4) for size in (None, 3)]
    for name, found in reports[0].variants.items():
        assert found.share == pytest.approx(reports[1].variants[name].share, abs=1e-5)


def test_sketch_keeps_inner_products(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = measure_signal(toy_model(), 6)
    monkeypatch.setattr(diagnostics, "MAX_DIMENSIONS", 3000)  # of 4675
    sketched = measure_signal(toy_model(), 6)
    assert sketched.variants["traj only"].share == pytest.approx(whole.variants["traj only"].share, abs=0.05)


def test_untrained_model_has_signal_on_an_easy_task() -> None:
    seen: list[int] = []
    report = measure_signal(toy_model(), 40, progress=seen.append)
    assert report.n_groups == 40 and report.group_size == 4 and report.n_steps == 40 * 4 * 5 and seen[-1] == 40
    step = report.variants["step only"]
    assert step.share > 4 * step.standard_error and step.half_cosine > 0.3
    assert report.mixed_groups is None and report.success_rate is None and "not reported" in str(report)
    assert report.variants["success"].no_gradient == 1.0
    assert report.log_prob == pytest.approx(-np.log(3), abs=0.1)
    assert set(report.to_dict()["variants"]["step only"]) == {"share", "standard_error", "half_cosine", "no_gradient"}


def test_model_is_left_as_it_was() -> None:
    def train(measure: bool) -> TGRPO:
        model = toy_model()
        for _ in range(2):
            if measure:
                measure_signal(model, 4)
            model.learn(200, reset_num_timesteps=False)
        return model

    plain, measured = train(False), train(True)
    assert measured.num_timesteps == plain.num_timesteps and len(measured.ep_info_buffer) == len(plain.ep_info_buffer)
    for a, b in zip(plain.policy.parameters(), measured.policy.parameters(), strict=True):
        assert th.equal(a, b)


@pytest.mark.parametrize("n_played", [1, 3])
def test_interrupted_measurement_goes_on_with_the_same_result(tmp_path: Path, n_played: int) -> None:
    whole = measure_signal(toy_model(), 8)

    def interrupt(done: int) -> None:
        if done == 2 * n_played:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_signal(toy_model(), 8, progress=interrupt, folder=tmp_path)
    assert len(list(tmp_path.glob("rollout_*.pt"))) == n_played
    seen: list[int] = []
    assert measure_signal(toy_model(), 8, progress=seen.append, folder=tmp_path) == whole and seen[0] == 2 * n_played
    # What was played before it does not move the model on.
    measure_signal(model := toy_model(), 8, folder=tmp_path)
    model.learn(40, reset_num_timesteps=False)
    untouched = toy_model().learn(40, reset_num_timesteps=False)  # made later: torch has one random state for all
    for mine, other in zip(model.policy.parameters(), untouched.policy.parameters(), strict=True):
        assert th.equal(mine, other)
    with pytest.raises(ValueError, match=r"made with other settings .variants was .*step only.* is .'own'."):
        measure_signal(toy_model(), 8, {"own": fused(0.3, 0.7)}, folder=tmp_path)
    with pytest.raises(ValueError, match=r"made with other settings .alpha_step was 0.3, is 0.5; alpha_traj"):
        measure_signal(toy_model(alpha_step=0.5, alpha_traj=0.5), 8, folder=tmp_path)
    with th.no_grad():
        next(model.policy.parameters()).add_(1.0)
    with pytest.raises(ValueError, match=r"made with other settings .policy"):
        measure_signal(model, 8, folder=tmp_path)


def outcome_model(outcome_reward: str) -> TGRPO:
    """Of members that end at different steps, those that succeed earn the least."""
    script = {0: "success"} | dict.fromkeys(range(50, 60), "terminated")
    env = make_group_env(ScriptEnv, 4, 2, env_kwargs={"script": script, "limit": 6}, stop_on="never", subprocess=False)
    model = TGRPO(
        "MlpPolicy", env, alpha_step=0.0, alpha_traj=1.0, gamma=0.8, outcome_reward=outcome_reward, seed=0, device="cpu"
    )
    with th.no_grad():
        model.policy.actor.action_net.bias[0] += 3.0
    return model


def test_as_trained_is_what_it_is_trained_with(tmp_path: Path) -> None:
    """Outcomes, not the rewards of the steps."""
    model = outcome_model("success")
    _, callback = model._setup_learn(1, None)
    model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, 1)
    buffer, variants = model.rollout_buffer, default_variants(model)
    for index, group in enumerate(diagnostics._groups_of(model, list(buffer.returns))):
        paid = buffer.returns[index] * 0.8 ** (group.mask.sum(axis=0) - 1)
        expected = np.where(group.mask, trajectory_advantages(paid[None]), 0.0)
        assert expected.any() and not np.allclose(variants["traj only"](group), expected)
        np.testing.assert_allclose(variants["as trained"](group), expected)
    measure_signal(outcome_model("success"), 4, folder=tmp_path)
    with pytest.raises(ValueError, match=r"made with other settings .outcome_reward was 'success', is 'return'"):
        measure_signal(outcome_model("return"), 4, folder=tmp_path)


def test_measurement_from_before_outcomes_were_noted_goes_on(tmp_path: Path) -> None:
    whole = measure_signal(toy_model(), 4, folder=tmp_path)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings.pop("outcome_reward") is None
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    assert measure_signal(toy_model(), 4, folder=tmp_path) == whole


def test_successes_and_mixed_groups() -> None:
    # Under a policy that acts at random in 100 actions, action 0 to 49 ends the episode in success.
    env = make_group_env(ScriptEnv, 2, env_kwargs={"script": dict.fromkeys(range(50), "success"), "limit": 1}, stop_on="never")
    report = measure_signal(TGRPO("MlpPolicy", env, seed=0, device="cpu"), 60)
    assert report.success_rate == pytest.approx(0.5, abs=0.2) and report.mixed_groups == pytest.approx(0.5, abs=0.2)
    assert report.variants["success"].no_gradient == pytest.approx(1 - report.mixed_groups)


def test_vision_language_policy() -> None:
    env = make_group_env(FollowInstruction, 4, n_groups=1, subprocess=False)
    model = TGRPO("OpenVLAPolicy", env, seed=0, device="cpu", policy_kwargs={"checkpoint": "tiny", "value_head": False})
    report = measure_signal(model, 3, variants={"own": fused(0.3, 0.7)})
    assert list(report.variants) == ["own"] and report.log_prob == pytest.approx(-np.log(256), abs=0.2)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="at least 3 groups"):
        measure_signal(toy_model(), 2)
    model = toy_model()
    model.env = None
    with pytest.raises(ValueError, match="no environment"):
        measure_signal(model, 3)
