"""Policy adapters for :class:`~sb3_tgrpo.evaluation.player.EpisodePlayer`: actions that depend on the episode alone."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import maybe_transpose
from stable_baselines3.common.utils import obs_as_tensor

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.evaluation.player import PolicyAdapter
from sb3_tgrpo.evaluation.protocol import GREEDY, EpisodeRequest

if TYPE_CHECKING:
    from sb3_tgrpo.openvla.policy import OpenVLAPolicy

Policy = BaseAlgorithm | BasePolicy

# Observations per forward pass. A row's rounding depends on the size of the batch, so it is always filled up to this one:
# results then do not depend on how many environments happen to wait at once.
_CPU_BATCH = 4
_CUDA_BATCH = 8


def episode_seed(seed: int, key: Any) -> int:
    """Seed of an episode's sampling, from the run's seed and what identifies the episode."""
    digest = hashlib.blake2b(repr((seed, key)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


class BatchedTokenPolicy:
    """
    An :class:`~sb3_tgrpo.openvla.policy.OpenVLAPolicy`, batched.

    :param decoding: Greedy or sampled tokens.
    :param seed: Seed of the sampling; every episode has a generator of its own.
    :param batch_size: Observations per forward pass, filled up with copies. None: 4 on CPU, 8 on CUDA.
    """

    def __init__(
        self, policy: "OpenVLAPolicy", decoding: Decoding = GREEDY, seed: int = 0, batch_size: int | None = None
    ) -> None:
        self.policy = policy
        self.decoding = decoding
        self.seed = seed
        self.batch_size = batch_size or (_CUDA_BATCH if policy.device.type == "cuda" else _CPU_BATCH)

    def begin(self, request: EpisodeRequest) -> th.Generator:
        """A generator for the episode."""
        return th.Generator().manual_seed(episode_seed(self.seed, (request.task, request.key)))

    def tokens(self, observations: Sequence[Any], generators: Sequence[th.Generator]) -> th.Tensor:
        """Token ids ``(batch, *action shape)``."""
        n = len(observations)
        rows = [observations[min(i, n - 1)] for i in range(self.batch_size)]
        draws = [*generators, *(th.Generator().manual_seed(0) for _ in range(self.batch_size - n))]
        space = self.policy.observation_space  # channels first where Stable-Baselines3 wrapped the training environment
        if isinstance(space, spaces.Dict):
            batch: Any = {key: maybe_transpose(np.stack([row[key] for row in rows]), part) for key, part in space.items()}
        else:
            batch = maybe_transpose(np.stack(rows), space)
        obs = obs_as_tensor(batch, self.policy.device)
        return self.policy.choose_tokens(obs, self.decoding.temperature, None if self.decoding.greedy else draws)[:n]

    def act(self, observations: Sequence[Any], memories: Sequence[th.Generator]) -> list[np.ndarray]:
        """Environment actions."""
        return list(self.policy.unscale_action(self.tokens(observations, memories).cpu().numpy()))


@dataclass
class _Memory:
    random_state: th.Tensor
    recurrent_state: Any = None
    started: bool = True


class SB3Policy:
    """
    Any other policy of Stable-Baselines3, through ``predict``, one observation at a time (recurrent policies too).

    :param decoding: Greedy (``deterministic=True``), or sampled at the temperature that the model has: ``predict`` takes none.
    :param seed: Seed of the sampling; every episode has its own stream of random numbers.
    :raises ValueError: If the decoding has another temperature.
    """

    batch_size = 1

    def __init__(self, model: Policy, decoding: Decoding = GREEDY, seed: int = 0) -> None:
        if not decoding.greedy and decoding != (own := sampled(model)):
            name = type(sb3_policy(model)).__name__
            raise ValueError(f"temperature={decoding.temperature:g} can't be set for {name}: use 0 or {own.temperature:g}.")
        self.model = model
        self.deterministic = decoding.greedy
        self.seed = seed
        self._normaliser = model.get_vec_normalize_env() if isinstance(model, BaseAlgorithm) else None

    def begin(self, request: EpisodeRequest) -> _Memory:
        """A random stream for the episode."""
        generator = th.Generator(self.model.device).manual_seed(episode_seed(self.seed, (request.task, request.key)))
        return _Memory(generator.get_state())

    def act(self, observations: Sequence[Any], memories: Sequence[_Memory]) -> list[np.ndarray]:
        """Environment actions."""
        return [self._one(observation, memory) for observation, memory in zip(observations, memories, strict=True)]

    def _one(self, observation: Any, memory: _Memory) -> np.ndarray:
        if self._normaliser is not None:
            observation = self._normaliser.normalize_obs(observation)
        cuda = self.model.device.type == "cuda"
        before = th.cuda.get_rng_state(self.model.device) if cuda else th.get_rng_state()
        restore = (lambda state: th.cuda.set_rng_state(state, self.model.device)) if cuda else th.set_rng_state
        restore(memory.random_state)  # distributions draw from torch's global generator
        try:
            action, memory.recurrent_state = self.model.predict(
                observation, memory.recurrent_state, np.array([memory.started]), deterministic=self.deterministic
            )
            memory.random_state = th.cuda.get_rng_state(self.model.device) if cuda else th.get_rng_state()
        finally:
            restore(before)
        memory.started = False
        return action


def sb3_policy(policy: Policy) -> BasePolicy:
    """The policy of an algorithm, or the policy itself."""
    return policy.policy if isinstance(policy, BaseAlgorithm) else policy


def is_vla(policy: Policy) -> bool:
    """Whether a policy is an :class:`~sb3_tgrpo.openvla.policy.OpenVLAPolicy`, without importing that."""
    return hasattr(sb3_policy(policy), "choose_tokens")


def sampled(policy: Policy) -> Decoding:
    """Sampling as the policy was trained: at its own temperature, 1 if it has none."""
    own = (getattr(holder, "temperature", None) for holder in (policy, sb3_policy(policy)))
    return Decoding(next((float(temperature) for temperature in own if temperature is not None), 1.0))


def make_adapter(policy: Policy, decoding: Decoding, seed: int, batch_size: int | None) -> PolicyAdapter:
    """The adapter for a policy; refuses a decoding that the policy can't do."""
    if is_vla(policy):
        return BatchedTokenPolicy(cast("OpenVLAPolicy", sb3_policy(policy)), decoding, seed, batch_size)
    return SB3Policy(policy, decoding, seed)


def check_spaces(policy: BasePolicy, observation_space: spaces.Space, action_space: spaces.Space, task: str) -> None:
    """Refuse a policy that was made for other spaces than an environment has."""
    for name, own, offered in (
        ("observations", policy.observation_space, observation_space),
        ("actions", policy.action_space, action_space),
    ):
        if _shapes(own) != _shapes(offered):
            raise ValueError(
                f"The policy's {name} are {_shapes(own)}, the {name} of {task} are {_shapes(offered)}: see env_kwargs."
            )


def _shapes(space: spaces.Space) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _shapes(part) for key, part in sorted(space.spaces.items())}
    # Stable-Baselines3 turns images channels first, and back in predict.
    return (tuple(sorted(space.shape or ())) if len(space.shape or ()) == 3 else space.shape, str(space.dtype))
