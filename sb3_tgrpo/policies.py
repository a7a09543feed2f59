"""What TGRPO asks of a policy, and critic-free policies for ordinary Gymnasium tasks."""

from typing import Protocol

import torch as th
from stable_baselines3.common.type_aliases import PyTorchObs


class GroupPolicy(Protocol):
    """
    The interface between :class:`~sb3_tgrpo.tgrpo.TGRPO` and a policy. ``OpenVLAPolicy`` implements it beside SB3's
    actor-critic contract; the policies of this module implement it alone.

    ``K`` is the number of tokens that make up one action (7 for OpenVLA, 1 for an ordinary policy). Actions here are what
    is *stored and scored* (token ids for OpenVLA); ``unscale_action`` turns them into environment actions when
    ``squash_output`` is True, exactly as for SB3's own algorithms, and they are clipped to the Box otherwise.
    """

    temperature: float
    """Sampling temperature; both methods below use it, so recorded and re-computed log-probabilities are of one density."""

    squash_output: bool
    optimizer: th.optim.Optimizer

    def sample_actions(self, obs: PyTorchObs) -> tuple[th.Tensor, th.Tensor]:
        """
        Sample one action for each observation. TGRPO calls it without gradient, in evaluation mode.

        :param obs: Observations as ``obs_as_tensor`` gives them, batch first (images stay uint8).
        :return: actions ``(batch, *stored_action_shape)`` and their float32 log-probabilities ``(batch, K)``.
        """
        ...

    def action_log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """
        Log-probability of stored actions under the current parameters, with gradient, at ``temperature``.

        :return: log-probabilities ``(batch, K)`` and the entropy of each action's distribution ``(batch,)``, both float32.
        """
        ...

    def reference_log_prob(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """
        Log-probability ``(batch, K)`` of stored actions under the reference policy of eq. (7), the policy training
        started from: with LoRA the same weights with the adapter disabled, otherwise a frozen copy. No gradient.
        """
        ...

    def freeze_reference(self) -> None:
        """Make the current parameters the reference. TGRPO calls it once, when the first ``learn`` starts."""
        ...
