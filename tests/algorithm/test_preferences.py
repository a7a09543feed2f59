"""Preference baselines: losses and pairs against values by hand, gradients, learning, saving, and what they refuse."""

import io
import itertools
import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from sb3_tgrpo import TGRPO
from sb3_tgrpo.baselines.preferences import DPO, TPO, PairedRolloutBuffer, dpo_loss, ranked_pairs, success_pairs, tpo_loss
from sb3_tgrpo.envs import make_group_env


class Corridor(gym.Env):
    """
    Succeeds with the third step to the right; ends after six. Steps to the right pay. The observation is the number of steps
    made and of those to the right.
    """

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 6.0, (2,), np.float32)
        self.action_space = spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.count = self.right = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.count += 1
        self.right += int(action == 2)
        success = self.right == 3
        observation = np.array([self.count, self.right], np.float32)
        return observation, float(action == 2), success, self.count >= 6, {"is_success": success}


def groups(n_groups: int = 2, **kwargs: Any) -> Any:
    return make_group_env(Corridor, 4, n_groups, stop_on="never", subprocess=False, **kwargs)


def model(kind: type[DPO] = DPO, **kwargs: Any) -> DPO:
    settings = {"learning_rate": 1e-2, "seed": 0, "device": "cpu", "groups_per_update": 4} | kwargs
    return kind("MlpPolicy", groups(), **settings)


def parameters(algorithm: DPO) -> th.Tensor:
    return th.cat([p.detach().flatten() for p in algorithm.policy.actor.parameters()]).clone()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- losses


def minus_log_sigmoid(x: float) -> float:
    return math.log(1.0 + math.exp(-x))


def test_dpo_loss_by_hand() -> None:
    chosen, rejected = np.array([0.5, -0.2]), np.array([-0.3, 0.4])  # margins 0.8 and -0.6
    expected = (minus_log_sigmoid(0.5 * 0.8) + minus_log_sigmoid(0.5 * -0.6)) / 2
    assert dpo_loss(chosen, rejected, beta=0.5) == pytest.approx(expected, abs=1e-12)
    assert dpo_loss(np.zeros(3), np.zeros(3)) == pytest.approx(math.log(2.0))
    tensors = th.tensor(chosen, requires_grad=True), th.tensor(rejected, requires_grad=True)
    dpo_loss(*tensors, beta=0.5).backward()
    by_hand = [-0.5 * 0.5 * (1 - 1 / (1 + math.exp(-0.5 * margin))) for margin in (0.8, -0.6)]
    assert tensors[0].grad.tolist() == pytest.approx(by_hand)  # type: ignore[union-attr]
    assert tensors[1].grad.tolist() == pytest.approx([-x for x in by_hand])  # type: ignore[union-attr]


def test_tpo_loss_by_hand() -> None:
    chosen, rejected = np.array([[0.5, -0.2, 0.1]]), np.array([[-0.3, 0.4]])  # sums 0.4 and 0.1
    assert tpo_loss(chosen, rejected, beta=2.0) == pytest.approx(minus_log_sigmoid(2.0 * 0.3), abs=1e-12)
    # The sum is inside the sigmoid: not the mean of the steps' losses.
    assert tpo_loss(np.array([[1.0, -1.0]]), np.zeros((1, 2))) == pytest.approx(math.log(2.0))
    assert dpo_loss(np.array([[1.0, -1.0]]), np.zeros((1, 2)), beta=1.0) > math.log(2.0)


def test_losses_refuse() -> None:
    with pytest.raises(ValueError, match="must be pairs"):
        dpo_loss(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="must be pairs"):
        dpo_loss(th.zeros(0), th.zeros(0))
    with pytest.raises(ValueError, match="beta=0"):
        tpo_loss(np.zeros((1, 2)), np.zeros((1, 3)), beta=0)


# ---------------------------------------------------------------------- pairs


def test_success_pairs() -> None:
    pairs = success_pairs(np.array([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]]))
    assert pairs.tolist() == [[0, 0, 1], [0, 0, 3], [0, 2, 1], [0, 2, 3], [3, 3, 0], [3, 3, 1], [3, 3, 2]]


