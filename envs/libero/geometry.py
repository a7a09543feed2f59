"""Sizes of collision geometry."""

from collections.abc import Sequence

import mujoco
import numpy as np


def geom_mask(model: mujoco.MjModel, names: list[str]) -> np.ndarray:
    """Boolean mask over all geoms."""
    mask = np.zeros(model.ngeom, bool)
    mask[[model.geom(name).id for name in names]] = True
    return mask


def geom_extent(model: mujoco.MjModel, geom: int, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Corners, each (3,), of a collision geom around its own centre; ``rotation`` turns its frame to the result's."""
    size, kind = model.geom_size[geom], model.geom_type[geom]
    shapes = mujoco.mjtGeom
    if kind == shapes.mjGEOM_MESH:
        mesh = model.geom_dataid[geom]
        first = model.mesh_vertadr[mesh]
        points = model.mesh_vert[first : first + model.mesh_vertnum[mesh]] @ rotation.T
        return points.min(axis=0), points.max(axis=0)
    if kind == shapes.mjGEOM_BOX:
        half = np.abs(rotation) @ size
    elif kind == shapes.mjGEOM_SPHERE:
        half = np.full(3, size[0])
    elif kind == shapes.mjGEOM_ELLIPSOID:
        half = np.linalg.norm(rotation * size, axis=1)
    elif kind == shapes.mjGEOM_CAPSULE:
        half = np.abs(rotation[:, 2]) * size[1] + size[0]
    elif kind == shapes.mjGEOM_CYLINDER:
        half = np.abs(rotation[:, 2]) * size[1] + np.linalg.norm(rotation[:, :2], axis=1) * size[0]
    else:
        raise ValueError(f"geom {model.geom(geom).name!r} of type {kind} has no finite extent.")
    return -half, half


def box_of_geoms(model: mujoco.MjModel, data: mujoco.MjData, geoms: Sequence[int], body: int) -> tuple[np.ndarray, np.ndarray]:
    """Corners, each (3,), of the box around geoms in the frame of a body, relative to its origin, at current poses."""
    to_body = data.xmat[body].reshape(3, 3).T
    lows, highs = [], []
    for geom in geoms:
        center = to_body @ (data.geom_xpos[geom] - data.xpos[body])
        low, high = geom_extent(model, geom, to_body @ data.geom_xmat[geom].reshape(3, 3))
        lows.append(center + low)
        highs.append(center + high)
    return np.min(lows, axis=0), np.max(highs, axis=0)
