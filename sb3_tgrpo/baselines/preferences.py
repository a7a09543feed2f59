"""
Preference baselines on the same grouped rollouts as TGRPO: DPO (arXiv 2305.18290) on success and failure, and the
trajectory-wise objective of GRAPE (TPO, arXiv 2411.19309).

Both are used online here: groups are sampled with the current policy, paired, and used for one update, so that they spend the
same environment steps as the methods beside them. The reference is the policy that training started from.
"""

from collections import defaultdict
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv
from torch.nn import functional as F

from sb3_tgrpo.advantages import trajectory_advantages
from sb3_tgrpo.buffers import GroupedRolloutBuffer, GroupedRolloutBufferSamples
from sb3_tgrpo.losses import ratio_statistics
from sb3_tgrpo.settings import check_number
from sb3_tgrpo.tgrpo import TGRPO

Array = TypeVar("Array", np.ndarray, th.Tensor)

_OF_TGRPO = {
    "alpha_step", "alpha_traj", "compare_ended", "gamma", "kl_coef", "outcome_reward", "clip_range", "clip_range_high",
    "ratio_level",
}  # fmt: skip


# ---------------------------------------------------------------------- losses


def dpo_loss(chosen: Array, rejected: Array, *, beta: float = 0.1) -> Array:
    """
    DPO (arXiv 2305.18290, eq. 7): ``-log sigmoid(beta (chosen - rejected))``, averaged over the pairs.

    :param chosen: ``log pi_theta - log pi_ref`` of the preferred actions, any shape.
    :param rejected: Log-ratios of the actions that they are preferred to, same shape.
    :param beta: Strength of the preference. The smaller it is, the further the policy may go from its reference.
    :return: Scalar to minimise.
    :raises ValueError: On unequal shapes, no pair, or ``beta`` that is not positive.
    """
    if isinstance(chosen, np.ndarray):
        return dpo_loss(th.as_tensor(chosen), th.as_tensor(rejected), beta=beta).numpy()
    if chosen.shape != rejected.shape or not chosen.numel():
        raise ValueError(f"chosen has shape {tuple(chosen.shape)}, rejected {tuple(rejected.shape)}: they must be pairs.")
    check_number("beta", beta, positive=True)
    return -F.logsigmoid(beta * (chosen - rejected)).mean()


def tpo_loss(chosen: Array, rejected: Array, *, beta: float = 0.1) -> Array:
    """
    GRAPE's trajectory-wise objective (arXiv 2411.19309, section 3): as :func:`dpo_loss`, but a trajectory is one answer. Its
    log-ratio is the sum over its steps, within the sigmoid.

    :param chosen: ``log pi_theta - log pi_ref`` of the steps of the preferred trajectories, ``(n_pairs, n_steps)``.
    :param rejected: Log-ratios of the other trajectories, which may differ in length.
    :param beta: Strength of the preference. The smaller it is, the further the policy may go from its reference.
    :return: Scalar to minimise.
    :raises ValueError: On what :func:`dpo_loss` refuses.
    """
    return dpo_loss(chosen.sum(1), rejected.sum(1), beta=beta)


# ---------------------------------------------------------------------- pairs


def success_pairs(successes: np.ndarray) -> np.ndarray:
    """
    Each success of a group with each of its failures.

    :param successes: ``(n_groups, group_size)``, above 0 where a member succeeded.
    :return: ``(n_pairs, 3)``: group, preferred member, other member.
    """
    won = np.asarray(successes) > 0
    return np.argwhere(won[:, :, None] & ~won[:, None, :])


def ranked_pairs(scores: np.ndarray, min_gap: float = 1e-8) -> np.ndarray:
    """
    The best half of a group with its worst half: best with worst, second best with second worst, and so on.

    :param scores: ``(n_groups, group_size)``.
    :param min_gap: Largest difference of scores at which a pair is left out.
    :return: ``(n_pairs, 3)``: group, preferred member, other member.
    """
    scores = np.asarray(scores, dtype=np.float64)
    order = np.argsort(-scores, axis=1, kind="stable")
    half = scores.shape[1] // 2
    groups = np.repeat(np.arange(len(scores)), half)
    best, worst = order[:, :half].ravel(), order[:, ::-1][:, :half].ravel()
    pairs = np.stack([groups, best, worst], axis=1)
    return pairs[scores[groups, best] - scores[groups, worst] > min_gap]


