"""
Build, reset, step and render LIBERO tasks: ``python scripts/check_all_tasks.py [SUITE | TASK ...]``.

Without arguments all 130 tasks. Prints a table; the exit status is the number of tasks that failed (at most 125).
"""

import argparse
import sys
import time

import numpy as np

from sb3_tgrpo.envs.libero.assets import AssetsChoice
from sb3_tgrpo.envs.libero.env import LiberoEnv
from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts
from sb3_tgrpo.envs.registration import SUITES, register_envs, task_names
from sb3_tgrpo.rewards.facts.task_name import TaskName

N_STEPS = 5


def check_task(name: TaskName, assets: AssetsChoice = "auto") -> dict[str, float]:
    """
    Build a task; reset it to a drawn and to the last stored initial state; step; render.

    :return: Seconds to build, seconds per reset, and the mean brightness of the picture.
    :raises Exception: Whatever fails.
    """
    import gymnasium as gym

    started = time.perf_counter()
    env = gym.make(name.gym_id, assets=assets, render_mode="rgb_array")
    try:
        unwrapped = env.unwrapped
        assert isinstance(unwrapped, LiberoEnv)
        _ = unwrapped.model
        built = time.perf_counter()
        last = len(stored_starts(unwrapped.task)) - 1
        for options in (None, {"init_state_id": last}):
            env.reset(seed=0, options=options)
            rng = np.random.default_rng(0)
            for _ in range(N_STEPS):
                observation, reward, terminated, _, info = env.step(rng.uniform(-1, 1, 7).astype(np.float32))
                if terminated or reward or info["is_success"]:
                    raise RuntimeError("the task succeeded by itself")
            if not env.observation_space.contains(observation):
                raise RuntimeError("the observation is not in its space")
            if not np.isfinite(unwrapped.flat_state()).all():
                raise RuntimeError("the simulation diverged")
        frame = np.asarray(env.render())
        if frame.std() < 5:
            raise RuntimeError("the picture is blank")
        done = time.perf_counter()
    finally:
        env.close()
    return {"build": built - started, "reset": (done - built) / 2, "brightness": float(frame.mean())}


def main(argv: list[str] | None = None) -> int:
    """:return: Number of tasks that failed."""
    parser = argparse.ArgumentParser(prog="python scripts/check_all_tasks.py", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="SUITE_OR_TASK")
    parser.add_argument("--assets", default="auto", choices=("auto", "full", "light"))
    args = parser.parse_args(argv)
    register_envs()
    failed = 0
    tasks = task_names(args.tasks or SUITES)
    for name in tasks:
        get_task(*name)  # an unknown one is an error before the others are played
    print(f"{'task':<18} {'build s':>8} {'episode s':>10} {'brightness':>11}  result")
    for name in tasks:
        try:
            times = check_task(name, args.assets)
        except Exception as error:  # a table of all tasks is the point, whatever one of them raises
            failed += 1
            print(f"{name!s:<18} {'':>8} {'':>10} {'':>11}  FAILED: {type(error).__name__}: {error}", flush=True)
        else:
            numbers = f"{times['build']:8.2f} {times['reset']:10.2f} {times['brightness']:11.0f}"
            print(f"{name!s:<18} {numbers}  ok", flush=True)
    print(f"{len(tasks) - failed} of {len(tasks)} tasks work.")
    return min(failed, 125)


if __name__ == "__main__":
    sys.exit(main())
