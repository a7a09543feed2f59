"""
Is there anything to learn from? The signal in the policy gradients of single groups, before training.

Each group of trajectories gives one policy gradient. What the gradients of different groups have in common is signal, the
rest is noise: the mean of ``g_i . g_j`` over different groups estimates the squared norm of the true gradient, the mean of
``|g_i|^2`` signal and noise together. Their ratio gives the number of groups that an update needs.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger

from sb3_tgrpo.advantages import tgrpo_advantages, trajectory_advantages
from sb3_tgrpo.files import atomic_path
from sb3_tgrpo.losses import tgrpo_loss
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train.setup import check_n_groups

if TYPE_CHECKING:
    from sb3_tgrpo.tgrpo import TGRPO

MAX_DIMENSIONS = 2_000_000
"""Gradients of more parameters than this are sketched; inner products are then off by about 0.1 % of the norms."""

_SPLITS = 200

_SETTINGS = (
    "seed", "group_size", "ratio_level", "alpha_step", "alpha_traj", "gamma", "min_spread", "compare_ended", "outcome_reward",
)  # fmt: skip
"""Settings of the model that its gradients depend on."""


# ---------------------------------------------------------------------- the arithmetic


def signal_share(gram: np.ndarray) -> tuple[float, float]:
    """
    Signal over total: mean of ``g_i . g_j`` over ``i != j``, divided by the mean of ``|g_i|^2``. About 0 if the groups'
    gradients have nothing in common, 1 if they are equal; noise can make it negative.

    :param gram: ``(n_groups, n_groups)``, inner products of the groups' gradients.
    :return: The share and its jackknife standard error (groups left out one at a time); ``(0, 0)`` if all gradients are 0.
    :raises ValueError: For fewer than three groups, or a matrix that is not square.
    """
    gram = _checked_gram(gram, 3)
    n = len(gram)
    total, diagonal = gram.sum(), np.trace(gram)
    # Leaving out group k takes away its row, its column and its own square.
    totals = total - 2 * gram.sum(axis=1) + gram.diagonal()
    diagonals = diagonal - gram.diagonal()
    share = _share(total, diagonal, n)
    without = np.array([_share(t, d, n - 1) for t, d in zip(totals, diagonals, strict=True)])
    return share, float(np.sqrt((n - 1) / n * ((without - without.mean()) ** 2).sum()))


def half_batch_cosine(gram: np.ndarray, seed: int = 0) -> float:
    """
    Cosine between the mean gradients of two random halves of the groups, averaged over random splits. Half the data would
    step in the same direction if it is 1, and in an unrelated one if it is 0.

    :param gram: ``(n_groups, n_groups)``, inner products of the groups' gradients.
    :param seed: Seed of the splits.
    :return: The mean cosine; 0 if a half has no gradient.
    """
    gram = _checked_gram(gram, 2)
    n = len(gram)
    rng = np.random.default_rng(seed)
    cosines = []
    for _ in range(_SPLITS):
        order = rng.permutation(n)
        a, b = order[: n // 2], order[n // 2 : 2 * (n // 2)]
        norms = gram[np.ix_(a, a)].sum() * gram[np.ix_(b, b)].sum()
        cosines.append(gram[np.ix_(a, b)].sum() / math.sqrt(norms) if norms > 0 else 0.0)
    return float(np.mean(cosines))


def batch_cosine(share: float, n_groups: int) -> float:
    """Cosine expected between a batch's gradient and the true one, ``sqrt(s n / (s n + 1 - s))``; s below 0 counts as 0."""
    share = min(max(share, 0.0), 1.0)
    return math.sqrt(share * n_groups / (share * n_groups + 1.0 - share)) if share else 0.0


def _share(total: float, diagonal: float, n: int) -> float:
    return float((total - diagonal) / (n - 1) / diagonal) if diagonal > 0 else 0.0


def _checked_gram(gram: np.ndarray, least: int) -> np.ndarray:
    gram = np.asarray(gram, dtype=np.float64)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1]:
        raise ValueError(f"gram must be a square matrix, got shape {gram.shape}.")
    if len(gram) < least:
        raise ValueError(f"{len(gram)} groups are too few to compare: measure at least {least}.")
    return gram


# ---------------------------------------------------------------------- the report


