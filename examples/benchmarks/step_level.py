"""
What the step level (eq. 2) says of successes and of failures, while nobody has succeeded yet and afterwards, with members that
have ended left out of the comparison or kept in it (``compare_ended``): groups of the policy that ships, nothing is trained.

    python examples/benchmarks/step_level.py --groups 16
    python examples/benchmarks/step_level.py --groups 16 --set env=LIBERO/libero_object-6-v0 checkpoint=FOLDER

A number is the sum of a step-level advantage over a member's steps, divided by its length as in eq. (6), and averaged over the
members: what the objective gains when the probability of all their actions in that part rises alike.
"""

import argparse
import tempfile

import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_tgrpo import TGRPO
from sb3_tgrpo.advantages import step_advantages
from sb3_tgrpo.openvla import Checkpoint
from sb3_tgrpo.run_folder import RunFolder
from sb3_tgrpo.train.config import TrainConfig, parse_setting, shipped_start
from sb3_tgrpo.train.model import make_model, make_training_env
from sb3_tgrpo.train.setup import resolve_setup


def rollout(config: TrainConfig) -> tuple[np.ndarray, np.ndarray]:
    """
    What the step level compares and which steps count, ``(n_steps, n_groups, group_size)`` each.
    """
    setup = resolve_setup(config, Checkpoint(config.base_policy.checkpoint or shipped_start()))
    env = VecTransposeImage(make_training_env(config, setup), skip=True)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(config, setup, RunFolder(folder), env)
            assert isinstance(model, TGRPO)
            _, callback = model._setup_learn(1, None)
            model.collect_rollouts(env, callback, model.rollout_buffer, 1)
    finally:
        env.close()
    return model.rollout_buffer.step_signal, model.rollout_buffer.mask


def shares(signal: np.ndarray, mask: np.ndarray, compare_ended: bool) -> tuple[np.ndarray, np.ndarray]:
    """
    A member's step-level advantages until the first success of its group and after it, each summed and divided by its length.

    :param signal: the progress, 1 at success; ``(n_steps, n_groups, group_size)``.
    :param mask: True where a step counts.
    :return: ``(n_groups, group_size)`` each.
    """
    advantages = step_advantages(signal, mask, compare_ended=compare_ended) / np.maximum(mask.sum(axis=0), 1)
    won = ((signal >= 1.0) & mask).any(axis=-1, keepdims=True)
    before = np.cumsum(won, axis=0) - won == 0  # the step of the first success is one of them
    return (advantages * before).sum(axis=0), (advantages * ~before).sum(axis=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, default=16)
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings, as of sb3-tgrpo train")
    args = parser.parse_args()
    given = dict(text.split("=", 1) for text in args.set)
    settings = {name: parse_setting(name, value) for name, value in given.items()}
    signal, mask = rollout(TrainConfig().updated({"groups_per_update": args.groups, **settings}))

    best = np.where(mask, signal, 0.0).max(axis=0)
    kinds = {
        "succeeded": best >= 1.0,
        "failed, far on (progress of 0.6 at least)": (best < 1.0) & (best >= 0.6),
        "failed, not so far": best < 0.6,
    }
    table = Table(title=f"step level, {args.groups} groups of {mask.shape[-1]}, {int(mask.sum()):,} steps that count")
    for name in ("members", "number", "until a success", "after it", "in all"):
        table.add_column(name, justify="left" if name == "members" else "right")
    for compare_ended in (False, True):
        before, after = shares(signal, mask, compare_ended)
        table.add_section()
        table.add_row(f"[bold]compare_ended={compare_ended}[/bold]")
        for kind, chosen in kinds.items():
            parts = (before[chosen], after[chosen], (before + after)[chosen])
            means = [f"{part.mean():+.3f}" if chosen.any() else "-" for part in parts]
            table.add_row(kind, str(int(chosen.sum())), *means)
    Console().print(table)
