"""
LIBERO's control loop, compiled: 25 physics steps under robosuite's OSC_POSE controller in one call.

LIBERO spends about 80% of a step in Python: three forward passes per physics step, name look-ups, and a controller of
small numpy calls. Here the loop is one Numba function that calls MuJoCo's C library and robosuite's own (already
compiled) matrix routines, so that every floating-point operation that reaches the state is the same as LIBERO's and in
the same order. Trajectories are equal bit for bit, which matters: contacts amplify a difference in the last bit to
millimetres within a hundred steps, and closeness could not be told from a wrong controller.

Per physics step LIBERO runs ``mj_forward``, the controller's own ``mj_forward``, then ``mj_step``. The position and
velocity stages of the three are equal; the constraint solver's are not, since each starts from the previous solution.
So the first stages run once and the solver as often as in LIBERO.
"""

from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding  # type: ignore[import-untyped]
import mujoco
import numpy as np
from filelock import FileLock
from numba import njit, types
from robosuite.utils import transform_utils
from robosuite.utils.control_utils import nullspace_torques, opspace_matrices, orientation_error

SUBSTEPS = 25
"""Physics steps of 2 ms per control step of 50 ms."""


def _load_library() -> None:
    # Numba finds MuJoCo's functions by name in the library that the Python bindings have already loaded.
    folder = Path(mujoco.__file__).parent
    for pattern in ("libmujoco.so*", "libmujoco*.dylib", "mujoco.dll"):
        for path in folder.glob(pattern):
            llvmlite.binding.load_library_permanently(str(path))
            return
    raise ImportError(f"MuJoCo's library was not found in {folder}: reinstall the mujoco package.")


_load_library()

_POINTER = types.uintp
_OF_DATA = types.void(_POINTER, _POINTER)
_mj_step1: Any = types.ExternalFunction("mj_step1", _OF_DATA)
_mj_step2: Any = types.ExternalFunction("mj_step2", _OF_DATA)
_mj_fwd_actuation: Any = types.ExternalFunction("mj_fwdActuation", _OF_DATA)
_mj_fwd_acceleration: Any = types.ExternalFunction("mj_fwdAcceleration", _OF_DATA)
_mj_fwd_constraint: Any = types.ExternalFunction("mj_fwdConstraint", _OF_DATA)
_mj_full_m: Any = types.ExternalFunction("mj_fullM", types.void(_POINTER, _POINTER, _POINTER))
_mj_jac_site: Any = types.ExternalFunction("mj_jacSite", types.void(_POINTER, _POINTER, _POINTER, _POINTER, types.int32))


class _Views(NamedTuple):
    """Arrays of the ``mjData``; MuJoCo writes them in place."""

    qpos: np.ndarray
    qvel: np.ndarray
    qm: np.ndarray
    qfrc_bias: np.ndarray
    ctrl: np.ndarray
    site_xpos: np.ndarray
    site_xmat: np.ndarray


class _Arm(NamedTuple):
    """Indices, gains and limits of the robot."""

    site: int
    qpos_index: np.ndarray
    dof_index: np.ndarray
    ctrl_index: np.ndarray
    grip_index: np.ndarray
    kp: np.ndarray
    kd: np.ndarray
    posture: np.ndarray
    torque_low: np.ndarray
    torque_high: np.ndarray
    grip_bias: np.ndarray
    grip_weight: np.ndarray
    grip_speed: float


class _Command(NamedTuple):
    """The controller's memory: goal pose, finger command, and whether ``_Sensed`` is still that of its construction."""

    goal_pos: np.ndarray
    goal_mat: np.ndarray
    grip: np.ndarray
    stale: np.ndarray


class _Sensed(NamedTuple):
    """The arm's state as the controller last read it."""

    jac: np.ndarray
    jac_pos: np.ndarray
    jac_ori: np.ndarray
    mass: np.ndarray
    pos: np.ndarray
    mat: np.ndarray
    joint_pos: np.ndarray
    joint_vel: np.ndarray
    vel_pos: np.ndarray
    vel_ori: np.ndarray