@dataclass(frozen=True)
class VariantSignal:
    """
    The signal under one way of computing advantages.

    :param share: Signal over total of one group's gradient, with its jackknife standard error.
    :param half_cosine: Cosine between the gradients of the batch's two halves.
    :param no_gradient: Share of groups whose gradient is zero.
    """

    share: float
    standard_error: float
    half_cosine: float
    no_gradient: float


@dataclass(frozen=True)
class SignalReport:
    """
    What :func:`measure_signal` found.

    :param variants: Signal by name of the advantage.
    :param n_groups: Number of groups played.
    :param group_size: Members of each group.
    :param n_steps: Number of steps that count.
    :param mixed_groups: Share of groups with successes and failures; None where the environment reports no success. Under
        ``stop_on="success"`` a group that ends with a success is nearly always mixed.
    :param success_rate: Share of members that succeeded.
    :param equal_returns: Share of groups whose returns do not differ, discounted as the model does.
    :param log_prob: Mean log-probability of an action, nats: minus the entropy it is sampled with.
    """

    variants: dict[str, VariantSignal]
    n_groups: int
    group_size: int
    n_steps: int
    mixed_groups: float | None
    success_rate: float | None
    equal_returns: float
    log_prob: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        def percent(value: float | None) -> str:
            return "not reported" if value is None else f"{value:.0%}"

        lines = [
            f"{self.n_groups} groups of {self.group_size}, {self.n_steps} steps; mean log-probability of an action "
            f"{self.log_prob:.2f} nats",
            f"success {percent(self.success_rate)}, mixed groups {percent(self.mixed_groups)}, equal returns "
            f"{self.equal_returns:.0%}",
            f"{'advantage':<12} {'signal/total':>20} {'half-batch cosine':>18} {'no gradient':>12} {'cosine, 64 groups':>20}",
        ]
        for name, found in self.variants.items():
            share = f"{found.share:+.4f} +- {found.standard_error:.4f}"
            low, high = (batch_cosine(found.share + sign * 2 * found.standard_error, 64) for sign in (-1, 1))
            cosine = f"{low:.2f} to {high:.2f}"
            lines.append(f"{name:<12} {share:>20} {found.half_cosine:>+18.2f} {found.no_gradient:>12.0%} {cosine:>20}")
        return "\n".join(lines)


# ---------------------------------------------------------------------- measuring


@dataclass(frozen=True)
class Group:
    """
    One finished group, as an advantage sees it.

    :param rewards: ``(n_steps, group_size)``, 0 where masked.
    :param mask: ``(n_steps, group_size)`` bool, True where a step counts.
    :param step_signal: ``(n_steps, group_size)``.
    :param successes: ``(group_size,)``, 1 or 0, nan where the environment reports none.
    :param advantages: ``(n_steps, group_size)``, those that the model is trained with.
    """

    rewards: np.ndarray
    mask: np.ndarray
    step_signal: np.ndarray
    successes: np.ndarray
    advantages: np.ndarray


Advantage = Callable[[Group], np.ndarray]
"""From a group to the advantage of each step, ``(n_steps, group_size)``."""


def fused(
    alpha_step: float, alpha_traj: float, min_spread: float = 1e-8, gamma: float = 1.0, compare_ended: bool = False
) -> Advantage:
    """The advantage of eq. (4) as :func:`~sb3_tgrpo.advantages.tgrpo_advantages` has it with these settings."""
    return lambda group: tgrpo_advantages(
        group.rewards, alpha_step, alpha_traj, group.mask, group.step_signal, min_spread, gamma, compare_ended
    )


def default_variants(model: "TGRPO") -> dict[str, Advantage]:
    """The model's own advantages, each level alone, and trajectories compared by success alone, as GRPO does."""
    spread = model.min_spread
    return {
        "as trained": lambda group: group.advantages,
        "step only": fused(1.0, 0.0, spread, compare_ended=model.compare_ended),
        "traj only": fused(0.0, 1.0, spread, model.gamma),
        "success": lambda group: np.where(group.mask, trajectory_advantages(np.nan_to_num(group.successes)[None]), 0.0),
    }


