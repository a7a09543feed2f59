"""Rollout buffer for groups: no critic, an explicit group axis and mask, and only real steps in memory."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.type_aliases import TensorDict

from sb3_tgrpo import defaults
from sb3_tgrpo.advantages import MIN_SPREAD, discounted_returns, tgrpo_advantages, trajectory_advantages

PAGE_BYTES = 8 << 20


class GroupedRolloutBufferSamples(NamedTuple):
    """Steps of one (micro-)batch, on the device; ``K`` is the number of tokens of an action."""

    observations: th.Tensor | TensorDict
    actions: th.Tensor  # (batch, *stored_action_shape)
    old_log_prob: th.Tensor  # (batch, K) float32
    advantages: th.Tensor  # (batch,) float32, eq. (4)
    weight: th.Tensor  # (batch,) float32, 1 / (N |o_i|) of eq. (6), summing to 1 over the minibatch
    ref_log_prob: th.Tensor | None  # (batch, K), None until keep_reference() has stored them
    rows: np.ndarray  # (batch,), where they are stored


class PagedRows:
    """
    Growing array of equal rows in pages of some megabytes: appending never copies what is there, and the memory is that of
    the rows, give or take a page.
    """

    def __init__(self) -> None:
        self._pages: list[np.ndarray] = []
        self._page_rows = 1
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(page.nbytes for page in self._pages)

    def append(self, rows: np.ndarray) -> None:
        """Add rows ``(n, ...)``, of the same shape and type as all before."""
        if len(rows) and not self._pages:
            self._page_rows = max(1, PAGE_BYTES // max(rows[:1].nbytes, 1))
        start = 0
        while start < len(rows):
            offset = self._length % self._page_rows
            if offset == 0:
                self._pages.append(np.empty((self._page_rows, *rows.shape[1:]), dtype=rows.dtype))
            count = min(self._page_rows - offset, len(rows) - start)
            self._pages[-1][offset : offset + count] = rows[start : start + count]
            self._length += count
            start += count

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Copies of the rows with these indices ``(n,)``, in this order."""
        pages, offsets = np.divmod(indices, self._page_rows)
        used = np.unique(pages)
        if len(used) == 1:
            return self._pages[used[0]][offsets]
        out = np.empty((len(indices), *self._pages[0].shape[1:]), dtype=self._pages[0].dtype)
        for page in used:
            chosen = pages == page
            out[chosen] = self._pages[page][offsets[chosen]]
        return out


class _Step(NamedTuple):
    """One step of all environments, ``(n_envs,)`` each."""

    rows: np.ndarray  # where the transition is stored, meaningless where masked
    rewards: np.ndarray  # 0 where masked
    step_signal: np.ndarray  # 0 where masked
    valid: np.ndarray


