"""Trajectory-wise Group Relative Policy Optimization (arXiv 2506.08440) as a Stable-Baselines3 algorithm."""

import io
import os
import pathlib
import time
from collections import defaultdict
from typing import Any, ClassVar, Literal, TypeVar

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.type_aliases import GymEnv, MaybeCallback, Schedule
from stable_baselines3.common.utils import FloatSchedule, obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from sb3_tgrpo import defaults
from sb3_tgrpo.advantages import MIN_SPREAD
from sb3_tgrpo.buffers import GroupedRolloutBuffer, GroupedRolloutBufferSamples
from sb3_tgrpo.group_env import check_wrappers, groups_of
from sb3_tgrpo.losses import k3_kl, ratio_statistics, tgrpo_loss
from sb3_tgrpo.policies import GROUP_POLICY_METHODS, ActorCnnPolicy, ActorMultiInputPolicy, ActorPolicy, Decisions, GroupPolicy
from sb3_tgrpo.progress_bar import ValidStepsProgressBar
from sb3_tgrpo.resumable import ResumableAlgorithm
from sb3_tgrpo.settings import check_number, typed

SelfTGRPO = TypeVar("SelfTGRPO", bound="TGRPO")

RatioLevel = Literal["action", "token"]
OutcomeReward = Literal["success", "return"]


