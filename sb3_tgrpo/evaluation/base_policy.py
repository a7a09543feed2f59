"""
Is a policy a good base for group-relative training? Four numbers: greedy and sampled success, entropy of each action
dimension, and how often the members of a group, sampled from one initial state, do not all end alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th

from sb3_tgrpo.decoding import Decoding
from sb3_tgrpo.envs.groups.worker import WorkerPool
from sb3_tgrpo.evaluation.adapters import BatchedTokenPolicy
from sb3_tgrpo.evaluation.player import EpisodePlayer
from sb3_tgrpo.evaluation.protocol import GREEDY, EpisodeRequest, Protocol
from sb3_tgrpo.evaluation.statistics import Rate
from sb3_tgrpo.openvla.actions import dimension_names
from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.openvla.prompt import decode_instruction, prompt_token_ids

MAX_GAP = 0.15
MAX_ENTROPY = 1.0
SUCCESS_RANGE = (0.3, 0.6)
MIN_MIXED = 0.5

_ENTROPY_EVERY = 4


@dataclass(frozen=True)
class BasePolicyReport:
    """
    What :func:`describe_base_policy` found.

    :param greedy: Outcome of the greedy episode from each initial state.
    :param sampled: Outcomes of each initial state's group, ``(initial states, group_size)``.
    :param entropy: Mean entropy in nats of each action dimension over the states visited by sampling.
    :param lengths: Mean number of steps of greedy and of sampled episodes.
    :param temperature: Sampling temperature.
    """

    greedy: list[bool]
    sampled: list[list[bool]]
    entropy: dict[str, float]
    lengths: tuple[float, float]
    temperature: float

    @property
    def greedy_rate(self) -> float:
        return float(np.mean(self.greedy))

    @property
    def sampled_rate(self) -> float:
        return float(np.mean(self.sampled))

    @property
    def mixed_groups(self) -> float:
        """Share of groups with successes and failures: the others give a success reward no gradient."""
        return float(np.mean([0 < sum(group) < len(group) for group in self.sampled]))

    def shortcomings(self) -> list[str]:
        """What keeps the policy from being a good base policy, empty if nothing does."""
        found = []
        low, high = SUCCESS_RANGE
        if not low <= self.sampled_rate <= high:
            found.append(f"sampled success {self.sampled_rate:.0%} is not within {low:.0%} to {high:.0%}")
        if abs(self.sampled_rate - self.greedy_rate) > MAX_GAP:
            gap = 100 * abs(self.sampled_rate - self.greedy_rate)
            found.append(f"greedy and sampled success differ by {gap:.0f} percentage points")
        wide = [name for name, value in self.entropy.items() if value > MAX_ENTROPY]
        if wide:
            found.append(f"entropy above {MAX_ENTROPY:g} nat in {', '.join(wide)}")
        if self.mixed_groups < MIN_MIXED:
            found.append(f"only {self.mixed_groups:.0%} of the groups have mixed outcomes")
        return found

    def to_dict(self) -> dict[str, Any]:
        return {
            **asdict(self), "greedy_rate": self.greedy_rate, "sampled_rate": self.sampled_rate,
            "mixed_groups": self.mixed_groups, "shortcomings": self.shortcomings(),
        }  # fmt: skip

    def __str__(self) -> str:
        size = len(self.sampled[0])
        total = sum(map(sum, self.sampled))
        mixed = f"{sum(0 < sum(group) < size for group in self.sampled)}/{len(self.sampled)}"
        lines = [
            f"greedy success   {Rate(sum(self.greedy), len(self.greedy))}, {self.lengths[0]:.0f} steps",
            f"sampled success  {Rate(total, size * len(self.sampled))}, {self.lengths[1]:.0f} steps (T={self.temperature:g}; "
            f"{len(self.sampled)} initial states x {size}, the interval takes them as independent)",
            "entropy (nats)   " + "  ".join(f"{name} {value:.2f}" for name, value in self.entropy.items()),
            f"mixed groups     {mixed} = {self.mixed_groups:.0%} of groups of {size} from one initial state",
        ]
        shortcomings = self.shortcomings()
        lines.append("a good base policy" if not shortcomings else "not a good base policy: " + "; ".join(shortcomings))
        return "\n".join(lines)


def describe_base_policy(
    policy: OpenVLAPolicy,
    env: gym.Env | Callable[[], gym.Env],
    protocol: Protocol,
    *,
    n_envs: int = 1,
    on_episode: Callable[[int, str, bool, int], None] | None = None,
) -> BasePolicyReport:
    """
    Play one greedy episode from each initial state, then one sampled group from each.

    :param env: Un-grouped environment with seeded resets that reports ``info["is_success"]``, or a function that makes it.
    :param protocol: Initial states, decoding of the sampled episodes, and ``repetitions``, the size of a group.
    :param n_envs: Environments at once, each in a process of its own if more than one; then ``env`` is a function.
    :param on_episode: Function called with initial state, ``"greedy"`` or ``"sampled"``, outcome and length.
    :raises ValueError: With a group of one, or with several environments of one instance.
    """
    if protocol.repetitions < 2:
        raise ValueError(f"repetitions={protocol.repetitions} must be at least 2: a group compares its members.")
    if isinstance(env, gym.Env) and n_envs > 1:
        raise ValueError(f"n_envs={n_envs} needs a function that makes the environment: pass it as env.")
    make = (lambda: _Borrowed(env)) if isinstance(env, gym.Env) else env
    policy.set_training_mode(False)
    watched: dict[tuple[Any, int], np.ndarray] = {}
    outcomes: dict[tuple[int, int], tuple[bool, int]] = {}
    states = list(protocol.init_state_ids if protocol.seeds is None else protocol.seeds)
    with WorkerPool() as pool:
        for kind, decoding in (("greedy", GREEDY), ("sampled", protocol.decoding)):
            one_kind = protocol if kind == "sampled" else replace(protocol, repetitions=1)
            requests = [
                replace(
                    request, key=(init_state_id if init_state_id is not None else seed, member if kind == "sampled" else -1)
                )
                for (_, init_state_id, seed, member), request in one_kind.requests([""]).items()
            ]
            adapter = _WatchedPolicy(policy, decoding, protocol.seed, watched)
            player = EpisodePlayer({"": make}, adapter, n_envs=n_envs, subprocess=n_envs > 1, pool=pool)
            for episode in player.play(requests):
                state, member = episode.request.key
                outcomes[state, member] = episode.success, episode.length
                if on_episode is not None:
                    on_episode(state, kind, episode.success, episode.length)
    means = np.mean([watched[key] for key in sorted(watched)], axis=0)
    greedy = [outcomes[state, -1] for state in states]
    sampled = [[outcomes[state, member] for member in range(protocol.repetitions)] for state in states]
    return BasePolicyReport(
        [success for success, _ in greedy],
        [[success for success, _ in group] for group in sampled],
        dict(zip(dimension_names(len(means)), means.tolist(), strict=True)),
        (float(np.mean([n for _, n in greedy])), float(np.mean([n for group in sampled for _, n in group]))),
        protocol.decoding.temperature,
    )


class _Borrowed(gym.Wrapper):
    """The caller's environment, which stays open."""

    def close(self) -> None:
        pass