@njit(cache=True)
def _sense(model: int, data: int, views: _Views, arm: _Arm, sensed: _Sensed, full_m: np.ndarray, full_jac: np.ndarray) -> None:
    """Read pose, velocity, Jacobian and mass matrix of the arm."""
    jac_pos, jac_ori = full_jac[0], full_jac[1]
    _mj_jac_site(model, data, jac_pos.ctypes.data, jac_ori.ctypes.data, arm.site)
    _mj_full_m(model, full_m.ctypes.data, views.qm.ctypes.data)
    sensed.vel_pos[:] = np.dot(jac_pos, views.qvel)
    sensed.vel_ori[:] = np.dot(jac_ori, views.qvel)
    for i in range(3):
        sensed.pos[i] = views.site_xpos[arm.site, i]
        for j in range(3):
            sensed.mat[i, j] = views.site_xmat[arm.site, 3 * i + j]
    for i in range(7):
        dof = arm.dof_index[i]
        sensed.joint_pos[i] = views.qpos[arm.qpos_index[i]]
        sensed.joint_vel[i] = views.qvel[dof]
        for j in range(3):
            sensed.jac_pos[j, i] = jac_pos[j, dof]
            sensed.jac_ori[j, i] = jac_ori[j, dof]
            sensed.jac[j, i] = jac_pos[j, dof]
            sensed.jac[3 + j, i] = jac_ori[j, dof]
        for j in range(7):
            sensed.mass[i, j] = full_m[dof, arm.dof_index[j]]


@njit(cache=True)
def _actuate(views: _Views, arm: _Arm, command: _Command, sensed: _Sensed, grip_sign: float) -> None:
    """Operational-space torques towards the goal, and the fingers' command."""
    force = (command.goal_pos - sensed.pos) * arm.kp[:3] + (-sensed.vel_pos) * arm.kd[:3]
    torque = orientation_error(command.goal_mat, sensed.mat) * arm.kp[3:] + (-sensed.vel_ori) * arm.kd[3:]
    _, lambda_pos, lambda_ori, nullspace = opspace_matrices(sensed.mass, sensed.jac, sensed.jac_pos, sensed.jac_ori)
    wrench = np.empty(6)
    wrench[:3] = np.dot(lambda_pos, force)
    wrench[3:] = np.dot(lambda_ori, torque)
    tau = np.dot(sensed.jac.T, wrench)
    for i in range(7):
        tau[i] += views.qfrc_bias[arm.dof_index[i]]
    tau += nullspace_torques(sensed.mass, nullspace, arm.posture, sensed.joint_pos, sensed.joint_vel)
    for i in range(7):
        views.ctrl[arm.ctrl_index[i]] = min(max(tau[i], arm.torque_low[i]), arm.torque_high[i])
    # The command to the fingers creeps towards open or closed, it does not jump.
    for i in range(2):
        direction = -1.0 if i == 0 else 1.0
        grip = min(max(command.grip[i] + direction * arm.grip_speed * grip_sign, -1.0), 1.0)
        command.grip[i] = grip
        views.ctrl[arm.grip_index[i]] = arm.grip_bias[i] + arm.grip_weight[i] * grip


@njit(cache=True)
def _advance(
    model: int,
    data: int,
    n_substeps: int,
    new_goal: bool,
    delta: np.ndarray,
    rotation: np.ndarray,
    grip_sign: float,
    views: _Views,
    arm: _Arm,
    command: _Command,
    sensed: _Sensed,
) -> None:
    """
    Advance by ``n_substeps`` physics steps.

    :param model: Address of the ``mjModel``.
    :param data: Address of the ``mjData``.
    :param new_goal: The first step sets the controller's goal, from ``delta`` and ``rotation``.
    """
    nv = views.qvel.shape[0]
    full_m = np.empty((nv, nv))
    full_jac = np.zeros((2, 3, nv))
    for substep in range(n_substeps):
        _mj_step1(model, data)
        _mj_fwd_actuation(model, data)
        _mj_fwd_acceleration(model, data)
        _mj_fwd_constraint(model, data)
        if command.stale[0] == 1:
            # LIBERO's controller takes its first command on what it saw when it was constructed.
            command.stale[0] = 0
        else:
            _mj_fwd_constraint(model, data)
            _sense(model, data, views, arm, sensed, full_m, full_jac)
        if new_goal and substep == 0:
            if delta[3] != 0.0 or delta[4] != 0.0 or delta[5] != 0.0:
                command.goal_mat[:] = np.dot(rotation, sensed.mat)
            for i in range(3):
                command.goal_pos[i] = sensed.pos[i] + delta[i]
        _actuate(views, arm, command, sensed, grip_sign)
        _mj_step2(model, data)


