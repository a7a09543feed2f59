"""
A training run from Python: evaluate a base policy, train it by TGRPO, evaluate again, and compare.

Like ``sb3-tgrpo train``, with other settings: here the trajectory level alone, for more steps. The same command continues an
interrupted run.

    python examples/03_train.py --checkpoint FOLDER
"""

import argparse
from pathlib import Path

from sb3_tgrpo.train.config import TrainConfig
from sb3_tgrpo.train.job import run_training
from sb3_tgrpo.train.report import result_lines
from sb3_tgrpo.train.view import make_view

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default=None, help="base policy (default: the one that ships)")
    parser.add_argument("--env", default="LIBERO/libero_object-8-v0")
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps that count")
    parser.add_argument("--initial-states", type=int, default=50, help="stored initial states to evaluate on")
    parser.add_argument("--out", type=Path, default=Path("runs/trajectory_level"))
    args = parser.parse_args()

    config = TrainConfig().updated(
        {
            "env": args.env,
            "checkpoint": args.checkpoint,
            "total_timesteps": args.steps,
            "eval_initial_states": args.initial_states,
            "alpha_step": 0.0,  # the trajectory level alone
            "alpha_traj": 1.0,
        }
    )
    with make_view("TGRPO, trajectory level alone") as view:
        results = run_training(config, args.out, view=view)
    print("\n".join(result_lines(results)))
    print(args.out / "report.html")
