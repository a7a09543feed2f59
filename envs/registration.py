"""Gym ids of LIBERO's 130 tasks. Imports nothing but Gymnasium's registry."""

from collections.abc import Iterable
from types import MappingProxyType

SUITES = MappingProxyType({"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90})
"""Number of tasks per suite."""

STEP_CAPS = MappingProxyType(
    {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
)
"""Control steps per episode, as in OpenVLA's evaluation (the longest demonstration plus a margin)."""


def gym_id(suite: str, task: int) -> str:
    """``LIBERO/libero_object-3-v0`` for suite ``libero_object`` and task 3."""
    return f"LIBERO/{suite}-{task}-v0"


def env_id(task: str) -> str:
    """
    A Gymnasium id as it is asked for on the command line.

    :param task: such as ``libero_object-3``, LIBERO's own; ids are left as they are.
    """
    suite, _, index = task.rpartition("-")
    return gym_id(suite, int(index)) if suite in SUITES and index.isdecimal() else task


def env_ids(tasks: Iterable[str]) -> list[str]:
    """
    Gymnasium ids, each once.

    :param tasks: such as ``libero_object-3``, a suite's name for all of its tasks, or ids.
    """
    found: list[str] = []
    for task in tasks:
        found += [gym_id(task, index) for index in range(SUITES[task])] if task in SUITES else [env_id(task)]
    return list(dict.fromkeys(found))


def register_envs() -> None:
    """Register ``LIBERO/<suite>-<task>-v0`` for every task of every suite; ids that exist already are left alone."""
    from gymnasium.envs.registration import register, registry

    for suite, count in SUITES.items():
        for task in range(count):
            if gym_id(suite, task) not in registry:
                register(
                    gym_id(suite, task),
                    entry_point="sb3_tgrpo.envs.libero:LiberoEnv",
                    max_episode_steps=STEP_CAPS[suite],
                    kwargs={"suite": suite, "task": task},
                )
