"""Checks of the simulator."""

import importlib.util
from contextlib import closing
from functools import partial

import numpy as np

from sb3_tgrpo.doctor.finding import Check, DoctorContext, Found
from sb3_tgrpo.doctor.installation import HF_LIBERO
from sb3_tgrpo.rewards.facts.task_name import TaskName

# Mean of a 128x128 frame of libero_object-0's first stored initial state with the pinned MuJoCo (EGL and OSMesa agree), and
# how far another renderer may be off. MuJoCo 3.8 draws this frame 38 levels darker.
BRIGHTNESS = {"full": 135.7, "light": 130.7}
BRIGHTNESS_TOLERANCE = 8.0
REFERENCE_TASK = TaskName("libero_object", 0)

_PARITY_STEPS = 5


@partial(Check, "assets")
def check_asset_files(context: DoctorContext) -> Found:
    """Which models the simulator shows, and whether all are there."""
    from sb3_tgrpo.envs.libero.assets import ASSETS_VARIABLE, missing_files

    try:
        assets = context.found_assets
    except FileNotFoundError as error:
        return "failed", str(error), f"Complete the folder, or point {ASSETS_VARIABLE} at another."
    if assets.kind == "light":
        if context.assets == "light":
            return "ok", "light (built in)", ""
        found = "light (built in); LIBERO's own were not found on this machine"
        return "note", found, f"For checkpoints trained on LIBERO's own, set {ASSETS_VARIABLE}."
    if missing := missing_files(assets.path):
        return "failed", f"{assets.path}: {len(missing)} missing, {', '.join(missing[:3])}", "Download the folder again."
    return "ok", f"full, complete: {assets.path}", ""


@partial(Check, "rendered frame")
def check_brightness(context: DoctorContext) -> Found:
    """A frame's mean against the stored figure: another MuJoCo or a broken renderer shows here first."""
    kind = context.found_assets.kind
    with closing(context.make_env(REFERENCE_TASK, image_size=128)) as env:
        observation, _ = env.reset(seed=0, options={"init_state_id": 0})
    mean, expected = float(observation["image"].mean()), BRIGHTNESS[kind]
    found = f"mean {mean:.1f} of a {kind} frame, expected {expected:.1f} within {BRIGHTNESS_TOLERANCE:g}"
    if abs(mean - expected) <= BRIGHTNESS_TOLERANCE:
        return "ok", found, ""
    remedy = "Compare the MuJoCo and OpenGL rows; try MUJOCO_GL=osmesa. Textures may be missing or replaced."
    return "failed", found, remedy


@partial(Check, "parity with LIBERO")
def check_parity(context: DoctorContext) -> Found:
    """Initial state and controller against LIBERO's own environment, step by step."""
    if importlib.util.find_spec("libero") is None:
        remedy = "pip install --no-deps hf-libero==" + HF_LIBERO
        return "failed", "LIBERO is not installed, which its environments need", remedy
    suite, task = context.task
    off = np.abs(our_states(context) - libero_states(context)).max(axis=1)
    found = f"{suite}-{task}: largest difference {off.max():.1e} in the initial state and {_PARITY_STEPS} steps"
    if not off.any():
        return "ok", found, ""
    where = "in the initial state already" if off[0] > 0 else f"from step {int(np.argmax(off > 0))} on"
    remedy = "Compare robosuite and MuJoCo with their pins: physics here is not what published results had."
    return "failed", f"{found}, {where}", remedy


def _probe_actions() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (_PARITY_STEPS, 7)).astype(np.float32)


def our_states(context: DoctorContext) -> np.ndarray:
    """Flattened states ``(steps + 1, n)`` of :class:`~sb3_tgrpo.envs.LiberoEnv` from the first stored initial state."""
    with closing(context.make_env(context.task, observations=())) as env:
        env.reset(seed=0, options={"init_state_id": 0})
        states = [env.flat_state()]
        for action in _probe_actions():
            env.step(action)
            states.append(env.flat_state())
    return np.stack(states)


def libero_states(context: DoctorContext) -> np.ndarray:
    """The same of LIBERO's own ``OffScreenRenderEnv``."""
    from sb3_tgrpo.envs.libero.env import SETTLE_ACTION, SETTLE_STEPS
    from sb3_tgrpo.envs.libero.installation import libero_assets
    from sb3_tgrpo.envs.libero.process import prepare_process
    from sb3_tgrpo.envs.libero.scene import global_numpy_seed
    from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts

    prepare_process()
    task = get_task(*context.task)
    with global_numpy_seed(), libero_assets(context.found_assets.path):
        from libero.libero.envs import OffScreenRenderEnv

        with closing(OffScreenRenderEnv(bddl_file_name=str(task.bddl_file), use_camera_obs=False)) as env:
            env.seed(0)
            env.reset()
            env.set_init_state(stored_starts(task)[0])
            for _ in range(SETTLE_STEPS):
                env.step(np.array(SETTLE_ACTION))
            states = [env.get_sim_state().copy()]
            for action in _probe_actions():
                env.step(action.astype(np.float64))
                states.append(env.get_sim_state().copy())
    return np.stack(states)


SIMULATOR_CHECKS = (check_asset_files, check_brightness, check_parity)
