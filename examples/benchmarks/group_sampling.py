"""
How fast the main job samples groups of LIBERO-Object 8 (light assets, images of 128 pixels) with the policy that ships: one
group after the other, two groups in lockstep, two groups that take turns, and with simulators that share processes.

    python examples/benchmarks/group_sampling.py

Each line samples whole groups, from the same starts, with fresh simulators; the lines alternate over the repetitions. Memory
is the proportional set size of all simulators (Linux).
"""

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_tgrpo import TGRPO
from sb3_tgrpo.envs import make_group_env
from sb3_tgrpo.openvla import Checkpoint
from sb3_tgrpo.train.config import TrainConfig, shipped_start
from sb3_tgrpo.train.setup import resolve_setup

WAYS = {
    "one group": {"n_groups": 1},
    "two groups in lockstep": {"n_groups": 2},
    "two groups that take turns": {"n_groups": 2, "alternate": True},
    "the same, two processes": {"n_groups": 2, "alternate": True, "processes": 2},
    "the same, four processes": {"n_groups": 2, "alternate": True, "processes": 4},
}


def memory_gib(pids: set[int]) -> float:
    """Proportional set size of processes: what they share counts once."""
    lines = [line for pid in pids for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()]
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 2**20


def sample(n_groups: int, rounds: int, **settings: object) -> tuple[float, float]:
    """:return: milliseconds per step that counts, GiB of the simulators."""
    config = TrainConfig()
    setup = resolve_setup(config, Checkpoint(shipped_start()))
    kwargs = {**setup.env_kwargs, "max_episode_steps": setup.training_steps}
    groups = make_group_env(
        config.task.env, config.algorithm.group_size, n_groups, stop_on="never", env_kwargs=kwargs, subprocess=True,
        **settings,  # type: ignore[arg-type]
    )  # fmt: skip
    env = VecTransposeImage(groups, skip=True)
    try:
        model = TGRPO(
            "OpenVLAPolicy",
            env,
            groups_per_update=2 * rounds,
            policy_kwargs=dict(setup.policy_kwargs),
            seed=0,
            device="cpu",
        )
        _, callback = model._setup_learn(1, CallbackList([]))
        started = time.perf_counter()
        model.collect_rollouts(env, callback, model.rollout_buffer, 1)
        seconds = time.perf_counter() - started
        pids = {worker.process.popen.pid for worker in groups.groups._workers}  # type: ignore[attr-defined]
        return 1e3 * seconds / model.rollout_buffer.size(), memory_gib(pids)
    finally:
        env.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1, help="times two groups that are sampled")
    parser.add_argument("--ways", nargs="+", type=int, default=list(range(len(WAYS))), help="lines of the table, from 0")
    args = parser.parse_args()

    th.set_num_threads(1)
    chosen = [list(WAYS)[i] for i in args.ways]
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
    for _ in range(args.repetitions):
        for name in chosen:
            found[name].append(sample(rounds=args.rounds, **WAYS[name]))  # type: ignore[arg-type]
    first = statistics.median(milliseconds for milliseconds, _ in found[chosen[0]])
    print("| | ms per step that counts | of each repetition | against the first | simulators' memory, GiB |")
    print("|---|---:|---|---:|---:|")
    for name, values in found.items():
        times = [milliseconds for milliseconds, _ in values]
        median = statistics.median(times)
        each = " ".join(f"{value:.2f}" for value in times)
        print(f"| {name} | {median:.2f} | {each} | {first / median:.2f}x | {np.median([gib for _, gib in values]):.1f} |")
