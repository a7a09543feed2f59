"""What rewards, experts and key poses may use of a LIBERO scene: the live state, read in microseconds."""

from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np
from numba import njit, types

from sb3_tgrpo.envs.libero import controller as libero_controller  # noqa: F401  (loads MuJoCo's library for Numba)
from sb3_tgrpo.envs.libero.geometry import box_of_geoms, geom_mask
from sb3_tgrpo.envs.libero.goal import GoalPredicates
from sb3_tgrpo.envs.libero.scene import LiberoScene
from sb3_tgrpo.rewards.facts.vocabulary import State, StateValue

_mju_mat2quat: Any = types.ExternalFunction("mju_mat2Quat", types.void(types.uintp, types.uintp))

_LEFT_PAD, _RIGHT_PAD, _GRIPPER = 1, 2, 4
_HANDLE_DEPTH = 0.025


@dataclass(frozen=True)
class Handle:
    """What is pulled, pushed or turned to move a joint."""

    name: str
    fixture: str
    joint: str
    body: int
    center: np.ndarray  # in the frame of the body
    geoms: tuple[int, ...]


@dataclass(frozen=True)
class Entities:
    """Names of a task's things in the vocabulary: everything movable, all fixtures, and what the goal is about."""

    objects: tuple[str, ...]
    fixtures: tuple[str, ...]
    sites: tuple[str, ...]
    joints: tuple[str, ...]
    handles: tuple[Handle, ...]


def find_entities(scene: LiberoScene, goal: GoalPredicates) -> Entities:
    """
    The entities of a task.

    Sites are the goal's. Joints are the ones that the goal moves, directly (``Open``, ``Turnon``) or because a region
    of the goal moves with them (a bowl that goes into a drawer); each has a handle.
    """
    problem = scene.problem
    sites: list[str] = []
    joints: dict[str, Any] = {}
    for atom in goal.atoms:
        for arg in atom[1:]:
            if arg in problem.object_sites_dict:
                site = problem.object_sites_dict[arg]
                sites.append(arg)
                joints.update({joint: problem.get_object(site.parent_name) for joint in site.joints or []})
            elif arg in problem.fixtures_dict:
                joints.update({joint: problem.fixtures_dict[arg] for joint in problem.fixtures_dict[arg].joints})
    return Entities(
        objects=tuple(problem.objects_dict),
        fixtures=tuple(problem.fixtures_dict),
        sites=tuple(dict.fromkeys(sites)),
        joints=tuple(joints),
        handles=tuple(_find_handle(scene, joint, owner) for joint, owner in joints.items()),
    )


def _find_handle(scene: LiberoScene, joint: str, owner: Any) -> Handle:
    """
    LIBERO names no handles. On a drawer or door the handle is what sticks out furthest in the direction of opening; a
    knob is its whole body.
    """
    model = scene.model
    joint_id = model.joint(joint).id
    body = int(model.jnt_bodyid[joint_id])
    collision = set(np.flatnonzero(geom_mask(model, owner.contact_geoms)))
    geoms = [g for g in range(model.body_geomadr[body], model.body_geomadr[body] + model.body_geomnum[body]) if g in collision]
    stem = joint.removesuffix("_level").removesuffix("joint")
    articulation = owner.object_properties["articulation"]
    if articulation.get("default_turnon_ranges"):
        low, high = box_of_geoms(model, scene.data, geoms, body)
        return Handle(f"{owner.name}_knob", owner.name, joint, body, (low + high) / 2, tuple(geoms))

    sign = np.sign(np.mean(articulation["default_open_ranges"]))
    axis = sign * model.jnt_axis[joint_id]
    centers = model.geom_pos[geoms]
    if model.jnt_type[joint_id] == mujoco.mjtJoint.mjJNT_HINGE:
        panel = int(np.argmax(model.geom_rbound[geoms]))
        outward = np.cross(axis, centers[panel] - model.jnt_pos[joint_id])
        outward /= np.linalg.norm(outward)
        name = f"{owner.name}_door_handle"
    else:
        outward = axis
        name = f"{stem}_handle"
    reach = centers @ outward
    chosen = tuple(g for g, r in zip(geoms, reach, strict=True) if r > reach.max() - _HANDLE_DEPTH)
    return Handle(name, owner.name, joint, body, centers[int(np.argmax(reach))].copy(), chosen)


@njit(cache=True)
def _collect(reads: tuple[np.ndarray, ...], contact_geom: np.ndarray, writes: tuple[np.ndarray, ...]) -> None:
    """Positions and (x, y, z, w) quaternions of bodies, then sites, then positions of handles; who touches the gripper."""
    xpos, xquat, xmat, site_xpos, site_xmat, bodies, sites, handle_bodies, handle_centers = reads
    label, grip, pos, quat, touch = writes
    n_bodies, n_sites = bodies.shape[0], sites.shape[0]
    wxyz = np.empty(4)
    for i in range(n_bodies):
        for k in range(3):
            pos[i, k] = xpos[bodies[i], k]
            quat[i, k] = xquat[bodies[i], k + 1]
        quat[i, 3] = xquat[bodies[i], 0]
    for i in range(n_sites):
        row = site_xmat[sites[i]].copy()
        _mju_mat2quat(wxyz.ctypes.data, row.ctypes.data)
        for k in range(3):
            pos[n_bodies + i, k] = site_xpos[sites[i], k]
            quat[n_bodies + i, k] = wxyz[k + 1]
        quat[n_bodies + i, 3] = wxyz[0]
    for i in range(handle_bodies.shape[0]):
        body = handle_bodies[i]
        for k in range(3):
            value = xpos[body, k]
            for j in range(3):
                value += xmat[body, 3 * k + j] * handle_centers[i, j]
            pos[n_bodies + n_sites + i, k] = value
    touch[:] = 0
    for c in range(contact_geom.shape[0]):
        first, second = contact_geom[c, 0], contact_geom[c, 1]
        if label[first] >= 0 and grip[second] != 0:
            touch[label[first]] |= grip[second]
        elif label[second] >= 0 and grip[first] != 0:
            touch[label[second]] |= grip[first]