def test_ranked_pairs() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.4], [1.0, 1.0, 1.0, 1.0], [2.0, 1.0, 1.0, 1.0]])
    assert ranked_pairs(scores).tolist() == [[0, 1, 0], [0, 2, 3], [2, 0, 3]]
    assert ranked_pairs(np.array([[3.0, 2.0, 1.0]])).tolist() == [[0, 0, 2]]  # the middle one has no partner


def filled_buffer() -> PairedRolloutBuffer:
    """Two groups of two: lengths 3 and 1, and 2 and 2; the observation is the number of the step and the member."""
    space = spaces.Box(-10.0, 10.0, (2,), np.float32)
    buffer = PairedRolloutBuffer(0, space, spaces.Discrete(9), "cpu", n_envs=4, group_size=2)
    for t, valid in enumerate(([1, 1, 1, 1], [1, 0, 1, 1], [1, 0, 0, 0])):
        obs = np.array([[t, i] for i in range(4)], np.float32)
        log_prob = np.full((4, 2), -0.5 * (t + 1), np.float32)
        buffer.add(obs, np.arange(4), np.ones(4), log_prob, np.array(valid, bool))
        for group, last in ((0, 2), (1, 1)):
            if t == last:
                buffer.end_group(group, np.array([1.0, 0.0]))
    buffer.compute_advantages(0.0, 1.0)
    return buffer


def test_buffer_lays_out_pairs() -> None:
    buffer = filled_buffer()
    assert buffer.mean_log_prob().tolist() == [[-1.5, -1.5], [-2.0, -1.0]]  # in the order in which they ended
    buffer.pairs = np.array([[1, 0, 1], [0, 1, 0]])
    rng = np.random.default_rng(0)
    for batch_size, count in ((None, 2), (1, 2), (5, 1)):
        batches = list(buffer.minibatches(batch_size, rng))
        assert len(batches) == count and sum(map(len, batches)) == 8
        found = []
        for batch in batches:
            (samples,) = buffer.samples(batch)
            rows = samples.observations.numpy()  # type: ignore[union-attr]
            found += [[rows[steps].tolist() for steps in pair] for pair in buffer.trajectories(batch)]
        assert sorted(found) == [
            [[[0, 0], [1, 0], [2, 0]], [[0, 1]]],
            [[[0, 3], [1, 3]], [[0, 2], [1, 2]]],
        ]
    buffer.pairs = np.array([[0, 0, 1]])
    assert [len(batch) for batch in buffer.minibatches(None, rng)] == [4]  # a group without a pair is left out


# ---------------------------------------------------------------------- algorithms


@pytest.mark.parametrize("kind", [DPO, TPO])
def test_gradient_is_that_of_the_loss(kind: type[DPO]) -> None:
    """In micro-batches that cut pairs apart, against the loss written out over whole trajectories."""
    algorithm = model(kind, micro_batch_size=3, beta=0.5)
    algorithm.learn(30)  # the policy is not the reference any more
    buffer, policy = algorithm.rollout_buffer, algorithm.policy
    buffer.pairs = algorithm.pairs()
    (batch,) = buffer.minibatches(10_000, np.random.default_rng(0))
    assert len(buffer.pairs) >= 2 and len(batch) > 6
    algorithm._accumulate_gradient(batch)
    found = [p.grad.clone() for p in policy.actor.parameters()]  # type: ignore[attr-defined]

    def log_ratio(group: int, member: int) -> th.Tensor:
        steps = np.flatnonzero(buffer.mask.reshape(len(buffer.mask), -1)[:, group * 4 + member])
        flat = np.ravel_multi_index((steps, np.full(len(steps), group), np.full(len(steps), member)), buffer.mask.shape)
        (samples,) = buffer.samples(flat)
        log_prob, _ = policy.action_log_prob(samples.observations, samples.actions)
        return (log_prob - policy.reference_log_prob(samples.observations, samples.actions)).squeeze(1)

    losses = []
    for group, chosen, rejected in buffer.pairs:
        won, lost = log_ratio(group, chosen), log_ratio(group, rejected)
        if kind is TPO:
            losses.append(-th.log(th.sigmoid(0.5 * (won.sum() - lost.sum()))))
        else:
            n = min(len(won), len(lost))
            losses.append(-th.log(th.sigmoid(0.5 * (won[:n] - lost[:n]))).mean())
    policy.optimizer.zero_grad()
    th.stack(losses).mean().backward()
    for parameter, ours in zip(policy.actor.parameters(), found, strict=True):  # type: ignore[attr-defined]
        assert th.allclose(parameter.grad, ours, atol=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [DPO, TPO])
