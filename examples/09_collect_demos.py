"""
Demonstrations from a scripted expert, and the key poses that they pass through.

    python examples/09_collect_demos.py
"""

import argparse
from pathlib import Path

from sb3_tgrpo.envs import CollectionSettings, collect_demos, key_poses, load_demos

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="LIBERO/libero_object-3-v0")
    parser.add_argument("--demos", type=int, default=5, help="demonstrations in the file")
    parser.add_argument("--out", type=Path, default=Path("demos.hdf5"))
    args = parser.parse_args()

    settings = CollectionSettings(args.env, args.demos, dart=0.1, image_size=128)
    demos = load_demos(collect_demos(settings, args.out, workers=2))
    print(f"{len(demos)} demonstrations of '{demos.instruction}', {sum(map(len, demos))} steps, {demos.assets} assets")
    print(key_poses(demos))