class FactsReader:
    """Reads the state in terms of :data:`sb3_tgrpo.rewards.facts.vocabulary.VOCABULARY`."""

    def __init__(self, scene: LiberoScene, goal: GoalPredicates) -> None:
        model, data, robot = scene.model, scene.data, scene.robot
        self.entities = entities = find_entities(scene, goal)
        self._data = data
        gripper = robot.gripper
        self._fingers = [int(address) for address in robot._ref_gripper_joint_pos_indexes]
        self._joints = [int(model.joint(joint).qposadr[0]) for joint in entities.joints]

        things = {**scene.problem.objects_dict, **scene.problem.fixtures_dict}
        bodies = [model.body(things[name].root_body).id for name in entities.objects + entities.fixtures]
        label = np.full(model.ngeom, -1, np.int64)
        for i, name in enumerate(entities.objects):
            label[geom_mask(model, things[name].contact_geoms)] = i
        for i, handle in enumerate(entities.handles):
            label[list(handle.geoms)] = len(entities.objects) + i
        grip = np.zeros(model.ngeom, np.int64)
        grip[geom_mask(model, gripper.contact_geoms)] |= _GRIPPER
        grip[geom_mask(model, gripper.important_geoms["left_fingerpad"])] |= _LEFT_PAD
        grip[geom_mask(model, gripper.important_geoms["right_fingerpad"])] |= _RIGHT_PAD

        eef_body = model.body(robot.robot_model.eef_name).id
        sites = [robot.eef_site_id] + [model.site(name).id for name in entities.sites]
        n_pos = len(bodies) + 1 + len(sites) + len(entities.handles)
        self._pos, self._quat = np.zeros((n_pos, 3)), np.zeros((n_pos, 4))
        self._touch = np.zeros(len(entities.objects) + len(entities.handles), np.int64)
        self._arrays = (
            *(data.xpos, data.xquat, data.xmat, data.site_xpos, data.site_xmat),
            np.array([*bodies, eef_body], np.int64),
            np.array(sites, np.int64),
            np.array([handle.body for handle in entities.handles], np.int64),
            np.array([handle.center for handle in entities.handles]).reshape(-1, 3),
        )
        self._labels = (label, grip, self._pos, self._quat, self._touch)

        # The end effector's position is that of a site, its orientation that of a body, as in LIBERO's observations.
        self._eef_row = eef = len(entities.objects + entities.fixtures)
        posed = [*enumerate(entities.objects + entities.fixtures), *enumerate(entities.sites, eef + 2)]
        self._pose_keys = [(row, f"{name}_pos", f"{name}_quat") for row, name in posed]
        handles = enumerate(entities.handles, eef + 1 + len(sites))
        self._handle_keys = [(row, f"{handle.name}_pos", f"{handle.name}_touched") for row, handle in handles]
        self._touch_keys = [
            (f"{name}_left_pad", f"{name}_right_pad", f"{name}_grasped", f"{name}_touched") for name in entities.objects
        ]
        self._joint_keys = [f"{joint}_qpos" for joint in entities.joints]
        self._goal_keys = [f"goal_{k}" for k in range(len(goal.atoms))]

    def read(self, atoms: list[bool]) -> State:
        """The state as plain floats, bools and tuples; ``atoms`` is the truth of the goal's atoms now."""
        data = self._data
        _collect(self._arrays, data.contact.geom, self._labels)
        pos, quat, touch = self._pos.tolist(), self._quat.tolist(), self._touch.tolist()
        qpos = data.qpos
        eef = self._eef_row
        state: dict[str, StateValue] = {
            "eef_pos": tuple(pos[eef + 1]),
            "eef_quat": tuple(quat[eef]),
            "gripper_opening": float(qpos[self._fingers[0]] - qpos[self._fingers[1]]),
        }
        for row, pos_key, quat_key in self._pose_keys:
            state[pos_key] = tuple(pos[row])
            state[quat_key] = tuple(quat[row])
        for bits, (left, right, grasped, touched) in zip(touch, self._touch_keys, strict=False):
            state[left] = bits & _LEFT_PAD != 0
            state[right] = bits & _RIGHT_PAD != 0
            state[grasped] = bits & 3 == 3
            state[touched] = bits != 0
        for bits, (row, pos_key, touched) in zip(touch[len(self._touch_keys) :], self._handle_keys, strict=True):
            state[pos_key] = tuple(pos[row])
            state[touched] = bits != 0
        for key, address in zip(self._joint_keys, self._joints, strict=True):
            state[key] = float(qpos[address])
        for key, value in zip(self._goal_keys, atoms, strict=True):
            state[key] = value
        state["success"] = all(atoms)
        return state
