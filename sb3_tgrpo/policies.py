"""What TGRPO asks of a policy, and critic-free policies for ordinary Gymnasium tasks."""

import copy
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution, make_proba_distribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    FlattenExtractor,
    NatureCNN,
    create_mlp,
)
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn


class GroupPolicy(Protocol):
    """
    The interface between :class:`~sb3_tgrpo.tgrpo.TGRPO` and a policy, which is a ``BasePolicy`` of Stable-Baselines3 with
    these methods. ``OpenVLAPolicy`` implements it beside SB3's actor-critic contract, the policies of this module alone.

    TGRPO calls the class with the two spaces, a learning-rate schedule, ``use_sde=False`` and its ``policy_kwargs``.

    ``K`` is the number of tokens that make up one action (7 for OpenVLA, 1 for an ordinary policy). Actions here are what
    is *stored and scored* (token ids for OpenVLA); ``unscale_action`` turns them into environment actions when
    ``squash_output`` is True, exactly as for SB3's own algorithms, and they are clipped to the Box otherwise.
    """

    temperature: float
    """Sampling temperature; both methods below use it, so recorded and re-computed log-probabilities are of one density."""

    squash_output: bool
    optimizer: th.optim.Optimizer

    def set_training_mode(self, mode: bool) -> None:
        """Training mode (True) in updates, evaluation mode in rollouts. The reference stays in evaluation mode."""

    def sample_actions(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        Sample one action for each observation. TGRPO calls it without gradient, in evaluation mode.

        :param obs: Observations as ``obs_as_tensor`` gives them, batch first (images stay uint8).
        :return: Actions ``(batch, *stored_action_shape)`` and their float32 log-probabilities ``(batch, K)``.
        """

    def action_log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Log-probability of stored actions under the current parameters, with gradient, at ``temperature``.

        :return: Log-probabilities ``(batch, K)`` and the entropy of each action's distribution ``(batch,)``, both float32.
        """

    def reference_log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        Log-probability ``(batch, K)`` of stored actions under the reference policy of eq. (7), the policy training
        started from: with LoRA the same weights with the adapter disabled, otherwise a frozen copy. No gradient. Asked
        once for each step of a rollout, so it must not depend on the epoch.
        """

    def freeze_reference(self) -> None:
        """Make the current parameters the reference. TGRPO calls it once, when the first ``learn`` starts."""


class Decisions(NamedTuple):
    """Latest observation, action and log-probability of each environment, ``(num_envs, ...)`` each."""

    obs: np.ndarray | dict[str, np.ndarray]
    actions: np.ndarray
    log_probs: np.ndarray

    def with_rows(self, rows: np.ndarray, new: "Decisions") -> "Decisions":
        """A copy with these rows replaced."""
        obs: Any = new.obs
        before: Any = self.obs
        if isinstance(obs, dict):
            merged: Any = {key: _with_rows(before[key], rows, value) for key, value in obs.items()}
        else:
            merged = _with_rows(before, rows, obs)
        return Decisions(merged, _with_rows(self.actions, rows, new.actions), _with_rows(self.log_probs, rows, new.log_probs))


def _with_rows(old: np.ndarray, rows: np.ndarray, new: np.ndarray) -> np.ndarray:
    result = old.copy()
    result[rows] = new
    return result


class ActorPolicy(BasePolicy):
    """
    Actor without a critic: features extractor, a multi-layer perceptron and an action distribution. Implements
    :class:`GroupPolicy` for ordinary Gymnasium tasks; the aliases below choose the features extractor.

    :param observation_space: Observation space.
    :param action_space: Discrete, MultiDiscrete, MultiBinary or Box (a diagonal Gaussian with learned deviations).
    :param lr_schedule: Learning rate schedule (could be constant).
    :param net_arch: Units of the hidden layers after the features extractor. There is no critic: of SB3's
        ``dict(pi=..., vf=...)``, ``pi`` is used.
    :param activation_fn: Activation function.
    :param ortho_init: Orthogonal initialisation, as SB3's on-policy algorithms use it.
    :param log_std_init: Initial log standard deviation of a Gaussian.
    :param temperature: Sampling temperature T: actions are sampled from, and scored under, density ``p^(1/T)`` (normalised).
    :param features_extractor_class: Features extractor; None: :attr:`default_features_extractor`.
    :param features_extractor_kwargs: Keyword arguments of the features extractor.
    :param normalize_images: Whether to divide images by 255.
    :param optimizer_class: Optimizer, AdamW by default (paper, section V-A).
    :param optimizer_kwargs: Keyword arguments of the optimizer, excluding the learning rate.
    :param use_sde: Not available; SB3 passes the argument to every policy.
    """

    default_features_extractor: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        log_std_init: float = 0.0,
        temperature: float = 1.0,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        use_sde: bool = False,
    ) -> None:
        if use_sde:
            raise ValueError("use_sde=True: TGRPO records the log-probability of each action, which gSDE noise does not have.")
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or self.default_features_extractor,
            features_extractor_kwargs,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
        )
        if isinstance(net_arch, list) and net_arch and isinstance(net_arch[0], dict):
            warnings.warn(
                f"net_arch={net_arch}: a list around a dictionary is SB3's old form. Give the dictionary.", stacklevel=2
            )
            net_arch = net_arch[0]
        if isinstance(net_arch, dict):
            net_arch = net_arch.get("pi", [])
        if net_arch is None:  # NatureCNN already ends in a layer of 512 units
            net_arch = [] if self.features_extractor_class is NatureCNN else [64, 64]
        self.net_arch = net_arch
        self.activation_fn = activation_fn
        self.ortho_init = ortho_init
        self.log_std_init = log_std_init
        self.temperature = temperature
        self.action_dist = make_proba_distribution(action_space)
        self.actor = _Actor(self.make_features_extractor(), self.net_arch, activation_fn, self.action_dist, log_std_init)
        if ortho_init:
            self.actor.latent.apply(partial(self.init_weights, gain=float(np.sqrt(2))))
            self.actor.features_extractor.apply(partial(self.init_weights, gain=float(np.sqrt(2))))
            self.actor.action_net.apply(partial(self.init_weights, gain=0.01))
        self.reference: _Actor | None = None
        # Of a saved policy and this one, one may hold a reference and the other none yet.
        self.register_load_state_dict_pre_hook(_reconcile_own_reference)
        self.optimizer = self.optimizer_class(self.actor.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def sample_actions(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`GroupPolicy.sample_actions`."""
        distribution = self._distribution(self.actor, obs)
        actions = distribution.sample()
        return actions.reshape((-1, *self.action_space.shape)), self._log_prob(distribution, actions)  # type: ignore[misc]

    def action_log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """See :meth:`GroupPolicy.action_log_prob`."""
        distribution = self._distribution(self.actor, obs)
        entropy = distribution.entropy()
        assert entropy is not None  # only squashed Gaussians have none
        return self._log_prob(distribution, actions), entropy

    def reference_log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """See :meth:`GroupPolicy.reference_log_prob`."""
        if self.reference is None:
            raise RuntimeError("There is no reference policy yet: call freeze_reference() first, as learn() does.")
        with th.no_grad():
            return self._log_prob(self._distribution(self.reference, obs), actions)

    def train(self, mode: bool = True) -> "ActorPolicy":
        """As ``nn.Module.train``; the reference stays in evaluation mode, or normalisation and dropout would change it."""
        super().train(mode)
        if self.reference is not None:
            self.reference.eval()
        return self

    def freeze_reference(self) -> None:
        """See :meth:`GroupPolicy.freeze_reference`."""
        self.reference = copy.deepcopy(self.actor).requires_grad_(False).eval()

    def forward(self, obs: PyTorchObs, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor]:
        """Actions, or the mode of their distribution, and their log-probabilities ``(batch, 1)``."""
        distribution = self._distribution(self.actor, obs)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions.reshape((-1, *self.action_space.shape)), self._log_prob(distribution, actions)  # type: ignore[misc]

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation, deterministic)[0]

    def _distribution(self, actor: "_Actor", obs: PyTorchObs) -> Distribution:
        latent = actor.latent(self.extract_features(obs, actor.features_extractor))
        if isinstance(self.action_dist, DiagGaussianDistribution):
            assert actor.log_std is not None
            log_std = actor.log_std + 0.5 * math.log(self.temperature)  # p^(1/T) of a Gaussian has variance T sigma^2
            return self.action_dist.proba_distribution(actor.action_net(latent), log_std)
        return self.action_dist.proba_distribution(actor.action_net(latent) / self.temperature)

    def _log_prob(self, distribution: Distribution, actions: th.Tensor) -> th.Tensor:
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.reshape(-1)
        elif isinstance(self.action_space, spaces.Box):  # a Gaussian is over the flattened action
            actions = actions.reshape(len(actions), -1)
        return distribution.log_prob(actions).unsqueeze(-1)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return {
            **super()._get_constructor_parameters(),
            "lr_schedule": self._dummy_schedule,
            "net_arch": self.net_arch,
            "activation_fn": self.activation_fn,
            "ortho_init": self.ortho_init,
            "log_std_init": self.log_std_init,
            "temperature": self.temperature,
            "features_extractor_class": self.features_extractor_class,
            "features_extractor_kwargs": self.features_extractor_kwargs,
            "optimizer_class": self.optimizer_class,
            "optimizer_kwargs": self.optimizer_kwargs,
        }