@dataclass
class _Watch:
    generator: th.Generator
    key: Any
    steps: int = 0


class _WatchedPolicy(BatchedTokenPolicy):
    """Keeps the entropies of every few sampled steps, by episode and step."""

    def __init__(
        self, policy: OpenVLAPolicy, decoding: Decoding, seed: int, watched: dict[tuple[Any, int], np.ndarray]
    ) -> None:
        super().__init__(policy, decoding, seed)
        self.watched = watched

    def begin(self, request: EpisodeRequest) -> Any:
        return _Watch(super().begin(request), request.key)

    def act(self, observations: Sequence[Any], memories: Sequence[Any]) -> list[np.ndarray]:
        tokens = self.tokens(observations, [memory.generator for memory in memories])
        for observation, chosen, memory in zip(observations, tokens, memories, strict=True):
            if not self.decoding.greedy and memory.steps % _ENTROPY_EVERY == 0:
                temperature = self.decoding.temperature
                self.watched[memory.key, memory.steps] = _entropy(self.policy, observation, chosen, temperature)
            memory.steps += 1
        return list(self.policy.unscale_action(tokens.cpu().numpy()))


@th.no_grad()
def _entropy(policy: OpenVLAPolicy, observation: dict[str, np.ndarray], tokens: th.Tensor, temperature: float) -> np.ndarray:
    """Entropy of each dimension's distribution ``(K,)``, given the sampled tokens before it."""
    model = policy.model
    words = policy.instruction or decode_instruction(observation["instruction"].tobytes())
    pixels = model.pixel_values(model.preprocess(th.from_numpy(observation["image"][None]).to(model.device)))
    logits = model.action_logits(pixels, [prompt_token_ids(model.tokenizer, words)], tokens.view(1, -1))
    log_prob = (logits / temperature).log_softmax(-1)
    return -(log_prob.exp() * log_prob).sum(-1)[0].cpu().numpy()