class ArmController:
    """
    robosuite's OSC_POSE controller of the Panda arm and its gripper command, with the physics loop inside.

    :param model: MuJoCo model.
    :param data: MuJoCo data; its arrays are kept as views.
    :param robot: Robot of robosuite right after LIBERO's reset, whose gains, limits and initial state are taken over.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot: Any) -> None:
        controller = robot.controller
        self._input_low, self._input_high = controller.input_min, controller.input_max
        self._scale = abs(controller.output_max - controller.output_min) / abs(controller.input_max - controller.input_min)
        self._output_offset = (controller.output_max + controller.output_min) / 2.0
        self._input_offset = (controller.input_max + controller.input_min) / 2.0

        self._addresses = (model._address, data._address)
        self._views = _Views(data.qpos, data.qvel, data.qM, data.qfrc_bias, data.ctrl, data.site_xpos, data.site_xmat)
        low, high = robot.torque_limits
        grip_index = np.array(robot._ref_joint_gripper_actuator_indexes, np.int64)
        grip_low, grip_high = model.actuator_ctrlrange[grip_index].T
        self._arm = _Arm(
            site=int(robot.eef_site_id),
            qpos_index=np.array(robot._ref_joint_pos_indexes, np.int64),
            dof_index=np.array(robot._ref_joint_vel_indexes, np.int64),
            ctrl_index=np.array(robot._ref_joint_actuator_indexes, np.int64),
            grip_index=grip_index,
            kp=np.array(controller.kp),
            kd=np.array(controller.kd),
            posture=np.array(controller.initial_joint),
            torque_low=np.array(low),
            torque_high=np.array(high),
            grip_bias=0.5 * (grip_high + grip_low),
            grip_weight=0.5 * (grip_high - grip_low),
            grip_speed=float(robot.gripper.speed),
        )
        # robosuite builds the matrices with fancy indexing, which leaves them column-major; BLAS rounds by layout.
        self._initial_sensed = _Sensed(
            jac=np.array(controller.J_full, order="F"),
            jac_pos=np.array(controller.J_pos, order="F"),
            jac_ori=np.array(controller.J_ori, order="F"),
            mass=np.array(controller.mass_matrix, order="F"),
            pos=np.array(controller.ee_pos),
            mat=np.array(controller.ee_ori_mat, order="C"),
            joint_pos=np.array(controller.joint_pos),
            joint_vel=np.array(controller.joint_vel),
            vel_pos=np.array(controller.ee_pos_vel),
            vel_ori=np.array(controller.ee_ori_vel),
        )
        self._initial_goal = (np.array(controller.goal_pos), np.array(controller.goal_ori, order="C"))
        self._sensed = _Sensed(*(value.copy(order="K") for value in self._initial_sensed))
        goal_pos, goal_mat = (goal.copy() for goal in self._initial_goal)
        self._command = _Command(goal_pos, goal_mat, grip=np.zeros(2), stale=np.ones(1, np.int64))
        self._delta, self._rotation, self._grip_sign = np.zeros(6), np.eye(3), 0.0
        if not _advance.signatures:
            # Compiling takes twelve seconds of a core: of processes that start together one does it, the others read it.
            with FileLock(f"{_advance.stats.cache_path}/libero_controller.lock"):
                self.advance(n_substeps=0, first=False)

    def reset(self) -> None:
        """Back to the state of a newly built LIBERO environment: goal at the initial pose, gripper command at rest."""
        for value, initial in zip(self._sensed, self._initial_sensed, strict=True):
            value[...] = initial
        self._command.goal_pos[:], self._command.goal_mat[:] = self._initial_goal
        self._command.grip[:] = 0.0
        self._command.stale[0] = 1

    def set_action(self, action: np.ndarray) -> None:
        """Take over an action, float64 (7,); it comes into force with the next physics step."""
        scaled = np.clip(action[:6], self._input_low, self._input_high)
        self._delta = (scaled - self._input_offset) * self._scale + self._output_offset
        self._rotation = transform_utils.quat2mat(transform_utils.axisangle2quat(self._delta[3:]))
        self._grip_sign = float(np.sign(action[6]))

    def advance(self, n_substeps: int, first: bool) -> None:
        """Run ``n_substeps`` physics steps of 2 ms; ``first``: they are the first ones under the current action."""
        arrays: Any = (self._views, self._arm, self._command, self._sensed)
        _advance(*self._addresses, n_substeps, first, self._delta, self._rotation, self._grip_sign, *arrays)
