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
from typing import Any

import llvmlite.binding  # type: ignore[import-untyped]
import mujoco
import numpy as np
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


@njit(cache=True)
def _advance(
    model: int,
    data: int,
    n_substeps: int,
    new_goal: bool,
    stale: np.ndarray,
    delta: np.ndarray,
    rotation: np.ndarray,
    grip_sign: float,
    site: int,
    arm_qpos: np.ndarray,
    arm_dof: np.ndarray,
    arm_ctrl: np.ndarray,
    grip_ctrl: np.ndarray,
    qpos: np.ndarray,
    qvel: np.ndarray,
    qm: np.ndarray,
    qfrc_bias: np.ndarray,
    ctrl: np.ndarray,
    site_xpos: np.ndarray,
    site_xmat: np.ndarray,
    goal_pos: np.ndarray,
    goal_mat: np.ndarray,
    grip: np.ndarray,
    grip_speed: float,
    kp: np.ndarray,
    kd: np.ndarray,
    posture: np.ndarray,
    torque_low: np.ndarray,
    torque_high: np.ndarray,
    grip_bias: np.ndarray,
    grip_weight: np.ndarray,
    jac: np.ndarray,
    jac_pos: np.ndarray,
    jac_ori: np.ndarray,
    mass: np.ndarray,
    pos: np.ndarray,
    mat: np.ndarray,
    q: np.ndarray,
) -> None:
    """
    Advance by ``n_substeps`` physics steps.

    :param model: address of the ``mjModel``.
    :param data: address of the ``mjData``, of which the arrays from ``qpos`` to ``site_xmat`` are views.
    :param new_goal: the first step sets the controller's goal from ``delta`` and ``rotation``.
    :param stale: shape (1,); 1 on the first step of an episode, where LIBERO's controller still holds the arm's state
        from its construction, which is then given in ``jac`` ... ``q``; later these are work space.
    """
    nv = qvel.shape[0]
    full_m = np.empty((nv, nv))
    full_jac_pos = np.zeros((3, nv))
    full_jac_ori = np.zeros((3, nv))
    vel_pos = np.zeros(3)
    vel_ori = np.zeros(3)
    qd = np.zeros(7)
    bias = np.empty(7)
    wrench = np.empty(6)
    for substep in range(n_substeps):
        _mj_step1(model, data)
        _mj_fwd_actuation(model, data)
        _mj_fwd_acceleration(model, data)
        _mj_fwd_constraint(model, data)
        if stale[0] == 1:
            stale[0] = 0
        else:
            _mj_fwd_constraint(model, data)
            _mj_jac_site(model, data, full_jac_pos.ctypes.data, full_jac_ori.ctypes.data, site)
            _mj_full_m(model, full_m.ctypes.data, qm.ctypes.data)
            pos[:] = site_xpos[site]
            for i in range(3):
                for j in range(3):
                    mat[i, j] = site_xmat[site, 3 * i + j]
            vel_pos = np.dot(full_jac_pos, qvel)
            vel_ori = np.dot(full_jac_ori, qvel)
            for i in range(7):
                q[i] = qpos[arm_qpos[i]]
                qd[i] = qvel[arm_dof[i]]
                for j in range(3):
                    jac_pos[j, i] = full_jac_pos[j, arm_dof[i]]
                    jac_ori[j, i] = full_jac_ori[j, arm_dof[i]]
                    jac[j, i] = jac_pos[j, i]
                    jac[3 + j, i] = jac_ori[j, i]
                for j in range(7):
                    mass[i, j] = full_m[arm_dof[i], arm_dof[j]]
        if new_goal and substep == 0:
            if delta[3] != 0.0 or delta[4] != 0.0 or delta[5] != 0.0:
                goal_mat[:] = np.dot(rotation, mat)
            goal_pos[:] = pos + delta[:3]

        force = (goal_pos - pos) * kp[:3] + (-vel_pos) * kd[:3]
        torque = orientation_error(goal_mat, mat) * kp[3:] + (-vel_ori) * kd[3:]
        _, lambda_pos, lambda_ori, nullspace = opspace_matrices(mass, jac, jac_pos, jac_ori)
        wrench[:3] = np.dot(lambda_pos, force)
        wrench[3:] = np.dot(lambda_ori, torque)
        for i in range(7):
            bias[i] = qfrc_bias[arm_dof[i]]
        tau = np.dot(jac.T, wrench) + bias
        tau += nullspace_torques(mass, nullspace, posture, q, qd)
        for i in range(7):
            ctrl[arm_ctrl[i]] = min(max(tau[i], torque_low[i]), torque_high[i])
        # The command to the fingers creeps towards open or closed, it does not jump.
        grip[0] = min(max(grip[0] + -1.0 * grip_speed * grip_sign, -1.0), 1.0)
        grip[1] = min(max(grip[1] + 1.0 * grip_speed * grip_sign, -1.0), 1.0)
        ctrl[grip_ctrl[0]] = grip_bias[0] + grip_weight[0] * grip[0]
        ctrl[grip_ctrl[1]] = grip_bias[1] + grip_weight[1] * grip[1]
        _mj_step2(model, data)


