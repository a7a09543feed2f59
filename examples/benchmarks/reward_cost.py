"""
What a reward costs per step: facts, program, both; beside robosuite's own grasp check and LIBERO's success check.

    python examples/benchmarks/reward_cost.py [TASK]

One process, one simulation on the light assets; the arm is moved by random actions between rounds so that contacts vary.
Times are the median over rounds of the mean over repeats.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np

from sb3_tgrpo.envs import LiberoEnv
from sb3_tgrpo.rewards import RewardProgram, load_reward

ROUNDS, REPEATS = 40, 50


def microseconds(function: Callable[[], object]) -> float:
    """Mean time of a call."""
    start = time.perf_counter()
    for _ in range(REPEATS):
        function()
    return (time.perf_counter() - start) / REPEATS * 1e6


def main() -> None:
    """Print a table of microseconds per call."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", nargs="?", default="libero_object-3")
    task = parser.parse_args().task
    suite, index = task.rsplit("-", 1)
    env = LiberoEnv(suite, int(index), observations=(), assets="light")
    env.reset(seed=0)
    reward = load_reward(task)
    text = RewardProgram.from_python(reward.to_python(), task=task)
    problem, robot = env.sim.scene.problem, env.sim.scene.robot
    target = problem.objects_dict[next(iter(problem.objects_dict))]
    state = env.facts()
    memory, text_memory = reward.reset(state), text.reset(state)
    info = {"step": 1}
    rows: dict[str, Callable[[], object]] = {
        "facts": env.facts,
        "program (spec)": lambda: reward(state, info, memory),
        "program (Python text)": lambda: text(state, info, text_memory),
        "facts + program": lambda: reward(env.facts(), info, memory),
        "LIBERO's _check_success": problem._check_success,
        "robosuite's _check_grasp, one object": lambda: problem._check_grasp(gripper=robot.gripper, object_geoms=target),
    }
    times: dict[str, list[float]] = {name: [] for name in rows}
    rng = np.random.default_rng(0)
    for _ in range(ROUNDS):
        for _ in range(3):
            if env.step(rng.uniform(-1.0, 1.0, 7))[3]:
                env.reset(seed=0)
        state = env.facts()
        for name, function in rows.items():
            times[name].append(microseconds(function))
    for name, values in times.items():
        print(f"{name:<40} {statistics.median(values):8.1f} us")
    ratio = statistics.median(times["robosuite's _check_grasp, one object"]) / statistics.median(times["facts + program"])
    print(f"robosuite's check of one object / all facts and the reward: {ratio:.1f}")
    env.close()


if __name__ == "__main__":
    main()
