"""Gym ids of LIBERO's 130 tasks. Imports nothing but Gymnasium's registry."""

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