class TGRPO(ResumableAlgorithm):
    """
    Trajectory-wise Group Relative Policy Optimization (TGRPO), without a critic.

    Paper: https://arxiv.org/abs/2506.08440

    N trajectories are sampled from one identical start. Every step is compared with the same step of the other members and
    every trajectory with the other trajectories (eq. 2-4, :mod:`sb3_tgrpo.advantages`); the fused advantage drives a clipped
    objective with a KL term to the policy that training started from (eq. 5-7, :mod:`sb3_tgrpo.losses`).

    ``total_timesteps``, ``num_timesteps`` and ``time/fps`` count steps that are not masked.

    Related methods are settings: ``alpha_traj=0`` (step level only), ``alpha_step=0`` (trajectory level only),
    ``kl_coef=0``, and GRPO: ``alpha_step=0, alpha_traj=1, outcome_reward="success"`` on groups with ``stop_on="never"``.

    :param policy: "MlpPolicy", "CnnPolicy", "MultiInputPolicy", "OpenVLAPolicy" or a class that implements
        :class:`~sb3_tgrpo.policies.GroupPolicy`.
    :param env: Groups made by :func:`~sb3_tgrpo.envs.make_group_env`, a ``SyncGroupVectorEnv``, or the id of a Gymnasium
        environment with seeded resets, of which one group is made.
    :param learning_rate: The paper's 1e-5 suits LoRA on a large model; small networks need more.
    :param group_size: Members of a group, N. None: as in ``env``, or 4 (paper, section V-D) where TGRPO makes the group.
    :param groups_per_update: Groups sampled for one update, a multiple of those that ``env`` steps at once. None: as many.
    :param batch_size: Steps per minibatch, shuffled over all groups. None: one whole group per minibatch.
    :param n_epochs: Passes over the rollout.
    :param micro_batch_size: Steps per forward and backward pass; gradients are summed, so it changes memory, not the update.
    :param alpha_step: Weight of the step level, alpha_1 of eq. (4).
    :param alpha_traj: Weight of the trajectory level, alpha_2 of eq. (4).
    :param clip_range: Clip range, eps of eq. (6), below and above. May be a function of the remaining progress.
    :param clip_range_high: Clip range above, for an asymmetric clip.
    :param kl_coef: Weight of the KL term, beta of eq. (6).
    :param ratio_level: Whether eq. (5) is the ratio of the whole action or of each of its tokens.
    :param outcome_reward: GRPO: one reward per trajectory instead of one per step, ``"success"`` (1 or 0, from
        ``info["is_success"]``) or ``"return"``. Needs ``alpha_step=0`` and groups with ``stop_on="never"``: in a group that
        stops at its first success, a slower success looks like a failure.
    :param max_grad_norm: Largest norm of the gradient.
    :param temperature: Sampling temperature; log-probabilities are taken at the same temperature.
    :param target_kl: Stop the update before the step in which the KL to the sampling policy exceeds 1.5 times this.
    :param min_spread: A group whose spread is not above this gives no advantage.
    :param gamma: Discount of the trajectory level's rewards. With 1, as in the paper (section III), a success counts the same
        however long it took; below 1 the faster of two is better.
    :param compare_ended: Whether members that have ended stay in the step level's comparisons with what they had last
        (:func:`~sb3_tgrpo.advantages.step_advantages`).
    :param rollout_buffer_class: Rollout buffer, :class:`~sb3_tgrpo.buffers.GroupedRolloutBuffer` by default.
    :param rollout_buffer_kwargs: Keyword arguments of the rollout buffer.
    :param stats_window_size: Episodes over which ``rollout/ep_rew_mean`` and the like are averaged.
    :param tensorboard_log: Folder of the TensorBoard log, None for none.
    :param policy_kwargs: Keyword arguments of the policy.
    :param verbose: 0 none, 1 info, 2 debug.
    :param seed: Seed of everything random: starts, sampling, initialisation, order of minibatches. Given to ``load``, another
        one than the saved model's starts a new random sequence instead of going on with the saved one.
    :param device: "auto", "cpu", "cuda", ...
    :param _init_setup_model: Whether to build the networks at creation.
    :raises ValueError: On settings that do not fit together, named with their values.
    :raises TypeError: On an environment that is not grouped.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": ActorPolicy,
        "CnnPolicy": ActorCnnPolicy,
        "MultiInputPolicy": ActorMultiInputPolicy,
    }
    policy: GroupPolicy  # type: ignore[assignment]
    rollout_buffer: GroupedRolloutBuffer  # type: ignore[assignment]
    objective = "TGRPO"
    """What is optimised: parameters of another objective are not loaded."""
    saves_on_interrupt = True
    """Whether Ctrl-C saves the model; False where another program does. Not saved itself."""

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: GymEnv | str | None,
        learning_rate: float | Schedule = defaults.LEARNING_RATE,
        group_size: int | None = None,
        groups_per_update: int | None = None,
        batch_size: int | None = None,
        n_epochs: int = 1,
        micro_batch_size: int | None = None,
        alpha_step: float = defaults.ALPHA_STEP,
        alpha_traj: float = defaults.ALPHA_TRAJ,
        clip_range: float | Schedule = defaults.CLIP_RANGE,
        clip_range_high: float | None = None,
        kl_coef: float = defaults.KL_COEF,
        ratio_level: RatioLevel = "action",
        outcome_reward: OutcomeReward | None = None,
        max_grad_norm: float = defaults.MAX_GRAD_NORM,
        temperature: float = 1.0,
        target_kl: float | None = None,
        min_spread: float = MIN_SPREAD,
        gamma: float = 1.0,
        compare_ended: bool = False,
        rollout_buffer_class: type[GroupedRolloutBuffer] | None = None,
        rollout_buffer_kwargs: dict[str, Any] | None = None,
        stats_window_size: int = 100,
        tensorboard_log: str | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        verbose: int = 0,
        seed: int | None = None,
        device: th.device | str = "auto",
        _init_setup_model: bool = True,
    ) -> None:
        super().__init__(
            policy,  # type: ignore[arg-type]
            _make_groups(env, group_size),  # type: ignore[arg-type]
            learning_rate,
            n_steps=1,  # rollouts are whole groups, whatever their length
            gamma=gamma,
            gae_lambda=1.0,  # the rest belongs to a critic or to gSDE
            ent_coef=0.0,
            vf_coef=0.0,
            max_grad_norm=max_grad_norm,
            use_sde=False,
            sde_sample_freq=-1,
            rollout_buffer_class=rollout_buffer_class or GroupedRolloutBuffer,  # type: ignore[arg-type]
            rollout_buffer_kwargs=rollout_buffer_kwargs,
            stats_window_size=stats_window_size,
            tensorboard_log=tensorboard_log,
            policy_kwargs=policy_kwargs,
            verbose=verbose,
            seed=seed,
            device=device,
            _init_setup_model=False,
            supported_action_spaces=(spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary),
        )
        self.group_size = group_size
        self.groups_per_update = groups_per_update
        self.batch_size = batch_size
        self.n_epochs = n_epochs
        self.micro_batch_size = micro_batch_size
        self.alpha_step = alpha_step
        self.alpha_traj = alpha_traj
        self.clip_range = clip_range
        self.clip_range_high = clip_range_high
        self.kl_coef = kl_coef
        self.ratio_level = ratio_level
        self.outcome_reward = outcome_reward
        self.temperature = temperature
        self.target_kl = target_kl
        self.min_spread = min_spread
        self.compare_ended = compare_ended
        self.saved_objective = self.objective
        self._reference_frozen = False
        # The environment's counter of resets and steps when the last rollout ended; None if one was cut short.
        self._moves: int | None = None

        if _init_setup_model:
            self._setup_model()

    # ------------------------------------------------------------------ set-up

    def _setup_model(self) -> None:
        if self.saved_objective != self.objective:
            raise ValueError(f"{self.saved_objective} saved this: load it with {self.saved_objective}.load().")
        self._check_settings()
        if self.env is not None:
            self._check_groups(self.env)
        self.rollout_buffer_kwargs = {**self.rollout_buffer_kwargs, "group_size": self.group_size}
        super()._setup_model()
        missing = [name for name in GROUP_POLICY_METHODS if not hasattr(self.policy, name)]
        if missing:
            raise ValueError(
                f"{self.policy_class.__name__} can't be trained by TGRPO, it lacks {', '.join(missing)}: choose one of "
                f"{', '.join([*self.policy_aliases, 'OpenVLAPolicy'])}, or implement sb3_tgrpo.policies.GroupPolicy."
            )
        self.policy.temperature = self.__dict__["temperature"]
        if self._reference_frozen:  # saved: its parameters find their place
            self.policy.freeze_reference()
        self.clip_range = FloatSchedule(self.clip_range)

    @property
    def temperature(self) -> float:
        """Sampling temperature of the policy; log-probabilities are taken at the same temperature."""
        policy = self.__dict__.get("policy")
        return self.__dict__["temperature"] if policy is None else policy.temperature

    @temperature.setter
    def temperature(self, value: float) -> None:
        self.__dict__["temperature"] = value
        if "policy" in self.__dict__:
            self.policy.temperature = value

    @property
    def _needs_reference(self) -> bool:
        """Whether the update compares the policy with its reference."""
        return self.kl_coef != 0.0

    def _check_settings(self) -> None:
        if "temperature" in self.policy_kwargs:
            raise ValueError("policy_kwargs={'temperature': ...}: pass temperature to TGRPO itself, which sets the policy's.")
        check_number("n_epochs", self.n_epochs, int)
        for name in ("batch_size", "micro_batch_size", "groups_per_update", "group_size"):
            check_number(name, getattr(self, name), int, optional=True)
        for name in ("temperature", "max_grad_norm"):
            check_number(name, getattr(self, name), positive=True)
        for name in ("target_kl", "clip_range_high"):
            check_number(name, getattr(self, name), positive=True, optional=True)
        for name in ("kl_coef", "alpha_step", "alpha_traj", "min_spread"):
            check_number(name, getattr(self, name))
        check_number("gamma", self.gamma, positive=True, high=1.0, why=", which does not discount")
        if not callable(self.clip_range):
            check_number("clip_range", self.clip_range, positive=True, why=": with 0 nothing is learned")
        if not callable(self.learning_rate):
            check_number("learning_rate", self.learning_rate)
        if self.alpha_step == self.alpha_traj == 0.0:
            raise ValueError("alpha_step=0 and alpha_traj=0 leave no advantage: give one of the two levels a weight.")
        typed(RatioLevel, self.ratio_level, "ratio_level")
        typed(Literal[OutcomeReward, None], self.outcome_reward, "outcome_reward")
        if self.outcome_reward is not None and self.alpha_step != 0.0:
            raise ValueError(
                f"outcome_reward={self.outcome_reward!r} leaves no rewards of steps to compare: set alpha_step=0 "
                f"(it is {self.alpha_step}) and alpha_traj=1."
            )

    def set_env(self, env: GymEnv, force_reset: bool = True) -> None:
        """
        Go on in other groups, as many and as large as those so far.

        :param env: Groups, or what the constructor makes groups of.
        :param force_reset: Whether ``learn`` starts new groups. Other groups than those so far always start anew.
        :raises ValueError: If they have another size, number or spaces, or a stop rule that ``outcome_reward`` excludes.
        """
        env = self._wrap_env(_make_groups(env, self.group_size, self.n_envs), self.verbose)  # type: ignore[arg-type]
        self._check_groups(env)
        if self.env is None or groups_of(env) is not groups_of(self.env):
            self._moves = None
        super().set_env(env, force_reset)

    def _check_groups(self, env: VecEnv) -> None:
        groups = groups_of(env)
        if self.group_size not in (None, groups.group_size):
            raise ValueError(
                f"group_size={self.group_size}, but env has groups of {groups.group_size}: make it with "
                f"make_group_env(..., group_size={self.group_size}), or let a new TGRPO take the env's size (group_size=None)."
            )
        self.group_size = groups.group_size
        if self.groups_per_update is not None and self.groups_per_update % groups.n_groups != 0:
            raise ValueError(
                f"groups_per_update={self.groups_per_update} is not a multiple of the {groups.n_groups} groups of env."
            )
        if self.outcome_reward is not None and groups.stop_on != "never":
            raise ValueError(
                f"outcome_reward={self.outcome_reward!r} needs groups with stop_on='never', not {groups.stop_on!r}: a member "
                "that is cut short has no outcome. Use make_group_env(..., stop_on='never')."
            )
        check_wrappers(env)

    @staticmethod
    def _wrap_env(env: GymEnv, verbose: int = 0, monitor_wrapper: bool = True) -> VecEnv:
        if isinstance(env, gym.vector.VectorEnv) and hasattr(env, "step_groups"):
            from sb3_tgrpo.envs import GroupVecEnv

            env = GroupVecEnv(env)
        if not isinstance(env, VecEnv) or not hasattr(env.unwrapped, "group_size"):
            raise TypeError(
                f"TGRPO needs groups that start alike and step together, not {env}: "
                "use sb3_tgrpo.envs.make_group_env(env_id, group_size=4)."
            )
        return OnPolicyAlgorithm._wrap_env(env, verbose, monitor_wrapper=False)

    def _get_policy_from_name(self, policy_name: str) -> type[BasePolicy]:
        if policy_name == "OpenVLAPolicy":
            from sb3_tgrpo.openvla.policy import OpenVLAPolicy

            return OpenVLAPolicy
        if policy_name not in self.policy_aliases:
            known = ", ".join([*self.policy_aliases, "OpenVLAPolicy"])
            raise ValueError(f"Policy {policy_name!r} is unknown: choose one of {known}, or pass a class.")
        return self.policy_aliases[policy_name]

    # ------------------------------------------------------------------ rollouts

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: GroupedRolloutBuffer,  # type: ignore[override]
        n_rollout_steps: int,
    ) -> bool:
        """
        Sample ``groups_per_update`` whole groups and compute their advantages.

        :param env: The groups.
        :param callback: Called at every step, and at the beginning and the end.
        :param rollout_buffer: Filled with the groups.
        :param n_rollout_steps: Unused: a rollout is as long as its groups.
        :return: False if the callback asked to stop.
        """
        self.policy.set_training_mode(False)
        rollout_buffer.reset()
        self._start_anew_if_moved(env)
        callback.on_rollout_start()
        self._start_anew_if_moved(env)  # the callback may have played in it
        self._before_rollout = self._attributes_to_save()
        self._moves = None
        try:
            return self._sample_groups(env, callback, rollout_buffer)
        finally:
            groups_of(env).resume()

    def _start_anew_if_moved(self, env: VecEnv) -> None:
        """New groups where the last rollout was cut short, or somebody else has reset or stepped the environment since."""
        groups = groups_of(env)
        if self._moves != groups.n_moves:
            self._last_obs = env.reset()  # type: ignore[assignment]
            self._moves = groups.n_moves

    def _sample_groups(self, env: VecEnv, callback: BaseCallback, rollout_buffer: GroupedRolloutBuffer) -> bool:
        started = time.perf_counter()
        groups = groups_of(env)
        to_sample = np.full(groups.n_groups, (self.groups_per_update or groups.n_groups) // groups.n_groups)
        successes: list[np.ndarray] = []
        n_steps = n_slots = n_valid = n_resampled = 0
        decisions: Decisions | None = None
        n_moves = groups.n_moves

        while to_sample.any():
            if groups.n_moves != n_moves:
                raise ValueError(
                    "The training environment was reset or stepped in the middle of a rollout, by a callback such as "
                    "EvalCallback: give the callback an environment of its own, or let it play at the rollout's start or end."
                )
            # Where groups take turns the step that comes back is another group's, sampled one turn ago: its rows are kept.
            decisions = self._sample_actions(groups.active, decisions)
            actions = decisions.actions  # SB3's callbacks look for this name
            clipped_actions = self._environment_actions(actions)
            new_obs, rewards, dones, infos = env.step(clipped_actions)
            n_moves, valid = groups.n_moves, groups.valid

            rollout_buffer.add(decisions.obs, actions, rewards, decisions.log_probs, valid, _step_signal(infos, rewards))
            resampled = np.array([info.get("resampled", False) for info in infos])
            n_discarded = 0
            for group in np.flatnonzero(resampled.reshape(-1, groups.group_size).any(axis=1)):
                n_discarded += rollout_buffer.discard_group(int(group))
                n_resampled += 1
            for group in np.flatnonzero(dones.reshape(-1, groups.group_size).all(axis=1)):
                members = infos[group * groups.group_size : (group + 1) * groups.group_size]
                rollout_buffer.end_group(int(group), self._outcomes(members))
                successes.append(np.array([info.get("is_success", np.nan) for info in members], dtype=float))
                to_sample[group] -= 1
                if to_sample[group] == 0:
                    groups.pause([int(group)])

            n_steps += 1
            n_slots += groups.group_size * int((valid | resampled).reshape(-1, groups.group_size).any(axis=1).sum())
            n_new = int(valid.sum()) - n_discarded  # may be negative: a group that is sampled again takes its steps back
            n_valid += n_new
            self.num_timesteps += n_new
            self._last_obs = new_obs  # type: ignore[assignment]
            self._update_info_buffer(infos, dones)
            callback.update_locals(locals())
            if not callback.on_step():
                return False

        self._moves = n_moves
        rollout_buffer.compute_advantages(self.alpha_step, self.alpha_traj, self.min_spread, self.compare_ended)
        self._record_rollout(np.array(successes), n_valid / n_slots, time.perf_counter() - started)
        self.logger.record("rollout/resampled_groups", n_resampled)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _sample_actions(self, active: np.ndarray, before: Decisions | None) -> Decisions:
        """
        :param active: ``(num_envs,)`` bool, environments that need an action.
        :param before: Latest decisions of all environments, None before the first.
        :return: Copy of ``before`` with the rows of ``active`` replaced. Other rows are ignored, or of a step on its way.
        """
        rows = np.flatnonzero(active)
        if len(rows) == 0:
            assert before is not None  # a step is on its way
            return before
        obs: Any = self._last_obs
        if len(rows) < len(active):
            obs = {key: value[rows] for key, value in obs.items()} if isinstance(obs, dict) else obs[rows]
        with th.no_grad():
            actions, log_probs = self.policy.sample_actions(obs_as_tensor(obs, self.device))
        new = Decisions(obs, actions.cpu().numpy(), log_probs.float().cpu().numpy())
        if len(rows) == len(active):
            return new
        if before is None:
            place = np.zeros(len(active), dtype=np.int64)
            place[rows] = np.arange(len(rows))
            return Decisions(self._last_obs, new.actions[place], new.log_probs[place])  # type: ignore[arg-type]
        return before.with_rows(rows, new)

    def _environment_actions(self, actions: np.ndarray) -> np.ndarray:
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            return self.policy.unscale_action(actions)  # type: ignore[attr-defined]
        return np.clip(actions, self.action_space.low, self.action_space.high)

    def _outcomes(self, infos: list[dict[str, Any]]) -> np.ndarray | None:
        if self.outcome_reward is None:
            return None
        if self.outcome_reward == "return":
            return np.array([info["episode"]["r"] for info in infos])
        if any("is_success" not in info for info in infos):
            raise ValueError(
                "outcome_reward='success', but the environment reports no info['is_success']: report it, or use 'return'."
            )
        return np.array([float(info["is_success"]) for info in infos])

    def _record_rollout(self, successes: np.ndarray, valid_fraction: float, seconds: float) -> None:
        """Log a rollout; ``successes`` ``(n_groups, group_size)`` are nan where the environment does not report success."""
        buffer = self.rollout_buffer
        spread = buffer.compared_returns.std(axis=-1, ddof=1)
        self.logger.record("rollout/group_rew_std", float(spread.mean()))
        self.logger.record("rollout/zero_std_groups", float((spread <= self.min_spread).mean()))
        self.logger.record("rollout/group_len_mean", float(buffer.mask.any(axis=-1).sum(axis=0).mean()))
        self.logger.record("rollout/valid_fraction", valid_fraction)
        if np.isfinite(successes).all():
            rate = successes.mean(axis=-1)
            self.logger.record("rollout/group_success_rate", float((rate > 0).mean()))
            self.logger.record("rollout/mixed_groups", float(((rate > 0) & (rate < 1)).mean()))
        self.logger.record("time/rollout_seconds", seconds)

    # ------------------------------------------------------------------ update

    def train(self) -> None:
        """Update the policy with the groups of the rollout buffer, eq. (6)."""
        started = time.perf_counter()
        self._before_rollout = None  # from here on the rollout's steps are used
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        metrics: dict[str, list[float]] = defaultdict(list)
        stop = False
        for _ in range(self.n_epochs):
            minibatches = self.rollout_buffer.minibatches(self.batch_size, self._generator)
            for batch in minibatches:
                result = self._accumulate_gradient(batch, len(minibatches))
                stop = self.target_kl is not None and result["approx_kl"] > 1.5 * self.target_kl
                if not stop:
                    result["grad_norm"] = self._optimizer_step()
                for name, value in result.items():
                    metrics[name].append(value)
                if stop:
                    break
            self._n_updates += 1
            if stop:
                break
        for name, values in metrics.items():
            if name != "ratio_error":
                self.logger.record(f"train/{name}", float(np.mean(values)))
        # Before the first optimizer step the ratio should be 1: what is left is a difference between sampling and scoring.
        self.logger.record("train/ratio_error_first", metrics["ratio_error"][0])
        self.logger.record("train/early_stop", float(stop))
        self.logger.record("train/optimizer_steps", len(metrics["grad_norm"]))
        self.logger.record("train/clip_range", float(self.clip_range(self._current_progress_remaining)))  # type: ignore[operator]
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("time/update_seconds", time.perf_counter() - started)

    def _accumulate_gradient(self, batch: np.ndarray, n_minibatches: int = 1) -> dict[str, float]:
        """Gradient of eq. (6) over one minibatch, in micro-batches, and what to watch."""
        self.policy.optimizer.zero_grad()
        totals: dict[str, float] = defaultdict(float)
        ratio_error = 0.0
        for samples in self.rollout_buffer.samples(batch, self.micro_batch_size, n_minibatches):
            loss, result = self._loss(samples)
            loss.backward()
            share = len(samples.advantages) / len(batch)
            ratio_error = max(ratio_error, result.pop("ratio_error"))
            totals["loss"] += loss.item()
            totals["kl_loss"] += result.pop("kl_loss")
            for name, value in result.items():
                totals[name] += share * value
        totals["policy_gradient_loss"] = totals["loss"] - self.kl_coef * totals["kl_loss"]
        self._check_finite("loss", totals["loss"])
        return {**totals, "ratio_error": ratio_error}

    def _loss(self, samples: GroupedRolloutBufferSamples) -> tuple[th.Tensor, dict[str, float]]:
        log_prob, entropy = self.policy.action_log_prob(samples.observations, samples.actions)
        old_log_prob = samples.old_log_prob
        ref_log_prob = None
        if self.kl_coef != 0.0:
            ref_log_prob = self._reference_log_prob(samples)
        if self.ratio_level == "action":
            log_prob, old_log_prob = log_prob.sum(dim=-1), old_log_prob.sum(dim=-1)
            ref_log_prob = None if ref_log_prob is None else ref_log_prob.sum(dim=-1)
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        loss = tgrpo_loss(
            log_prob,
            old_log_prob,
            samples.advantages,
            clip_range=clip_range,
            clip_range_high=self.clip_range_high,
            ref_log_prob=ref_log_prob,
            kl_coef=self.kl_coef,
            weight=samples.weight,
        )
        result = ratio_statistics(log_prob.detach(), old_log_prob, clip_range, self.clip_range_high)
        result["entropy_loss"] = -entropy.detach().mean().item()
        result["kl_loss"] = 0.0
        if ref_log_prob is not None:
            kl = k3_kl(log_prob.detach(), ref_log_prob)
            result["kl_loss"] = (samples.weight * kl.reshape(len(kl), -1).mean(dim=-1)).sum().item()
        return loss, result

    def _reference_log_prob(self, samples: GroupedRolloutBufferSamples) -> th.Tensor:
        """``(batch, K)``, computed the first time that it is asked for."""
        if samples.ref_log_prob is not None:
            return samples.ref_log_prob
        ref_log_prob = self.policy.reference_log_prob(samples.observations, samples.actions)
        self.rollout_buffer.keep_reference(samples, ref_log_prob)
        return ref_log_prob

    def _optimizer_step(self) -> float:
        parameters = [p for group in self.policy.optimizer.param_groups for p in group["params"]]
        grad_norm = th.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm).item()
        self._check_finite("norm of the gradient", grad_norm)
        self.policy.optimizer.step()
        return grad_norm

    def _check_finite(self, name: str, value: float) -> None:
        if not np.isfinite(value):
            raise ValueError(
                f"The {name} is {value} after {self._n_updates} updates: lower learning_rate (now "
                f"{self.lr_schedule(self._current_progress_remaining):g}), set target_kl, or look at the rewards."
            )

    # ------------------------------------------------------------------ learning, saving, resuming

    def learn(
        self: SelfTGRPO,
        total_timesteps: int = defaults.TOTAL_TIMESTEPS,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "TGRPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfTGRPO:
        """
        Sample groups and update the policy until ``total_timesteps`` valid steps have been made.

        Ctrl-C saves ``tgrpo_interrupted_DATE-TIME_PROCESS.zip`` (into ``tensorboard_log`` if given, else the current folder)
        before it ends, unless :attr:`saves_on_interrupt` is set to False.

        :param total_timesteps: Steps that count; the last rollout is completed.
        :param callback: Called at every step.
        :param log_interval: Updates between logs.
        :param tb_log_name: Name of the run for TensorBoard.
        :param reset_num_timesteps: False goes on counting, after ``load`` for instance.
        :param progress_bar: Show a progress bar.
        :return: This algorithm.
        """
        try:
            super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
        except KeyboardInterrupt:
            if not self.saves_on_interrupt:
                raise
            name = f"{self.objective.lower()}_interrupted_{time.strftime('%Y%m%d-%H%M%S')}_{os.getpid()}.zip"
            path = pathlib.Path(self.tensorboard_log or ".") / name
            self.save(path)
            print(
                f"\nInterrupted after {self.num_timesteps} steps, saved as it was before the unfinished rollout. "
                f"Go on with {type(self).__name__}.load({str(path)!r}, env=env)."
            )
            raise
        if self.logger.name_to_value:  # SB3 logs before it trains: without this the last update would be missing
            self.logger.dump(self.num_timesteps)
        return self

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> tuple[int, BaseCallback]:
        self._check_settings()  # they may have been changed since
        self.clip_range = FloatSchedule(self.clip_range)
        if self._needs_reference and not self._reference_frozen:
            self.policy.freeze_reference()
            self._reference_frozen = True
        resets = reset_num_timesteps or self._last_obs is None
        result = super()._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if resets:
            self._moves = groups_of(self.env).n_moves  # type: ignore[arg-type]
        return result

    def _init_callback(self, callback: MaybeCallback, progress_bar: bool = False) -> BaseCallback:
        callback = super()._init_callback(callback)
        if progress_bar:
            callback = CallbackList([callback, ValidStepsProgressBar()])
            callback.init_callback(self)
        return callback

    @classmethod
    def load(
        cls: type[SelfTGRPO],
        path: str | pathlib.Path | io.BufferedIOBase,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfTGRPO:
        """
        Load a model, see SB3's ``load``.

        :param path: File that :meth:`save` has written.
        :param env: Groups, or what the constructor makes one group of; None for prediction only.
        :param device: Device of the model.
        :param custom_objects: Objects that replace saved ones, by name.
        :param print_system_info: Whether to print versions, those saved and those of now.
        :param force_reset: Whether ``learn`` starts new groups.
        :param kwargs: Attributes of the model to change.
        :return: The model.
        """
        if isinstance(env, (str, gym.Env)):
            data, *_ = load_from_zip_file(path, device="cpu", custom_objects=custom_objects)
            if isinstance(path, io.BufferedIOBase):
                path.seek(0)
            env = _make_groups(env, (data or {}).get("group_size"))
        return super().load(path, env, device, custom_objects, print_system_info, force_reset, **kwargs)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_moves", "saves_on_interrupt"]

    def _attributes_to_save(self) -> dict[str, Any]:
        return {**super()._attributes_to_save(), "temperature": self.temperature}  # may have been set at the policy


def _make_groups(env: GymEnv | str | None, group_size: int | None, n_envs: int | None = None) -> GymEnv | None:
    """Make groups of an environment id, or of an environment that knows how it was made: one, or enough for ``n_envs``."""
    maker: Any = None
    if isinstance(env, str):
        maker = env
    elif isinstance(env, gym.Env) and env.spec is not None:
        spec = env.spec
        maker = lambda: gym.make(spec)  # noqa: E731
    if maker is None:
        return env  # type: ignore[return-value]
    from sb3_tgrpo.envs import make_group_env  # the one place where the algorithm reaches for an environment

    check_number("group_size", group_size, int, optional=True)
    size = group_size or defaults.GROUP_SIZE
    return make_group_env(maker, size, 1 if n_envs is None else n_envs // size)


def _step_signal(infos: list[dict[str, Any]], rewards: np.ndarray) -> np.ndarray:
    return np.array([info.get("step_signal", reward) for info, reward in zip(infos, rewards, strict=True)], dtype=np.float64)
