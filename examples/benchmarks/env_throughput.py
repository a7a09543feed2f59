"""
Speed of the LIBERO environments beside LIBERO's own, on the same work in one run.

    python examples/benchmarks/env_throughput.py            # full assets if found, else light ones on both sides
    python examples/benchmarks/env_throughput.py --quick    # a smoke test: the numbers mean nothing

Each side lives in processes of its own. Blocks of both sides alternate, so that both see the same machine; the table shows
medians over blocks. Both sides play the same random actions from the same stored start and settle for the same 10 steps.
"""

import argparse
import multiprocessing as mp
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.env import CAMERAS, SETTLE_ACTION, SETTLE_STEPS, LiberoEnv
from sb3_tgrpo.envs.libero.installation import libero_assets
from sb3_tgrpo.envs.libero.process import prepare_process
from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts
from sb3_tgrpo.rewards.facts.task_name import TaskName


@dataclass(frozen=True)
class Side:
    """
    One side of a comparison.

    :param who: ``"ours"`` or ``"libero"``.
    :param pictures: names of the 256x256 pictures that each step returns.
    :param assets: ``"full"`` or ``"light"``.
    :param processes: environments running at once, each in its own process.
    """

    who: str
    pictures: tuple[str, ...]
    assets: str
    processes: int = 1


Play = Callable[[int], float]


def make_ours(task: str, side: Side) -> tuple[Play, Play]:
    """:return: seconds for n steps, seconds for n resets to the first observation."""
    env = LiberoEnv(*TaskName.parse(task), assets=side.assets, observations=side.pictures)  # type: ignore[arg-type]
    env.reset(options={"init_state_id": 0})

    def steps(n: int) -> float:
        env.reset(options={"init_state_id": 0})
        actions = np.random.default_rng(0).uniform(-1, 1, (n, 7)).astype(np.float32)
        started = time.perf_counter()
        for action in actions:
            env.step(action)
        return time.perf_counter() - started

    def resets(n: int) -> float:
        started = time.perf_counter()
        for k in range(n):
            env.reset(seed=k, options={"init_state_id": k})
        return time.perf_counter() - started

    return steps, resets


def make_libero(task: str, side: Side) -> tuple[Play, Play]:
    """The same with LIBERO's ``OffScreenRenderEnv``, used as its evaluation scripts use it."""
    prepare_process()
    libero_task = get_task(*TaskName.parse(task))
    assets = resolve_assets(side.assets).path
    with libero_assets(assets):
        from libero.libero.envs import OffScreenRenderEnv

    cameras: dict[str, Any] = {"use_camera_obs": False}
    if side.pictures:
        cameras = {"camera_names": [CAMERAS[name] for name in side.pictures], "camera_heights": 256, "camera_widths": 256}
    with libero_assets(assets):
        env = OffScreenRenderEnv(bddl_file_name=str(libero_task.bddl_file), **cameras)
    starts = stored_starts(libero_task)

    def start(seed: int, k: int) -> None:
        env.seed(seed)
        with libero_assets(assets):  # every reset loads the models again
            env.reset()
        env.set_init_state(starts[k])
        for _ in range(SETTLE_STEPS):
            env.step(np.array(SETTLE_ACTION))

    def steps(n: int) -> float:
        start(0, 0)
        actions = np.random.default_rng(0).uniform(-1, 1, (n, 7))
        started = time.perf_counter()
        for action in actions:
            env.step(action)
        return time.perf_counter() - started

    def resets(n: int) -> float:
        started = time.perf_counter()
        for k in range(n):
            start(k, k)
        return time.perf_counter() - started

    return steps, resets


def work(connection: Connection, task: str, side: Side) -> None:
    """A process: plays what it is told to and answers with seconds."""
    steps, resets = (make_ours if side.who == "ours" else make_libero)(task, side)
    connection.send("ready")
    while (order := connection.recv()) is not None:
        what, n = order
        connection.send((steps if what == "steps" else resets)(n))
    connection.close()
    sys.stdout.flush()
    os._exit(0)  # robosuite's contexts complain when they are collected at exit


