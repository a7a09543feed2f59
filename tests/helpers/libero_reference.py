"""LIBERO's own environment, to compare with."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.env import SETTLE_ACTION, SETTLE_STEPS
from sb3_tgrpo.envs.libero.gl import choose_gl
from sb3_tgrpo.envs.libero.installation import libero_assets
from sb3_tgrpo.envs.libero.scene import global_numpy_seed
from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts


@contextmanager
def libero_env(suite: str, task: int, assets: str = "full", images: bool = False) -> Iterator[Any]:
    """A fresh ``OffScreenRenderEnv``, as LIBERO's users make it."""
    choose_gl()
    options: dict[str, Any] = {"use_camera_obs": images}
    if images:
        options |= {"camera_names": ["agentview"], "camera_heights": 256, "camera_widths": 256}
    with global_numpy_seed(), libero_assets(resolve_assets(assets).path):
        from libero.libero.envs import OffScreenRenderEnv

        env = OffScreenRenderEnv(bddl_file_name=str(get_task(suite, task).bddl_file), **options)
        try:
            yield env
        finally:
            env.close()


def start(env: Any, suite: str, task: int, seed: int, init_state_id: int | None) -> dict[str, np.ndarray]:
    """The start that contract and documentation name: seed, one reset, a stored state if asked for, 10 idle steps."""
    env.seed(seed)
    env.reset()
    if init_state_id is not None:
        env.set_init_state(stored_starts(get_task(suite, task))[init_state_id])
    for _ in range(SETTLE_STEPS):
        observation, *_ = env.step(np.array(SETTLE_ACTION))
    return observation


def random_actions(seed: int, n: int = 200) -> np.ndarray:
    """Random actions; the second half pushes down and closes the gripper, which makes contacts."""
    actions = np.random.default_rng(seed).uniform(-1, 1, (n, 7))
    actions[n // 2 :, 6] = 1.0
    actions[n // 2 :, 2] -= 0.3
    return np.clip(actions, -1, 1).astype(np.float32)


def step_with_its_own_context(env: Any, action: np.ndarray) -> tuple[dict[str, np.ndarray], float, bool, dict[str, Any]]:
    """robosuite renders into whatever OpenGL context is current, which beside another environment is not its own."""
    env.sim._render_context_offscreen.gl_ctx.make_current()
    return env.step(action)
