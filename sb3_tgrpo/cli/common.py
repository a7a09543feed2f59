"""What several commands share: environments named on the command line, and Ctrl-C that is heard at once."""

import difflib
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


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


@contextmanager
def announced_interrupt() -> Iterator[None]:
    """Inside the block, Ctrl-C is acknowledged before anything is ended, which may take seconds."""

    def acknowledge(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("\nStopping. The same command goes on from here.", file=sys.stderr, flush=True)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, acknowledge)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
