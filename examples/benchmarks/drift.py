"""
How far training has moved policies from their start, on states of the start's own: it is played sampled, from stored starts,
and the others say how likely they find what it did (KL in nats per action) and standing still (the bins of 0 in x, y and z).

    python examples/benchmarks/drift.py START runs/a/checkpoint runs/b/checkpoint --env LIBERO/libero_object-6-v0
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.utils import obs_as_tensor

import sb3_tgrpo  # noqa: F401  # registers the ids
from sb3_tgrpo.openvla import OpenVLAPolicy

BATCH = 64


@dataclass
class States:
    """Observations, the tokens sampled there, ``(n, n_tokens)``, and the stage of the task, ``(n,)``."""

    observations: list[dict[str, np.ndarray]]
    tokens: th.Tensor
    stages: np.ndarray


def load(checkpoint: str, env: gym.Env) -> OpenVLAPolicy:
    policy = OpenVLAPolicy.for_env(env, checkpoint)
    policy.set_training_mode(False)
    return policy


def play(policy: OpenVLAPolicy, env: gym.Env, starts: int, steps: int, seed: int) -> States:
    """What the policy meets at T = 1."""
    generator = th.Generator().manual_seed(seed)
    observations, tokens, stages = [], [], []
    for start in range(starts):
        observation, info = env.reset(seed=0, options={"init_state_id": start})
        for _ in range(steps):
            batch = obs_as_tensor({key: value[None] for key, value in observation.items()}, policy.device)
            chosen = policy.choose_tokens(batch, 1.0, [generator])
            observations.append({key: np.array(value) for key, value in observation.items()})
            tokens.append(chosen[0])
            stages.append(info.get("stage", 0))
            observation, _, terminated, truncated, info = env.step(policy.unscale_action(chosen.cpu().numpy())[0])
            if terminated or truncated:
                break
    return States(observations, th.stack(tokens), np.array(stages))


def log_prob(policy: OpenVLAPolicy, states: States, tokens: th.Tensor) -> th.Tensor:
    """Of each token, ``(n, n_tokens)``."""
    found = []
    for begin in range(0, len(tokens), BATCH):
        part = states.observations[begin : begin + BATCH]
        batch = obs_as_tensor({key: np.stack([obs[key] for obs in part]) for key in part[0]}, policy.device)
        with th.no_grad():
            found.append(policy.action_log_prob(batch, tokens[begin : begin + BATCH])[0].cpu())
    return th.cat(found)


def standing_still(policy: OpenVLAPolicy, tokens: th.Tensor) -> th.Tensor:
    """The same tokens, with those of x, y and z that move least."""
    still = tokens.clone()
    none = policy.scale_action(np.zeros((1, tokens.shape[1]), dtype=np.float32))
    still[:, :3] = th.as_tensor(none[0, :3], dtype=tokens.dtype)
    return still


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("start", help="checkpoint of the start policy")
    parser.add_argument("checkpoints", nargs="+", help="checkpoints trained from it")
    parser.add_argument("--env", default="LIBERO/libero_object-8-v0")
    parser.add_argument("--starts", type=int, default=12, help="the first so many stored starts")
    parser.add_argument("--steps", type=int, default=150, help="longest episode")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0, help="of sampling")
    args = parser.parse_args()
    th.set_num_threads(1)
    task = args.env.removeprefix("LIBERO/").removesuffix("-v0")
    env = gym.make(args.env, assets="light", image_size=args.image_size, reward=task)
    start = load(args.start, env)
    states = play(start, env, args.starts, args.steps, args.seed)
    still, reference = standing_still(start, states.tokens), log_prob(start, states, states.tokens).sum(1)
    stages = sorted(set(states.stages.tolist()))

    table = Table(title=f"{args.start}: {len(states.tokens):,} states of {args.starts} episodes; by stage: KL, P(still)")
    for column in ("policy", "KL, nats", *(f"stage {stage}" for stage in stages)):
        table.add_column(column, justify="left" if column == "policy" else "right")
    names = ("start", *("/".join(Path(checkpoint).parts[-3:-1]) for checkpoint in args.checkpoints))
    for name, checkpoint in zip(names, (args.start, *args.checkpoints), strict=True):
        policy = load(checkpoint, env)
        kl = reference - log_prob(policy, states, states.tokens).sum(1)
        stay = log_prob(policy, states, still)[:, :3].sum(1).exp()
        chosen = [th.as_tensor(states.stages == stage) for stage in stages]
        error = float(kl.std() / len(kl) ** 0.5)
        parts = [f"{float(kl[rows].mean()):.2f}, {float(stay[rows].mean()):.3f}" for rows in chosen]
        table.add_row(name, f"{float(kl.mean()):.2f} ± {error:.2f}", *parts)
    env.close()
    Console().print(table)
