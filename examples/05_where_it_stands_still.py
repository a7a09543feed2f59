"""
Where does greedy play stop? One episode: the motions chosen, how likely the policy finds them, the stage of the task.

    python examples/05_where_it_stands_still.py runs/libero_object-8/checkpoint --env LIBERO/libero_object-8-v0 --start 0
    python examples/05_where_it_stands_still.py CHECKPOINT --temperature 1      # sampled instead

A policy trained by sampling may succeed when sampled and stand still when played greedily: "stay" is the most likely of many
small motions, none of which is likely by itself. Then probabilities are far below 1 while nothing moves.
"""

import argparse

import gymnasium as gym
import numpy as np
import torch as th
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.utils import obs_as_tensor

import sb3_tgrpo  # noqa: F401  # registers the ids
from sb3_tgrpo.openvla import OpenVLAPolicy
from sb3_tgrpo.rewards.facts.task_name import TaskName

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("checkpoint", help="folder of a checkpoint with light assets, such as a run's checkpoint/")
parser.add_argument("--env", default="LIBERO/libero_object-8-v0")
parser.add_argument("--start", type=int, default=0, help="number of the stored initial state")
parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
parser.add_argument("--every", type=int, default=10, help="steps between lines")
parser.add_argument("--image-size", type=int, default=128)
parser.add_argument("--seed", type=int, default=0, help="seed of the sampling")
args = parser.parse_args()

th.set_num_threads(1)
env = gym.make(args.env, assets="light", image_size=args.image_size, reward=str(TaskName.parse(args.env)))
policy = OpenVLAPolicy.for_env(env, args.checkpoint)
policy.set_training_mode(False)

table = Table()
for column in ("step", "x, y, z", "probabilities", "gripper", "stage", "moved, mm"):
    table.add_column(column, no_wrap=True)
generator = th.Generator().manual_seed(args.seed)
observation, info = env.reset(seed=0, options={"init_state_id": args.start})
hands, stages, done = [], [], False
while not done:
    batch = obs_as_tensor({key: value[None] for key, value in observation.items()}, policy.device)
    tokens = policy.choose_tokens(batch, args.temperature, [generator])
    with th.no_grad():
        probabilities = policy.action_log_prob(batch, tokens)[0][0].exp().tolist()
    action = policy.unscale_action(tokens.cpu().numpy())[0]
    hands.append(np.array(env.unwrapped.facts()["eef_pos"]))  # type: ignore[attr-defined]
    stages.append(info.get("stage", 0))
    step = len(hands) - 1
    if step % args.every == 0:
        moved = 1000 * float(np.linalg.norm(hands[-1] - hands[max(step - args.every, 0)]))
        motion, likely = (" ".join(f"{value:+.2f}" for value in action[:3]), " ".join(f"{p:.2f}" for p in probabilities[:3]))
        table.add_row(str(step), motion, likely, "close" if action[-1] > 0 else "open", str(stages[-1]), f"{moved:.0f}")
    observation, _, terminated, truncated, info = env.step(action)
    done = terminated or truncated
env.close()

Console().print(table)
print(f"{'success' if info['is_success'] else 'no success'} after {len(hands)} steps; highest stage {max(stages)}")
tail = hands[max(len(hands) - 50, 0) :]
spread = 1000 * float(np.ptp(np.array(tail), axis=0).max())
print(f"in the last {len(tail)} steps the hand stayed within {spread:.0f} mm")
