"""
Is a policy a good start for group-relative training? Four numbers: greedy and sampled success, entropy of each action
dimension, and how often the members of a group, sampled from one start, do not all end alike.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from stable_baselines3.common.utils import obs_as_tensor

from sb3_tgrpo.openvla.policy import OpenVLAPolicy
from sb3_tgrpo.openvla.prompt import decode_instruction, prompt_token_ids
from sb3_tgrpo.sft_training import dimension_names

MAX_GAP = 0.15
MAX_ENTROPY = 1.0
SUCCESS_RANGE = (0.3, 0.6)
MIN_MIXED = 0.5

_ENTROPY_EVERY = 4


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """
    Wilson's interval of a success rate.

    :param successes: Number of successes.
    :param trials: Number of independent trials, at least 1.
    :param z: 1.96 for 95 %.
    """
    rate = successes / trials
    centre = (rate + z**2 / (2 * trials)) / (1 + z**2 / trials)
    half = z / (1 + z**2 / trials) * math.sqrt(rate * (1 - rate) / trials + z**2 / (4 * trials**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


@dataclass(frozen=True)
class StartPolicyReport:
    """
    What :func:`describe_start_policy` found.

    :param greedy: Outcome of the greedy episode from each start.
    :param sampled: Outcomes of each start's group, ``(starts, group_size)``.
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
        """What keeps it from being a good start, empty if nothing does."""
        found = []
        low, high = SUCCESS_RANGE
        if not low <= self.sampled_rate <= high:
            found.append(f"sampled success {self.sampled_rate:.0%} is not within {low:.0%} to {high:.0%}")
        if abs(self.sampled_rate - self.greedy_rate) > MAX_GAP:
            found.append(f"greedy and sampled success differ by {100 * abs(self.sampled_rate - self.greedy_rate):.0f} points")
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
        count = sum(0 < sum(group) < size for group in self.sampled)
        mixed = f"{count}/{len(self.sampled)}"
        lines = [
            f"greedy success   {_rate(sum(self.greedy), len(self.greedy))}, {self.lengths[0]:.0f} steps",
            f"sampled success  {_rate(total, size * len(self.sampled))}, {self.lengths[1]:.0f} steps (T={self.temperature:g}; "
            f"{len(self.sampled)} starts x {size}, the interval takes them as independent)",
            "entropy (nats)   " + "  ".join(f"{name} {value:.2f}" for name, value in self.entropy.items()),
            f"mixed groups     {mixed} = {self.mixed_groups:.0%} of groups of {size} from one start",
        ]
        shortcomings = self.shortcomings()
        lines.append("a good start" if not shortcomings else "not a good start: " + "; ".join(shortcomings))
        return "\n".join(lines)


def _rate(successes: int, trials: int) -> str:
    low, high = wilson_interval(successes, trials)
    return f"{successes}/{trials} = {successes / trials:.0%} [{low:.0%}, {high:.0%}]"


def describe_start_policy(
    policy: OpenVLAPolicy,
    env: gym.Env,
    starts: Sequence[int],
    *,
    group_size: int = 4,
    temperature: float = 1.0,
    stored: bool = False,
    max_steps: int | None = None,
    seed: int = 0,
    on_episode: Callable[[int, str, bool, int], None] | None = None,
) -> StartPolicyReport:
    """
    Play one greedy episode and one sampled group from each start.

    :param policy: The policy.
    :param env: Un-grouped environment with seeded resets that reports ``info["is_success"]``.
    :param starts: Seeds of drawn starts; with ``stored``, indices of stored ones.
    :param group_size: Sampled episodes per start; 0 for none.
    :param temperature: Of sampling; the policy's own is put back at the end.
    :param stored: Whether ``starts`` are ``init_state_id``.
    :param max_steps: Cut episodes here; None: the environment's limit alone.
    :param seed: Of the sampling.
    :param on_episode: Called with start, ``"greedy"`` or ``"sampled"``, outcome and length.
    :raises ValueError: Without starts, or with a group of one.
    """
    if not starts or group_size < 2:
        raise ValueError(f"starts must not be empty and group_size at least 2, got {len(starts)} and {group_size}.")
    before, policy.temperature = policy.temperature, temperature
    generator_state = th.get_rng_state()
    th.manual_seed(seed)
    greedy: list[bool] = []
    sampled: list[list[bool]] = []
    lengths: dict[str, list[int]] = {"greedy": [], "sampled": []}
    entropies: list[np.ndarray] = []
    try:
        for start in starts:
            group: list[bool] = []
            for member in range(-1, group_size):
                kind = "greedy" if member < 0 else "sampled"
                success, steps = _episode(policy, env, start, stored, member < 0, max_steps, entropies)
                lengths[kind].append(steps)
                (greedy if member < 0 else group).append(success)
                if on_episode is not None:
                    on_episode(start, kind, success, steps)
            sampled.append(group)
    finally:
        policy.temperature = before
        th.set_rng_state(generator_state)
    means = np.mean(entropies, axis=0)
    names = dimension_names(len(means))
    return StartPolicyReport(
        greedy, sampled, dict(zip(names, means.tolist(), strict=True)),
        (float(np.mean(lengths["greedy"])), float(np.mean(lengths["sampled"]))), temperature,
    )  # fmt: skip


@th.no_grad()
def _episode(
    policy: OpenVLAPolicy,
    env: gym.Env,
    start: int,
    stored: bool,
    greedy: bool,
    max_steps: int | None,
    entropies: list[np.ndarray],
) -> tuple[bool, int]:
    observation, info = env.reset(**({"options": {"init_state_id": start}} if stored else {"seed": start}))
    policy.set_training_mode(False)
    steps = 0
    while True:
        batch = obs_as_tensor({key: np.asarray(value)[None] for key, value in observation.items()}, policy.device)
        tokens = policy.forward(batch, deterministic=greedy)[0]
        if not greedy:
            if steps % _ENTROPY_EVERY == 0:
                entropies.append(_entropy(policy, observation, tokens))
        observation, _, terminated, truncated, info = env.step(policy.unscale_action(tokens.cpu().numpy())[0])
        steps += 1
        if terminated or truncated or steps == max_steps:
            return bool(info["is_success"]), steps


def _entropy(policy: OpenVLAPolicy, observation: dict[str, np.ndarray], tokens: th.Tensor) -> np.ndarray:
    """Entropy of each dimension's distribution ``(K,)``, given the sampled tokens before it."""
    model = policy.model
    words = policy.instruction or decode_instruction(observation["instruction"].tobytes())
    pixels = model.pixel_values(model.preprocess(th.from_numpy(observation["image"][None]).to(model.device)))
    logits = model.action_logits(pixels, [prompt_token_ids(model.tokenizer, words)], tokens.view(1, -1))
    log_prob = (logits / policy.temperature).log_softmax(-1)
    return -(log_prob.exp() * log_prob).sum(-1)[0].cpu().numpy()