def measure_signal(
    model: "TGRPO",
    n_groups: int,
    variants: Mapping[str, Advantage] | None = None,
    *,
    progress: Callable[[int], None] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> SignalReport:
    """
    Play groups with the model's policy in its own environment and compare their policy gradients of eq. (6) at ratio 1
    without the KL term (which has no gradient at the start), in the space of the trained parameters.

    The model is left as it was, random states and position in the sequence of initial states included.

    :param model: Algorithm with its environment.
    :param n_groups: Number of groups to play, at least 3; rounded up to a multiple of the groups that the environment steps
        at once.
    :param variants: Ways to compute advantages, by name; None: :func:`default_variants`.
    :param progress: Function called with the number of groups done.
    :param folder: Folder that keeps what has been played, so that the same call goes on after an interruption, with the same
        result; one folder per environment, which is not compared. All that it holds counts, more than ``n_groups`` too. None:
        nothing is kept.
    :return: The report.
    :raises ValueError: For fewer than 3 groups, a model without environment, or a folder of another policy or other settings.
    """
    env = model.get_env()
    if env is None:
        raise ValueError("The model has no environment: load it with TGRPO.load(path, env=env).")
    check_n_groups(n_groups)
    chosen = dict(variants) if variants is not None else default_variants(model)
    kept = None if folder is None else _KeptRollouts(Path(folder), model, list(chosen))
    before = dict(vars(model))
    outcomes = _Outcomes()
    model.ep_info_buffer = model.ep_success_buffer = None  # the model's own statistics stay as they are
    model.set_logger(Logger(folder=None, output_formats=[]))
    model.groups_per_update = None
    _, callback = model._setup_learn(1, outcomes, reset_num_timesteps=False)
    state = model._state()
    try:
        rollouts = [] if kept is None else kept.read()
        if rollouts:
            model._resume_state, model._last_obs = rollouts[-1].state_after, None
            model._setup_learn(1, outcomes, reset_num_timesteps=False)
        while (done := sum(len(rollout.groups) for rollout in rollouts)) < n_groups:
            if progress is not None and done:
                progress(done)
            outcomes.successes.clear()
            model.collect_rollouts(env, callback, model.rollout_buffer, 1)
            rollouts.append(_measured(model, outcomes.successes, chosen))
            if kept is not None:
                kept.add(rollouts[-1])
    finally:
        model._restore(state)
        vars(model).update(before)
        model._last_obs = None  # the next rollout starts from the position restored above
        model.policy.optimizer.zero_grad()
    if progress is not None:
        progress(done)
    return _report(rollouts, list(chosen))


@dataclass(frozen=True)
class _Rollout:
    """What is kept of a rollout: gradients by advantage and group, outcomes, and where the model stood afterwards."""

    gradients: dict[str, list[np.ndarray]]
    groups: list[Group]
    equal_returns: float
    log_prob: float
    n_steps: int
    state_after: dict[str, Any]


def _measured(model: "TGRPO", successes: list[np.ndarray], variants: Mapping[str, Advantage]) -> _Rollout:
    """The rollout in the model's buffer."""
    groups = _groups_of(model, successes)
    gradients: dict[str, list[np.ndarray]] = {name: [] for name in variants}
    for index, group in enumerate(groups):
        advantages = {name: advantage(group) for name, advantage in variants.items()}
        for name, gradient in _group_gradients(model, index, advantages).items():
            gradients[name].append(gradient)
    return _Rollout(
        gradients=gradients,
        groups=groups,
        equal_returns=model.logger.name_to_value["rollout/zero_std_groups"],
        log_prob=_sum_log_prob(model),
        n_steps=int(model.rollout_buffer.mask.sum()),
        state_after=model._state(),
    )


class _KeptRollouts:
    """Rollouts in a folder, a file each."""

    def __init__(self, path: Path, model: "TGRPO", variants: list[str]) -> None:
        from sb3_tgrpo.evaluation.identity import fingerprint

        self.folder = RunFolder(path)
        settings = {
            "policy": fingerprint(model),
            "temperature": getattr(model.policy, "temperature", None),
            "environments": model.n_envs,
            "variants": variants,
            **{name: getattr(model, name) for name in _SETTINGS},
        }
        self.folder.claim("settings.json", settings, results=("rollout_*.pt",), defaults={"outcome_reward": None})

    def read(self) -> list[_Rollout]:
        """All that were finished, in their order."""
        return [th.load(file, weights_only=False) for file in sorted(self.folder.path.glob("rollout_*.pt"))]

    def add(self, rollout: _Rollout) -> None:
        number = len(list(self.folder.path.glob("rollout_*.pt")))
        with atomic_path(self.folder / f"rollout_{number:04d}.pt") as unfinished:
            th.save(rollout, unfinished)


def _report(rollouts: list[_Rollout], variants: list[str]) -> SignalReport:
    groups = [group for rollout in rollouts for group in rollout.groups]
    n_steps = sum(rollout.n_steps for rollout in rollouts)
    successes = np.array([group.successes for group in groups])
    known = bool(np.isfinite(successes).all())
    rate = successes.mean(axis=1)
    return SignalReport(
        variants={name: _describe([row for rollout in rollouts for row in rollout.gradients[name]]) for name in variants},
        n_groups=len(groups),
        group_size=successes.shape[1],
        n_steps=n_steps,
        mixed_groups=float(((rate > 0) & (rate < 1)).mean()) if known else None,
        success_rate=float(rate.mean()) if known else None,
        equal_returns=float(np.mean([rollout.equal_returns for rollout in rollouts])),
        log_prob=float(sum(rollout.log_prob for rollout in rollouts) / n_steps),
    )


class _Outcomes(BaseCallback):
    """Successes of each group, in the order in which groups end."""

    def __init__(self) -> None:
        super().__init__()
        self.successes: list[np.ndarray] = []

    def _on_step(self) -> bool:
        size = self.model.group_size  # type: ignore[attr-defined]
        dones, infos = self.locals["dones"], self.locals["infos"]
        for group in np.flatnonzero(dones.reshape(-1, size).all(axis=1)):
            members = infos[group * size : (group + 1) * size]
            self.successes.append(np.array([info.get("is_success", np.nan) for info in members], dtype=float))
        return True


def _groups_of(model: "TGRPO", successes: list[np.ndarray]) -> list[Group]:
    buffer = model.rollout_buffer
    return [
        Group(buffer.rewards[:, g], buffer.mask[:, g], buffer.step_signal[:, g], successes[g], buffer.advantages[:, g])
        for g in range(buffer.mask.shape[1])
    ]


def _group_gradients(model: "TGRPO", index: int, advantages: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Gradient of the loss over one group of the rollout buffer, for each of several advantages, as flat vectors."""
    buffer = model.rollout_buffer
    shape = buffer.mask.shape
    batch = np.arange(buffer.mask.size).reshape(shape)[:, index][buffer.mask[:, index]]
    parameters = [p for group in model.policy.optimizer.param_groups for p in group["params"]]
    rows = {name: th.as_tensor(values[buffer.mask[:, index]], dtype=th.float32) for name, values in advantages.items()}
    used = [name for name in rows if rows[name].any()]
    sums = {name: [th.zeros_like(p, dtype=th.float32) for p in parameters] for name in rows}
    model.policy.set_training_mode(True)
    start = 0
    for samples in buffer.samples(batch, model.micro_batch_size, shape[1]) if used else ():
        piece = slice(start, start + len(samples.advantages))
        start = piece.stop
        log_prob, _ = model.policy.action_log_prob(samples.observations, samples.actions)
        if model.ratio_level == "action":
            log_prob = log_prob.sum(dim=-1)
        for name in used:
            part = rows[name][piece].to(log_prob.device)
            loss = tgrpo_loss(log_prob, log_prob.detach(), part, weight=samples.weight)
            found = th.autograd.grad(loss, parameters, retain_graph=name != used[-1], allow_unused=True)
            for total, gradient in zip(sums[name], found, strict=True):
                if gradient is not None:
                    total += gradient
    return {name: _flatten(parts) for name, parts in sums.items()}


def _flatten(parts: list[th.Tensor]) -> np.ndarray:
    """One vector; a count sketch of it, which keeps inner products in expectation, if it is very long."""
    vector = th.cat([part.flatten() for part in parts])
    if len(vector) <= MAX_DIMENSIONS:
        return vector.cpu().numpy()
    generator = th.Generator().manual_seed(0)
    place = th.randint(MAX_DIMENSIONS, (len(vector),), generator=generator)
    sign = th.randint(2, (len(vector),), generator=generator) * 2 - 1
    sketch = th.zeros(MAX_DIMENSIONS).index_add_(0, place, vector.cpu() * sign)
    return sketch.numpy()


def _sum_log_prob(model: "TGRPO") -> float:
    """Sum over the steps that count of the recorded log-probability of the action."""
    buffer = model.rollout_buffer
    return float(buffer._log_probs.take(buffer._rows[buffer.mask]).sum(dtype=np.float64))


def _describe(rows: list[np.ndarray]) -> VariantSignal:
    matrix = np.stack(rows).astype(np.float64)
    gram = matrix @ matrix.T
    share, error = signal_share(gram)
    return VariantSignal(share, error, half_batch_cosine(gram), float((gram.diagonal() == 0).mean()))
