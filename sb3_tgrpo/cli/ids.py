"""Environments named on the command line."""

import difflib
from collections.abc import Iterable


def checked_env_ids(names: Iterable[str]) -> list[str]:
    """
    Gymnasium ids, each once.

    :param names: Tasks such as ``libero_object-3``, suites such as ``libero_object`` for all of their tasks, or ids.
    :raises ValueError: If there is no such environment, with those that may be meant.
    """
    import gymnasium as gym

    import sb3_tgrpo  # noqa: F401  # registers LIBERO's ids
    from sb3_tgrpo.envs.registration import SUITES, env_ids
    from sb3_tgrpo.evaluation.results import task_name

    found = env_ids(names)
    for env_id in found:
        if ":" in env_id or env_id in gym.registry:  # a module is imported where the environment is made
            continue
        task = env_id.removeprefix("LIBERO/").removesuffix("-v0") if env_id.startswith("LIBERO/") else env_id
        suite, _, number = task.rpartition("-")
        if suite in SUITES and number.isdecimal():
            raise ValueError(f"env={task!r}: {suite} has tasks 0 to {SUITES[suite] - 1}.")
        close = difflib.get_close_matches(task, [*map(task_name, gym.registry), *SUITES], 3, 0.75)
        meant = f"Did you mean {' or '.join(close)}?" if close else f"LIBERO's suites are {', '.join(SUITES)}."
        raise ValueError(f"env={task!r}: there is no such environment. {meant}")
    return found