class ArmController:
    """
    robosuite's OSC_POSE controller of the Panda arm and its gripper command, with the physics loop inside.

    :param model: MuJoCo model.
    :param data: MuJoCo data; its arrays are kept as views.
    :param robot: robosuite's robot right after LIBERO's reset, whose gains, limits and initial state are taken over.
    """

    def __init__(self, model: mujoco.MjModel, data: mujoco.MjData, robot: Any) -> None:
        controller = robot.controller
        scale = abs(controller.output_max - controller.output_min) / abs(controller.input_max - controller.input_min)
        self._input_low, self._input_high, self._scale = controller.input_min, controller.input_max, scale
        self._output_offset = (controller.output_max + controller.output_min) / 2.0
        self._input_offset = (controller.input_max + controller.input_min) / 2.0

        # robosuite builds these with fancy indexing, which leaves them column-major; BLAS rounds differently by layout.
        self._initial = tuple(
            np.array(value, order=order)
            for value, order in (
                (controller.J_full, "F"),
                (controller.J_pos, "F"),
                (controller.J_ori, "F"),
                (controller.mass_matrix, "F"),
                (controller.ee_pos, "C"),
                (controller.ee_ori_mat, "C"),
                (controller.joint_pos, "C"),
            )
        )
        self._work = tuple(value.copy(order="K") for value in self._initial)
        self._initial_goal = (np.array(controller.goal_pos), np.array(controller.goal_ori, order="C"))
        self.goal_pos, self.goal_mat = (goal.copy() for goal in self._initial_goal)
        self.grip = np.zeros(2)
        self._stale = np.ones(1, np.int64)
        self._delta = np.zeros(6)
        self._rotation = np.eye(3)
        self._grip_sign = 0.0

        self._addresses = (model._address, data._address)
        low, high = robot.torque_limits
        grip_ctrl = np.array(robot._ref_joint_gripper_actuator_indexes, np.int64)
        grip_range = model.actuator_ctrlrange[grip_ctrl]
        self._fixed = (
            int(robot.eef_site_id),
            np.array(robot._ref_joint_pos_indexes, np.int64),
            np.array(robot._ref_joint_vel_indexes, np.int64),
            np.array(robot._ref_joint_actuator_indexes, np.int64),
            grip_ctrl,
            data.qpos,
            data.qvel,
            data.qM,
            data.qfrc_bias,
            data.ctrl,
            data.site_xpos,
            data.site_xmat,
            self.goal_pos,
            self.goal_mat,
            self.grip,
            float(robot.gripper.speed),
            np.array(controller.kp),
            np.array(controller.kd),
            np.array(controller.initial_joint),
            np.array(low),
            np.array(high),
            0.5 * (grip_range[:, 1] + grip_range[:, 0]),
            0.5 * (grip_range[:, 1] - grip_range[:, 0]),
        )

    def reset(self) -> None:
        """Back to the state of a newly built LIBERO environment: goal at the initial pose, gripper command at rest."""
        for work, initial in zip(self._work, self._initial, strict=True):
            work[...] = initial
        self.goal_pos[:], self.goal_mat[:] = self._initial_goal
        self.grip[:] = 0.0
        self._stale[0] = 1

    def set_action(self, action: np.ndarray) -> None:
        """
        Take over an action; it comes into force with the next physics step.

        :param action: float64, shape (7,): position and rotation change and the gripper command.
        """
        scaled = np.clip(action[:6], self._input_low, self._input_high)
        self._delta = (scaled - self._input_offset) * self._scale + self._output_offset
        self._rotation = transform_utils.quat2mat(transform_utils.axisangle2quat(self._delta[3:]))
        self._grip_sign = float(np.sign(action[6]))

    def advance(self, n_substeps: int, first: bool) -> None:
        """
        Run physics.

        :param n_substeps: physics steps of 2 ms.
        :param first: these are the first ones under the current action.
        """
        _advance(
            *self._addresses, n_substeps, first, self._stale, self._delta, self._rotation, self._grip_sign,
            *self._fixed, *self._work,
        )  # fmt: skip
