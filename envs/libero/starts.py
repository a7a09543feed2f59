"""Wider distributions of initial states than LIBERO's."""

from collections.abc import Sequence
from typing import Any

import mujoco
import numpy as np

from sb3_tgrpo.envs.libero.scene import LiberoScene

_MAX_TRIES = 200
_STREAM = 0x57A7  # keeps the noise independent of other generators seeded alike
_JOINT_STREAM = 0x70147


def _carriers(scene: LiberoScene) -> dict[str, str | None]:
    """
    What each movable object stands on at the start: itself on the table (its own noise), another movable object (moves
    along), or None for a fixture (stays).
    """
    problem = scene.problem
    regions = problem.parsed_problem["regions"]
    carriers: dict[str, str | None] = {name: name for name in problem.objects_dict}
    for predicate, thing, *support in problem.parsed_problem["initial_state"]:
        if predicate not in ("on", "in") or thing not in carriers or not support:
            continue
        target = regions[support[0]]["target"] if support[0] in regions else support[0]
        if target in problem.objects_dict:
            carriers[thing] = target
        elif target in problem.fixtures_dict:
            carriers[thing] = None
    return carriers


def _touching_pairs(scene: LiberoScene, owner: np.ndarray) -> set[tuple[int, int]]:
    """Pairs of things in contact; ``owner`` maps geoms to things."""
    first, second = np.sort(owner[scene.data.contact.geom], axis=1).T
    return {(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True) if a != b}


def turn_joints(scene: LiberoScene, seed: int | Sequence[int], joint_noise: float) -> None:
    """Turn each joint of the arm by normal noise, as the robot stands in LIBERO's stored initial states, not in drawn ones."""
    rng = np.random.default_rng([_JOINT_STREAM, *([seed] if isinstance(seed, int) else seed)])
    joints = scene.robot._ref_joint_pos_indexes
    scene.data.qpos[joints] += rng.normal(0.0, joint_noise, len(joints))
    scene.data.qacc_warmstart[:] = 0.0
    mujoco.mj_forward(scene.model, scene.data)


def place_with_noise(scene: LiberoScene, seed: int | Sequence[int], start_noise: float) -> None:
    """
    Shift each movable object of a placed scene by up to ``start_noise`` metres along x and along y.

    What stands on another movable object moves with it; what stands in or on a fixture stays. Shifts that bring things into
    contact which LIBERO's own placement kept apart are drawn again.

    :param scene: Scene right after its ``reset``.
    :param seed: Number or several; the noise follows from it alone.
    :raises RuntimeError: If no shift without collision is found: the noise is too large for the scene.
    """
    model, data = scene.model, scene.data
    carriers = _carriers(scene)
    owner: np.ndarray = model.body_rootid[model.geom_bodyid]
    allowed = _touching_pairs(scene, owner)
    addresses: dict[str, Any] = {
        name: model.joint(thing.joints[-1]).qposadr[0] for name, thing in scene.problem.objects_dict.items()
    }
    before = data.qpos.copy()
    rng = np.random.default_rng([_STREAM, *([seed] if isinstance(seed, int) else seed)])
    for _ in range(_MAX_TRIES):
        shifts = {name: rng.uniform(-start_noise, start_noise, 2) for name in addresses}
        for name, address in addresses.items():
            carrier: str | None = name
            while carrier is not None and carriers[carrier] != carrier:
                carrier = carriers[carrier]
            if carrier is not None:
                data.qpos[address : address + 2] = before[address : address + 2] + shifts[carrier]
        # From a fresh solver state, so that the initial state does not depend on the shifts that were rejected.
        data.qacc_warmstart[:] = 0.0
        mujoco.mj_forward(model, data)
        if _touching_pairs(scene, owner) <= allowed:
            return
    raise RuntimeError(
        f"start_noise={start_noise}: no placement of {scene.task.name} without collisions in {_MAX_TRIES} tries. "
        "Use a smaller start_noise."
    )