def test_learns(kind: type[DPO]) -> None:
    """Three of six steps to the right by chance: 32 % of episodes; a preference turned round would unlearn it."""
    algorithm = model(kind, beta=0.5)
    algorithm.learn(1500)
    env = groups()
    env.seed(7)
    observations, successes = env.reset(), []
    while len(successes) < 100:
        actions, _ = algorithm.predict(observations)
        observations, _, dones, infos = env.step(actions)
        successes += [info["is_success"] for info, done in zip(infos, dones, strict=True) if done]
    assert np.mean(successes) > 0.8


def test_scores_put_success_first() -> None:
    algorithm = model(TPO)
    algorithm.learn(1)
    buffer = algorithm.rollout_buffer
    successes, scores = buffer.returns, algorithm.scores()  # type: ignore[attr-defined]
    mixed = [g for g in range(len(successes)) if 0 < successes[g].mean() < 1]
    assert mixed and all(scores[g][successes[g] > 0].min() > scores[g][successes[g] == 0].max() for g in mixed)
    with_likelihood = model(TPO, success_coef=0.0, return_coef=0.0, likelihood_coef=1.0)
    with_likelihood.learn(1)
    best = with_likelihood.scores().argmax(axis=1)  # type: ignore[attr-defined]
    assert best.tolist() == with_likelihood.rollout_buffer.mean_log_prob().argmax(axis=1).tolist()


def test_rollout_without_pairs_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_tgrpo.baselines.preferences.success_pairs", lambda successes: np.zeros((0, 3), dtype=np.int64))
    algorithm = model()
    before = parameters(algorithm)
    algorithm.learn(60)
    assert th.equal(before, parameters(algorithm)) and algorithm.num_timesteps >= 60 and algorithm._n_updates > 0
    file = io.BytesIO()
    algorithm.save(file)
    file.seek(0)
    assert DPO.load(file).num_timesteps == algorithm.num_timesteps  # its steps are used all the same


@pytest.mark.parametrize("kind", [DPO, TPO])
def test_an_interrupt_names_what_can_load_its_file(
    kind: type[DPO], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        model(kind).learn(60, callback=interrupt)
    (saved,) = tmp_path.glob(f"{kind.__name__.lower()}_interrupted_*.zip")
    assert f"{kind.__name__}.load('{saved.name}', env=env)" in capsys.readouterr().out
    assert kind.load(saved).num_timesteps == 0


@pytest.mark.parametrize("kind", [DPO, TPO])
def test_save_load_and_go_on(kind: type[DPO], tmp_path: Path) -> None:
    straight = model(kind, beta=0.3)
    straight.learn(400)
    first = model(kind, beta=0.3)
    first.learn(150)
    first.save(tmp_path / "model.zip")
    again = kind.load(tmp_path / "model.zip", env=groups(), device="cpu")
    assert again.beta == 0.3 and isinstance(again.rollout_buffer, PairedRolloutBuffer)
    again.learn(400 - again.num_timesteps, reset_num_timesteps=False)
    assert th.equal(parameters(straight), parameters(again))


def test_what_another_algorithm_saved_is_not_loaded(tmp_path: Path) -> None:
    kinds = {"DPO": DPO, "TPO": TPO, "TGRPO": TGRPO}
    for name, kind in kinds.items():
        kind("MlpPolicy", groups(), device="cpu").save(tmp_path / name)
    for name, other in itertools.permutations(kinds, 2):
        with pytest.raises(ValueError, match=f"{name} saved this: load it with {name}.load"):
            kinds[other].load(tmp_path / name, device="cpu")


def test_refuses() -> None:
    with pytest.raises(TypeError, match="alpha_step, kl_coef belong to TGRPO's objective"):
        model(alpha_step=0.3, kl_coef=0.1)
    with pytest.raises(TypeError, match="clip_range, ratio_level belong to TGRPO's objective"):
        model(clip_range=0.1, ratio_level="token")
    with pytest.raises(TypeError, match="betta"):
        model(betta=1.0)
    with pytest.raises(ValueError, match="beta=-1"):
        model(beta=-1.0)
    with pytest.raises(ValueError, match="stop_on='never'"):
        DPO("MlpPolicy", make_group_env(Corridor, 4, subprocess=False))
