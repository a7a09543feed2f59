"""
How long a micro-batch of an update takes with so many threads of torch: the policy that ships, 128 steps, both passes.

    python examples/benchmarks/update_threads.py --threads 2

Beside other work: start it twice, with one thread and with two, each from a session of its own (``setsid``), so that the
system shares the cores between them as between two runs. GNU OpenMP is set up by the environment alone.
"""

import argparse
import os
import time

import numpy as np
import torch as th

from sb3_tgrpo.envs.spaces import encode_instruction
from sb3_tgrpo.openvla import Checkpoint
from sb3_tgrpo.train.config import TrainConfig, shipped_start
from sb3_tgrpo.train.model import make_policy
from sb3_tgrpo.train.setup import resolve_setup

STEPS = 128

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0)
    args = parser.parse_args()

    th.set_num_threads(args.threads)
    config = TrainConfig()
    policy = make_policy(config, resolve_setup(config, Checkpoint(shipped_start())))
    policy.set_training_mode(True)
    images = np.random.default_rng(0).integers(0, 256, (STEPS, 128, 128, 3), dtype=np.uint8)
    instruction = encode_instruction("pick up the chocolate pudding and place it in the basket")
    obs = {"image": th.as_tensor(images), "instruction": th.as_tensor(np.tile(instruction, (STEPS, 1)))}
    actions = th.full((STEPS, policy.n_tokens), policy.model.config.action_vocab_begin)

    def micro_batch() -> None:
        log_prob, _ = policy.action_log_prob(obs, actions)
        log_prob.mean().backward()

    micro_batch()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < args.seconds:
        micro_batch()
        count += 1
    milliseconds = (time.perf_counter() - started) / count * 1e3
    waiting = {name: os.environ.get(name) for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    print(f"{args.threads} threads: {milliseconds:.0f} ms per micro-batch of {STEPS} steps ({count} of them), {waiting}")
