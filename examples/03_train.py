"""
The main job from Python: evaluate a start policy, train it by TGRPO, evaluate again, and compare start by start.

Like ``sb3-tgrpo train``, with what you want changed: here the trajectory level alone, for fewer steps. Killed
and started again it goes on where it was.

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
    parser.add_argument("--checkpoint", default=None, help="start policy (default: the one that ships)")
    parser.add_argument("--env", default="LIBERO/libero_object-8-v0")
    parser.add_argument("--steps", type=int, default=60_000, help="environment steps that count")
    parser.add_argument("--starts", type=int, default=50, help="stored starts to evaluate on")
    parser.add_argument("--out", type=Path, default=Path("runs/trajectory_level"))
    args = parser.parse_args()

    config = TrainConfig().updated(
        {
            "env": args.env,
            "checkpoint": args.checkpoint,
            "total_timesteps": args.steps,
            "eval_starts": args.starts,
            "alpha_step": 0.0,  # the trajectory level alone
            "alpha_traj": 1.0,
        }
    )
    with make_view("TGRPO, trajectory level alone") as view:
        results = run_training(config, args.out, view=view)
    print("\n".join(result_lines(results)))
    print(args.out / "report.html")