class Runner:
    """The processes of one side."""

    def __init__(self, task: str, side: Side) -> None:
        spawn = mp.get_context("spawn")
        self.workers = []
        for _ in range(side.processes):
            connection, child = spawn.Pipe()
            process = spawn.Process(target=work, args=(child, task, side), daemon=True)
            process.start()
            child.close()
            self.workers.append((process, connection))
        for _, connection in self.workers:
            connection.recv()

    def measure(self, what: str, n: int) -> float:
        """:return: steps or resets per second, over all processes."""
        for _, connection in self.workers:
            connection.send((what, n))
        return sum(n / connection.recv() for _, connection in self.workers)

    def close(self) -> None:
        for process, connection in self.workers:
            connection.send(None)
            process.join(30)


def compare(task: str, sides: tuple[Side, Side], what: str, n: tuple[int, int], repeats: int) -> tuple[float, float]:
    """
    :param n: steps or resets per block, for each side.
    :return: median rate of each side over ``repeats`` alternating blocks.
    """
    runners = [Runner(task, side) for side in sides]
    rates: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for k, runner in enumerate(runners):
            rates[k].append(runner.measure(what, n[k]))
    for runner in runners:
        runner.close()
    return statistics.median(rates[0]), statistics.median(rates[1])


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="libero_object-0")
    parser.add_argument("--repeats", type=int, default=5, help="blocks per side; medians are shown")
    parser.add_argument("--assets", default="auto", choices=("auto", "full", "light"))
    parser.add_argument("--quick", action="store_true", help="one tiny block of two rows, to see that it runs")
    args = parser.parse_args(argv)
    assets = resolve_assets(args.assets).kind
    repeats = 1 if args.quick else args.repeats
    blind, seen, resets = (3, 2, (1, 1)) if args.quick else (200, 30, (5, 2))
    image, both = ("image",), ("image", "wrist_image")

    def pair(ours: tuple[str, ...], libero: tuple[str, ...], processes: int = 1) -> tuple[Side, Side]:
        return Side("ours", ours, assets, processes), Side("libero", libero, assets, processes)

    rows: list[tuple[str, tuple[Side, Side], str, tuple[int, int]]] = [
        ("steps/s, no image", pair((), ()), "steps", (blind, blind)),
        ("steps/s, no image, 2 processes", pair((), (), 2), "steps", (blind, blind)),
        ("steps/s, one 256x256 image", pair(image, image), "steps", (seen, seen)),
        ("steps/s, one image, 2 processes", pair(image, image, 2), "steps", (seen, seen)),
        ("steps/s, two cameras", pair(both, both), "steps", (seen, seen)),
        ("steps/s, each by default (one image; two cameras)", pair(image, both), "steps", (seen, seen)),
        ("resets/s to the first observation, one image", pair(image, image), "resets", resets),
    ]
    if args.quick:
        rows = [rows[2], rows[6]]
    print(f"{args.task}, {assets} assets, {mp.cpu_count()} cores, medians of {repeats} alternating blocks\n")
    print("| | ours | LIBERO | ratio |\n|---|---:|---:|---:|")
    for title, sides, what, n in rows:
        ours, libero = compare(args.task, sides, what, n, repeats)
        print(f"| {title} | {ours:.1f} | {libero:.2f} | {ours / libero:.1f}x |", flush=True)

    if assets == "full" and not args.quick:
        print("\n| | light assets | full assets | ratio |\n|---|---:|---:|---:|")
        for title, pictures, size in (
            ("ours, steps/s, one 256x256 image", image, seen),
            ("ours, steps/s, no image", (), blind),
        ):
            light, full = Side("ours", pictures, "light"), Side("ours", pictures, "full")
            fast, slow = compare(args.task, (light, full), "steps", (size, size), repeats)
            print(f"| {title} | {fast:.1f} | {slow:.1f} | {fast / slow:.1f}x |", flush=True)


if __name__ == "__main__":
    main()
