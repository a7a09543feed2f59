"""
A policy of your own: each dimension of an action is one of eleven bins, as tokens of a language model would be.

TGRPO asks a policy for four methods and a few attributes (docs/your_own.md). What is stored and scored are the bins;
`unscale_action` turns them into actions of the environment. Needs MuJoCo, of the extra [libero].

    python examples/08_own_policy.py
"""

import argparse
import copy

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import nn

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import make_group_env

BINS = 11


class BinnedPolicy(BasePolicy):
    """
    Two hidden layers and a softmax over the bins of each dimension.

    :param observation_space: Observation space of one axis.
    :param action_space: A ``Box``.
    :param lr_schedule: Learning rate schedule.
    :param use_sde: Not used; Stable-Baselines3 passes it to every policy.
    """

    temperature = 1.0  # TGRPO sets it; both log-probabilities below are taken at it

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Box, lr_schedule: Schedule, use_sde: bool = False
    ) -> None:
        super().__init__(observation_space, action_space, squash_output=True)
        self.n_dimensions = int(np.prod(action_space.shape))
        hidden = [nn.Linear(spaces.flatdim(observation_space), 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh()]
        self.net = nn.Sequential(*hidden, nn.Linear(64, self.n_dimensions * BINS))
        self.reference: nn.Module | None = None
        self.optimizer = th.optim.AdamW(self.net.parameters(), lr=lr_schedule(1))

    def distribution(self, net: nn.Module, obs: th.Tensor) -> th.distributions.Categorical:
        """Bins of each dimension, ``(batch, K)``, at the temperature."""
        logits = net(obs.float()).view(-1, self.n_dimensions, BINS)
        return th.distributions.Categorical(logits=logits / self.temperature)

    def sample_actions(self, obs: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Sampled bins ``(batch, *shape)`` and their log-probabilities ``(batch, K)``."""
        distribution = self.distribution(self.net, obs)
        bins = distribution.sample()
        return bins.view(-1, *self.action_space.shape), distribution.log_prob(bins)

    def action_log_prob(self, obs: th.Tensor, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        """Log-probabilities of stored bins, with gradient, and the entropy ``(batch,)``."""
        distribution = self.distribution(self.net, obs)
        return distribution.log_prob(actions.view(-1, self.n_dimensions)), distribution.entropy().sum(dim=1)

    def reference_log_prob(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """Log-probabilities of stored bins under the frozen copy, for the KL term."""
        assert self.reference is not None  # learn() freezes it first
        with th.no_grad():
            return self.distribution(self.reference, obs).log_prob(actions.view(-1, self.n_dimensions))

    def freeze_reference(self) -> None:
        """Keep a copy of the policy as it is now."""
        self.reference = copy.deepcopy(self.net).requires_grad_(False)

    def unscale_action(self, scaled_action: np.ndarray) -> np.ndarray:
        """Bins to actions: the first bin is the lowest action, the last one the highest."""
        low, high = self.action_space.low, self.action_space.high  # type: ignore[attr-defined]
        return (low + scaled_action / (BINS - 1) * (high - low)).astype(np.float32)

    def _predict(self, observation: th.Tensor, deterministic: bool = False) -> th.Tensor:
        if not deterministic:
            return self.sample_actions(observation)[0]
        return self.distribution(self.net, observation).logits.argmax(dim=-1).view(-1, *self.action_space.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="InvertedPendulum-v5")
    parser.add_argument("--steps", type=int, default=120_000, help="environment steps that count")
    parser.add_argument("--kl-coef", type=float, default=0.0, help="weight of the KL term; from scratch it only slows down")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    th.set_num_threads(1)  # faster for a network this small

    env = make_group_env(args.env, group_size=8, n_groups=4, stop_on="never", seed=args.seed)
    update = {"learning_rate": 3e-3, "n_epochs": 10, "batch_size": 256, "kl_coef": args.kl_coef}
    model = TGRPO(BinnedPolicy, env, **update, seed=args.seed, device="cpu")
    test = gym.make(args.env)
    test.reset(seed=1000)
    before, _ = evaluate_policy(model, test, 20, warn=False)
    model.learn(args.steps, progress_bar=True)
    after, _ = evaluate_policy(model, test, 20, warn=False)
    print(f"Mean return of 20 greedy episodes: {before:.1f} before, {after:.1f} after.")


if __name__ == "__main__":
    main()