class PairedRolloutBuffer(GroupedRolloutBuffer):
    """A :class:`~sb3_tgrpo.buffers.GroupedRolloutBuffer` whose minibatches are whole groups, of the members in ``pairs``."""

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.pairs = np.zeros((0, 3), dtype=np.int64)
        """``(n_pairs, 3)``: group, preferred member, other member."""

    def minibatches(self, batch_size: int | None, generator: np.random.Generator) -> list[np.ndarray]:
        """
        One pass over the groups that have pairs.

        :param batch_size: Steps at which a minibatch of whole groups is full; None = one group per minibatch.
        :param generator: Source of the order.
        :return: Flat indices ``(batch,)`` into the ``(n_steps, n_groups, group_size)`` arrays.
        """
        indices = np.arange(self.mask.size).reshape(self.mask.shape)
        found: list[np.ndarray] = []
        collected: list[np.ndarray] = []
        for group in generator.permutation(np.unique(self.pairs[:, 0])):
            members = np.unique(self.pairs[self.pairs[:, 0] == group, 1:])
            collected.append(indices[:, group, members][self.mask[:, group, members]])
            if batch_size is None or sum(map(len, collected)) >= batch_size:
                found.append(np.concatenate(collected))
                collected = []
        if collected:
            found.append(np.concatenate(collected))
        return found

    def mean_log_prob(self) -> np.ndarray:
        """Mean over the steps of the recorded log-probability of a whole action, ``(n_groups, group_size)``."""
        log_prob = np.zeros(self.mask.shape)
        log_prob[self.mask] = self._log_probs.take(self._rows[self.mask]).sum(axis=-1)
        return log_prob.sum(axis=0) / np.maximum(self.mask.sum(axis=0), 1)

    def trajectories(self, batch: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """
        :param batch: Flat indices, see :meth:`minibatches`.
        :return: Positions in the batch of the steps of both trajectories of each pair, in the order of time.
        """
        flat = np.full(self.mask.size, -1)
        flat[batch] = np.arange(len(batch))
        place = flat.reshape(self.mask.shape)
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for group, chosen, rejected in self.pairs:
            both = [place[self.mask[:, group, member], group, member] for member in (chosen, rejected)]
            if all((steps >= 0).all() for steps in both):
                found.append((both[0], both[1]))
        return found


# ---------------------------------------------------------------------- algorithms


class DPO(TGRPO):
    """
    Direct Preference Optimization on the successes and failures of each group.

    Paper: https://arxiv.org/abs/2305.18290

    Each success is paired with each failure from the same start. Actions are compared step by step: the t-th action of the
    success is preferred to the t-th action of the failure, for as many steps as both have, and a pair counts as the mean over
    them (:func:`dpo_loss`). States drift apart after the first step, which is what :class:`TPO` avoids.

    :param policy: Policy, as for :class:`~sb3_tgrpo.tgrpo.TGRPO`.
    :param env: Groups with ``stop_on="never"``: in a group that stops at its first success, a slower one looks like a failure.
    :param beta: Strength of the preference. The smaller it is, the further the policy may go from its reference.
    :param settings: Further arguments of TGRPO; those of its objective (``alpha_step``, ``alpha_traj``, ``compare_ended``,
        ``gamma``, ``kl_coef``, ``outcome_reward``, the clip ranges and ``ratio_level``) are not for DPO. ``batch_size`` puts
        whole groups together until they have so many steps.
    :raises TypeError: On settings of TGRPO's objective.
    """

    objective = "DPO"
    rollout_buffer: PairedRolloutBuffer

    def __init__(
        self, policy: str | type[BasePolicy], env: GymEnv | str | None, *, beta: float = 0.1, **settings: Any
    ) -> None:
        if foreign := sorted(set(settings) & _OF_TGRPO):
            raise TypeError(f"{', '.join(foreign)} belong to TGRPO's objective, which {type(self).__name__} does not have.")
        check_number("beta", beta, positive=True)
        self.beta = beta
        settings.setdefault("rollout_buffer_class", PairedRolloutBuffer)
        super().__init__(policy, env, alpha_step=0.0, alpha_traj=1.0, kl_coef=0.0, outcome_reward="success", **settings)

    @property
    def _needs_reference(self) -> bool:
        return True

    def pairs(self) -> np.ndarray:
        """Preferences among the members of the rollout's groups, as :func:`success_pairs` gives them."""
        return success_pairs(self.rollout_buffer.returns)

    def preference_loss(self, log_ratio: th.Tensor, trajectories: list[tuple[np.ndarray, np.ndarray]]) -> th.Tensor:
        """
        :param log_ratio: ``log pi_theta - log pi_ref`` of the minibatch's actions, ``(batch,)``.
        :param trajectories: Positions in it of the steps of each pair.
        :return: Scalar to minimise.
        """
        losses = []
        for chosen, rejected in trajectories:
            n = min(len(chosen), len(rejected))
            losses.append(dpo_loss(log_ratio[chosen[:n]], log_ratio[rejected[:n]], beta=self.beta))
        return th.stack(losses).mean()

    def train(self) -> None:
        """Update the policy with the pairs of the rollout; without any, nothing changes."""
        buffer = self.rollout_buffer
        buffer.pairs = self.pairs()
        if len(buffer.pairs):
            super().train()
        else:
            self._before_rollout = None
            self._n_updates += self.n_epochs
            self.logger.record("train/loss", 0.0)
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("time/update_seconds", 0.0)
        self.logger.record("train/pairs", len(buffer.pairs))

    def _accumulate_gradient(self, batch: np.ndarray, n_minibatches: int = 1) -> dict[str, float]:
        """
        Gradient of the loss over whole pairs, in micro-batches: the loss is differentiated by the log-probabilities first,
        and these by the parameters then, piece by piece. A pair need not fit into one forward pass.
        """
        buffer = self.rollout_buffer
        self.policy.optimizer.zero_grad()
        totals: dict[str, float] = defaultdict(float)
        pieces, ratio_error = [], 0.0
        for samples in buffer.samples(batch, self.micro_batch_size):
            piece, result = self._log_ratio(samples)
            pieces.append(piece)
            ratio_error = max(ratio_error, result.pop("ratio_error"))
            for name, value in result.items():
                totals[name] += value * len(piece) / len(batch)
        log_ratio = th.cat(pieces).requires_grad_()
        trajectories = buffer.trajectories(batch)
        loss = self.preference_loss(log_ratio, trajectories)
        loss.backward()
        assert log_ratio.grad is not None
        start = 0
        for samples in buffer.samples(batch, self.micro_batch_size):
            log_prob, _ = self.policy.action_log_prob(samples.observations, samples.actions)
            log_prob = log_prob.sum(dim=-1)
            log_prob.backward(log_ratio.grad[start : start + len(log_prob)])
            start += len(log_prob)
        margins = [float(log_ratio.detach()[w].sum() - log_ratio.detach()[v].sum()) for w, v in trajectories]
        totals |= {"loss": loss.item(), "preference_accuracy": float(np.mean(np.array(margins) > 0))}
        totals["preference_margin"] = self.beta * float(np.mean(margins))
        self._check_finite("loss", totals["loss"])
        return {**totals, "ratio_error": ratio_error}

    @th.no_grad()
    def _log_ratio(self, samples: GroupedRolloutBufferSamples) -> tuple[th.Tensor, dict[str, float]]:
        """``log pi_theta - log pi_ref`` of each action, and what to watch."""
        log_prob, entropy = self.policy.action_log_prob(samples.observations, samples.actions)
        ref_log_prob = self._reference_log_prob(samples)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        result = ratio_statistics(log_prob.sum(dim=-1), samples.old_log_prob.sum(dim=-1), clip_range)
        del result["clip_fraction"]  # nothing is clipped
        result["entropy_loss"] = -entropy.mean().item()
        log_ratio = (log_prob - ref_log_prob).sum(dim=-1)
        result["kl_loss"] = (th.expm1(-log_ratio) + log_ratio).mean().item()
        return log_ratio, result


class TPO(DPO):
    """
    Trajectory-wise preference optimization, the objective of GRAPE, on ranked groups.

    Paper: https://arxiv.org/abs/2411.19309

    Members of a group are ranked by a score like GRAPE's: success, how much of the task's stages was done, and how likely the
    policy itself found the trajectory. The better half is preferred to the worse (:func:`ranked_pairs`), whole trajectories
    at a time (:func:`tpo_loss`). The stages are those of the environment's reward, where GRAPE asks a vision-language model
    for costs; returns and likelihoods are taken relative to the group (sample standard deviation), and the weights are ours.

    :param policy: Policy, as for :class:`DPO`.
    :param env: Groups with ``stop_on="never"``.
    :param beta: Strength of the preference, as for :class:`DPO`.
    :param success_coef: Weight of success, 0 or 1, in the score.
    :param return_coef: Weight of the return of the environment's reward.
    :param likelihood_coef: Weight of the mean log-probability of the actions.
    :param settings: Further arguments of TGRPO, as for :class:`DPO`.
    """

    objective = "TPO"

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        *,
        beta: float = 0.1,
        success_coef: float = 1.0,
        return_coef: float = 1.0,
        likelihood_coef: float = 0.1,
        **settings: Any,
    ) -> None:
        self.success_coef, self.return_coef, self.likelihood_coef = success_coef, return_coef, likelihood_coef
        super().__init__(policy, env, beta=beta, **settings)

    def scores(self) -> np.ndarray:
        """What members are ranked by, ``(n_groups, group_size)``."""
        buffer = self.rollout_buffer
        likelihood = trajectory_advantages(buffer.mean_log_prob()[None], None, self.min_spread)
        returns = trajectory_advantages(buffer.rewards, buffer.mask, self.min_spread)
        return self.success_coef * buffer.returns + self.return_coef * returns + self.likelihood_coef * likelihood

    def pairs(self) -> np.ndarray:
        """Preferences among the members of the rollout's groups, as :func:`ranked_pairs` gives them."""
        return ranked_pairs(self.scores(), self.min_spread)

    def preference_loss(self, log_ratio: th.Tensor, trajectories: list[tuple[np.ndarray, np.ndarray]]) -> th.Tensor:
        """See :meth:`DPO.preference_loss`."""
        losses = [tpo_loss(log_ratio[w][None], log_ratio[v][None], beta=self.beta) for w, v in trajectories]
        return th.stack(losses).mean()