class GroupedRolloutBuffer(BaseBuffer):
    """
    Rollouts of whole groups. Transitions are stored once, as they come (images as uint8), only where they count; rewards, mask
    and advantages are arrays ``(n_steps, n_groups, group_size)`` over the groups that ended, padded to the longest.

    :param buffer_size: Unused: the buffer is as long as what is added. (SB3 passes ``n_steps``.)
    :param observation_space: Observation space.
    :param action_space: Action space.
    :param device: Where samples go.
    :param gae_lambda: Unused, there is no critic.
    :param gamma: Discount of the trajectory level; 1 in the paper (section III).
    :param n_envs: Number of environments, a multiple of ``group_size``.
    :param group_size: Members per group.
    :raises ValueError: If ``group_size`` does not divide ``n_envs``.
    """

    # Set by compute_advantages, (n_steps, n_groups, group_size) each
    rewards: np.ndarray
    mask: np.ndarray
    step_signal: np.ndarray
    advantages: np.ndarray
    weight: np.ndarray
    returns: np.ndarray  # (n_groups, group_size): summed rewards (not discounted), or the outcome that replaces them
    compared_returns: np.ndarray  # (n_groups, group_size): what the trajectory level compares, the same but discounted

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        gae_lambda: float = 1.0,
        gamma: float = 1.0,
        n_envs: int = 1,
        group_size: int = defaults.GROUP_SIZE,
    ) -> None:
        super().__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        if group_size < 2 or n_envs % group_size != 0:
            raise ValueError(f"n_envs={n_envs} is not a multiple of group_size={group_size} (at least 2).")
        self.group_size = group_size
        self.gamma = gamma
        self.reset()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._observations: dict[str | None, PagedRows] = {}
        self._actions, self._log_probs = PagedRows(), PagedRows()
        self._ref_log_probs: np.ndarray | None = None  # (size, K), nan where not known
        self._steps: list[_Step] = []
        self._start_of_group = [0] * (self.n_envs // self.group_size)  # index into _steps
        self._ended: list[list[np.ndarray]] = []  # of each group: rows, rewards, step_signal, valid, (n_steps, group_size)
        self._outcomes: list[np.ndarray | None] = []

    def size(self) -> int:
        """Number of transitions stored."""
        return len(self._actions)

    @property
    def nbytes(self) -> int:
        """Bytes that transitions occupy."""
        return sum(rows.nbytes for rows in (*self._observations.values(), self._actions, self._log_probs))

    def add(
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        actions: np.ndarray,
        rewards: np.ndarray,
        log_prob: np.ndarray,
        valid: np.ndarray | None = None,
        step_signal: np.ndarray | None = None,
    ) -> None:
        """
        Add one step of all environments.

        :param obs: Observations the actions were chosen from, ``(n_envs, ...)``.
        :param actions: Stored actions, ``(n_envs, ...)``.
        :param rewards: ``(n_envs,)``.
        :param log_prob: Recorded log-probabilities, ``(n_envs, K)``.
        :param valid: ``(n_envs,)`` bool, True where the step counts; None = everywhere.
        :param step_signal: ``(n_envs,)``, what the step level compares; None = the rewards.
        :raises ValueError: If a reward or signal that counts is not finite.
        """
        # Copies, as SB3's buffers make them: an environment may write its next step into the same arrays.
        valid = np.ones(self.n_envs, dtype=bool) if valid is None else np.array(valid, dtype=bool)
        rewards = np.array(rewards, dtype=np.float64)
        step_signal = rewards if step_signal is None else np.array(step_signal, dtype=np.float64)
        everything = bool(valid.all())
        if not everything:
            rewards, step_signal = np.where(valid, rewards, 0.0), np.where(valid, step_signal, 0.0)
        self._check_finite("reward", rewards)
        self._check_finite("step_signal", step_signal)
        items: list[tuple[str | None, np.ndarray]] = list(obs.items()) if isinstance(obs, dict) else [(None, obs)]
        rows = len(self._actions) + np.cumsum(valid) - 1
        for key, value in items:
            self._observations.setdefault(key, PagedRows()).append(value if everything else value[valid])
        self._actions.append(actions if everything else actions[valid])
        self._log_probs.append(log_prob if everything else log_prob[valid])
        self._steps.append(_Step(rows, rewards, step_signal, valid))

    def end_group(self, group: int, outcomes: np.ndarray | None = None) -> None:
        """
        The members of a group have ended; what follows is its next start.

        :param group: Index of the group among the environments.
        :param outcomes: ``(group_size,)``, one reward per trajectory that replaces those of its steps (GRPO).
        """
        members = slice(group * self.group_size, (group + 1) * self.group_size)
        # Where groups take turns there are steps that only others made.
        steps = [step for step in self._steps[self._start_of_group[group] :] if step.valid[members].any()]
        self._ended.append([np.stack([array[members] for array in arrays]) for arrays in zip(*steps, strict=True)])
        self._outcomes.append(outcomes)
        self._start_of_group[group] = len(self._steps)

    def discard_group(self, group: int) -> int:
        """
        Forget the steps of a group since its start: it is sampled again.

        :param group: Index of the group among the environments.
        :return: How many of these steps had counted, over all members.
        """
        members = slice(group * self.group_size, (group + 1) * self.group_size)
        discarded = self._steps[self._start_of_group[group] :]
        self._start_of_group[group] = len(self._steps)
        return sum(int(step.valid[members].sum()) for step in discarded)

    def compute_advantages(
        self,
        alpha_step: float = defaults.ALPHA_STEP,
        alpha_traj: float = defaults.ALPHA_TRAJ,
        min_spread: float = MIN_SPREAD,
        compare_ended: bool = False,
    ) -> None:
        """
        Lay out the groups that ended and compute their advantages, eq. (2)-(4), and weights, eq. (6).

        :param alpha_step: Weight of the step level.
        :param alpha_traj: Weight of the trajectory level.
        :param min_spread: Largest spread that gives no advantage, see :func:`~sb3_tgrpo.advantages.step_advantages`.
        :param compare_ended: Whether ended members stay in the step level, see the same function.
        """
        if not self._ended:
            raise RuntimeError("No group has ended yet: add() whole groups and end_group() them first.")
        shape = (max(len(arrays[0]) for arrays in self._ended), len(self._ended), self.group_size)
        self._rows = np.full(shape, -1, dtype=np.int64)
        self.rewards, self.step_signal, self.mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, dtype=bool)
        for group, arrays in enumerate(self._ended):
            for target, array in zip((self._rows, self.rewards, self.step_signal, self.mask), arrays, strict=True):
                target[: len(array), group] = array
        self.advantages = tgrpo_advantages(
            self.rewards, alpha_step, alpha_traj, self.mask, self.step_signal, min_spread, self.gamma, compare_ended
        )
        self.returns = self.rewards.sum(axis=0)
        self.compared_returns = discounted_returns(self.rewards, self.gamma)
        lengths = self.mask.sum(axis=0)  # |o_i|, (n_groups, group_size)
        for group, outcomes in enumerate(self._outcomes):
            if outcomes is not None:
                self.returns[group] = outcomes
                self.compared_returns[group] = outcomes * self.gamma ** np.maximum(lengths[group] - 1, 0)  # with the last step
                relative = alpha_traj * trajectory_advantages(self.compared_returns[group][None], None, min_spread)
                self.advantages[:, group] = np.where(self.mask[:, group], relative, 0.0)
        members = np.maximum((lengths > 0).sum(axis=-1, keepdims=True), 1)  # N
        self.weight = np.where(self.mask, 1.0 / (shape[1] * members * np.maximum(lengths, 1)), 0.0)
        self.full = True

    def minibatches(self, batch_size: int | None, generator: np.random.Generator) -> list[np.ndarray]:
        """
        One pass over all steps that count.

        :param batch_size: Most steps per minibatch, shuffled over all groups and dealt out evenly, so that no small rest makes
            an optimizer step of its own; None = one group per minibatch, in random order.
        :param generator: Source of the order.
        :return: Flat indices ``(batch,)`` into the ``(n_steps, n_groups, group_size)`` arrays.
        """
        if batch_size is None:
            indices = np.arange(self.mask.size).reshape(self.mask.shape)
            groups = generator.permutation(self.mask.shape[1])
            return [indices[:, group][self.mask[:, group]] for group in groups]
        order = generator.permutation(np.flatnonzero(self.mask))
        return np.array_split(order, -(-len(order) // batch_size))

    def samples(
        self, batch: np.ndarray, micro_batch_size: int | None = None, n_minibatches: int = 1
    ) -> Iterator[GroupedRolloutBufferSamples]:
        """
        The steps of one minibatch, in pieces that fit in memory.

        :param batch: Flat indices, see :meth:`minibatches`.
        :param micro_batch_size: Steps per piece; None = all at once.
        :param n_minibatches: Into how many the rollout was split.
        :return: Samples with ``n_minibatches`` times their weights in eq. (6): the losses of a minibatch's pieces add up to
            its loss, and the mean over all minibatches is eq. (6).
        """
        size = len(batch) if micro_batch_size is None else micro_batch_size
        for start in range(0, len(batch), size):
            yield self._get_samples(batch[start : start + size], weight_scale=n_minibatches)

    def keep_reference(self, samples: GroupedRolloutBufferSamples, ref_log_prob: th.Tensor) -> None:
        """
        Remember the reference policy's log-probabilities: neither it nor what was sampled changes in an update, so one forward
        pass a step is enough, however many epochs there are.

        :param samples: Steps that were scored.
        :param ref_log_prob: ``(batch, K)``.
        """
        values = ref_log_prob.float().cpu().numpy()
        if self._ref_log_probs is None:
            self._ref_log_probs = np.full((self.size(), *values.shape[1:]), np.nan, dtype=np.float32)
        self._ref_log_probs[samples.rows] = values

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None, weight_scale: float = 1.0) -> GroupedRolloutBufferSamples:  # type: ignore[override]
        rows = self._rows.ravel()[batch_inds]
        observations = {key: self.to_torch(pages.take(rows), copy=False) for key, pages in self._observations.items()}
        reference = None if self._ref_log_probs is None else self._ref_log_probs[rows]
        if reference is not None and np.isnan(reference).any():
            reference = None
        return GroupedRolloutBufferSamples(
            observations=observations[None] if None in observations else observations,  # type: ignore[arg-type]
            actions=self.to_torch(self._actions.take(rows), copy=False),
            old_log_prob=self.to_torch(self._log_probs.take(rows), copy=False),
            advantages=self.to_torch(self.advantages.ravel()[batch_inds].astype(np.float32), copy=False),
            weight=self.to_torch((self.weight.ravel()[batch_inds] * weight_scale).astype(np.float32), copy=False),
            ref_log_prob=None if reference is None else self.to_torch(reference, copy=False),
            rows=rows,
        )

    def _check_finite(self, name: str, values: np.ndarray) -> None:
        if np.isfinite(values.sum()):  # one pass; a sum of finite rewards that overflows is not worth telling apart
            return
        for i in np.flatnonzero(~np.isfinite(values)):
            step = len(self._steps) - self._start_of_group[i // self.group_size]
            raise ValueError(
                f"{name} of environment {i} is {values[i]} at step {step} of its episode: rewards must be finite numbers."
            )