class _Actor(nn.Module):
    """Everything with parameters, so that the reference is one deep copy."""

    def __init__(
        self,
        features_extractor: BaseFeaturesExtractor,
        net_arch: list[int],
        activation_fn: type[nn.Module],
        action_dist: Distribution,
        log_std_init: float,
    ) -> None:
        super().__init__()
        self.features_extractor = features_extractor
        features_dim = features_extractor.features_dim
        self.latent = nn.Sequential(*create_mlp(features_dim, -1, net_arch, activation_fn))
        latent_dim = net_arch[-1] if net_arch else features_dim
        self.log_std: nn.Parameter | None = None
        if isinstance(action_dist, DiagGaussianDistribution):
            self.action_net, self.log_std = action_dist.proba_distribution_net(latent_dim, log_std_init)
        else:
            self.action_net = action_dist.proba_distribution_net(latent_dim)  # type: ignore[assignment]


def _reconcile_own_reference(module: nn.Module, state_dict: dict[str, th.Tensor], prefix: str, *_: Any) -> None:
    assert isinstance(module, ActorPolicy)
    reconcile_reference(module.reference, module.freeze_reference, state_dict, prefix + "reference.")


def reconcile_reference(
    reference: nn.Module | None, freeze: Callable[[], None], state_dict: dict[str, th.Tensor], prefix: str
) -> None:
    """
    Before parameters are loaded: make room for a reference that they hold; where they hold none, the policy's own stays.

    :param reference: The policy's frozen copy, if it has one already.
    :param freeze: Makes one.
    :param state_dict: The parameters, completed in place.
    :param prefix: Of the copy's names.
    """
    if any(key.startswith(prefix) for key in state_dict):
        if reference is None:
            freeze()
    elif reference is not None:
        state_dict.update(reference.state_dict(prefix=prefix))


class ActorCnnPolicy(ActorPolicy):
    """:class:`ActorPolicy` for images: the features extractor is SB3's ``NatureCNN``. See there for the parameters."""

    default_features_extractor = NatureCNN


class ActorMultiInputPolicy(ActorPolicy):
    """:class:`ActorPolicy` for dict observations: the features extractor is SB3's ``CombinedExtractor``."""

    default_features_extractor = CombinedExtractor


GROUP_POLICY_METHODS = (
    "sample_actions", "action_log_prob", "reference_log_prob", "freeze_reference",
    "set_training_mode", "squash_output", "optimizer",
)  # fmt: skip
"""What makes a policy class usable by TGRPO; see :class:`GroupPolicy`."""
