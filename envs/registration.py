"""Gym ids of LIBERO's 130 tasks. Imports nothing but Gymnasium's registry."""

from collections.abc import Iterable
from types import MappingProxyType

from sb3_tgrpo.rewards.facts.task_name import TaskName

SUITES = MappingProxyType({"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90})
"""Number of tasks per suite."""

STEP_CAPS = MappingProxyType(
    {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
)
"""Control steps per episode, as in OpenVLA's evaluation (the longest demonstration plus a margin)."""


def task_names(names: Iterable[str]) -> list[TaskName]:
    """
    Tasks by their names.

    :param names: Tasks such as ``libero_object-3``, and suites such as ``libero_object`` for all of their tasks.
    :raises ValueError: If a name is neither.
    """
    found: list[TaskName] = []
    for name in names:
        found += [TaskName(name, task) for task in range(SUITES[name])] if name in SUITES else [TaskName.parse(name)]
    return found


def env_ids(names: Iterable[str]) -> list[str]:
    """
    Gymnasium ids, each once.

    :param names: Tasks such as ``libero_object-3``, suites such as ``libero_object`` for all of their tasks, or ids.
    """
    found: list[str] = []
    for name in names:
        found += [task.gym_id for task in task_names([name])] if name in SUITES else [env_id(name)]
    return list(dict.fromkeys(found))


def env_id(name: str) -> str:
    """
    Gymnasium id of an environment that the command line names.

    :param name: Task such as ``libero_object-3``; other ids are left as they are.
    """
    suite, _, task = name.rpartition("-")
    return TaskName(suite, int(task)).gym_id if suite in SUITES and task.isdecimal() else name


def register_envs() -> None:
    """Register ``LIBERO/<suite>-<task>-v0`` for every task of every suite; ids that exist already are left alone."""
    from gymnasium.envs.registration import register, registry

    for name in task_names(SUITES):
        if name.gym_id not in registry:
            register(
                name.gym_id,
                entry_point="sb3_tgrpo.envs.libero.env:LiberoEnv",
                max_episode_steps=STEP_CAPS[name.suite],
                kwargs={"suite": name.suite, "task": name.task},
            )
