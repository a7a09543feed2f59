"""
Is a checkpoint a good start for TGRPO? Prints four numbers: greedy and sampled success, entropy per action dimension, and the
share of groups of four, sampled from one start, whose members do not all end alike.

    python examples/start_policy.py CHECKPOINT LIBERO/libero_object-9-v0 --starts 50
"""

import argparse
import json
from pathlib import Path

import torch as th
from stable_baselines3.common.utils import FloatSchedule

from sb3_tgrpo.envs import LiberoEnv
from sb3_tgrpo.openvla import OpenVLAPolicy
from sb3_tgrpo.start_policy import describe_start_policy

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("env", help="LIBERO/<suite>-<task>-v0")
    parser.add_argument("--starts", type=int, default=50)
    parser.add_argument("--first", type=int, default=0, help="seed of the first drawn start, or index of the first stored one")
    parser.add_argument("--stored", action="store_true", help="LIBERO's stored starts instead of drawn ones")
    parser.add_argument("--group-size", type=int, default=4)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--image-size", type=int, default=128, help="as in the demonstrations it was trained on")
    parser.add_argument("--assets", choices=("auto", "full", "light"), default="auto")
    parser.add_argument("--n-envs", type=int, default=2, help="environments at once, a process each")
    parser.add_argument("--start-noise", type=float, default=0.0, metavar="METRES")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE")
    args = parser.parse_args()

    th.set_num_threads(1)  # one small image at a time
    suite, task = args.env.removeprefix("LIBERO/").removesuffix("-v0").rsplit("-", 1)

    def make_env() -> LiberoEnv:
        return LiberoEnv(suite, int(task), assets=args.assets, image_size=args.image_size, start_noise=args.start_noise)

    env = make_env()
    spaces = env.observation_space, env.action_space
    policy = OpenVLAPolicy(*spaces, FloatSchedule(0.0), checkpoint=args.checkpoint, lora=None, value_head=False)
    report = describe_start_policy(
        policy,
        make_env,
        range(args.first, args.first + args.starts),
        group_size=args.group_size,
        temperature=args.temperature,
        stored=args.stored,
        n_envs=args.n_envs,
        on_episode=lambda start, kind, success, steps: print(
            f"start {start:3d} {kind:7s} {success!s:5} {steps} steps", flush=True
        ),
    )
    print(report)
    if args.json is not None:
        args.json.write_text(json.dumps(report.to_dict(), indent=1) + "\n", encoding="utf-8")
