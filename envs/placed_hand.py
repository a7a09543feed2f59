"""
LIBERO with the hand set where it is told to be: for episodes of tasks that no controller solves yet.

The arm's joints are set from step to step instead of being driven by torques, and what the fingers hold moves with the hand.
Everything else is the simulator's: fingers, contacts, falling objects, drawers and doors, and LIBERO's own goal.
"""

from typing import Any

import mujoco
import numpy as np

from sb3_tgrpo.envs.expert_motion import Command, Vector, about_axis, rotation_of, rotation_vector
from sb3_tgrpo.envs.expert_skills import PUSHED
from sb3_tgrpo.envs.libero import LiberoEnv, Observation
from sb3_tgrpo.envs.libero_controller import SUBSTEPS
from sb3_tgrpo.rewards.vocabulary import State

REACH = 0.015
"""Metres a step that an action of 1 stands for: 0.3 m/s."""
TURN = 0.15
"""Radians a step."""
_ITERATIONS, _DAMPING, _POSTURE = 40, 1e-4, 0.05
_HELD_STEPS = 3


def placed_action(command: Command, state: State) -> Vector:
    """
    The action of :class:`PlacedHandEnv` towards a commanded pose.

    :param state: facts of the current state.
    :return: float32 (7,), each in [-1, 1].
    """
    shift = (command.position - np.array(state["eef_pos"])) / REACH
    turn = rotation_vector(command.rotation @ rotation_of(state["eef_quat"]).T) / TURN  # type: ignore[arg-type]
    parts = (shift / max(1.0, float(np.linalg.norm(shift)) / command.speed), turn / max(1.0, float(np.abs(turn).max())))
    return np.array([*parts[0], *parts[1], command.gripper], np.float32)


class PlacedHandEnv(LiberoEnv):
    """
    One LIBERO task whose hand goes where it is told.

    An action is a change of the hand's pose of up to :data:`REACH` and :data:`TURN`, and the gripper (positive closes).
    An object between the fingers for 3 steps (a plate: touched by them) is held: it moves with the hand, and the fingers stay
    as they are, until the gripper opens. Parameters as those of :class:`~sb3_tgrpo.envs.libero.LiberoEnv`.
    """

    _held = ""
    _relative: tuple[Vector, Vector]
    _contact: dict[str, int]
    _goal: tuple[Vector, Vector]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """As in LIBERO: the arm settles under its own controller."""
        result = super().reset(seed=seed, options=options)
        robot, model = self.sim.scene.robot, self.model
        self._arm = np.array(robot._ref_joint_pos_indexes)
        self._fingers = np.array(robot._ref_joint_gripper_actuator_indexes)
        self._finger_joints = np.array(robot._ref_gripper_joint_pos_indexes)
        self._finger_dofs = np.array(robot._ref_gripper_joint_vel_indexes)
        self._site = int(robot.eef_site_id)
        self._scratch = mujoco.MjData(model)
        things = self.sim.scene.problem.objects_dict
        joints = {name: model.joint(thing.joints[-1]) for name, thing in things.items()}
        self._objects = {name: (int(joint.qposadr[0]), int(joint.dofadr[0])) for name, joint in joints.items()}
        flat = {name for name, thing in things.items() if thing.category_name in PUSHED}
        self._holds_by = {name: f"{name}_touched" if name in flat else f"{name}_grasped" for name in things}
        self._held, self._contact, self._goal = "", dict.fromkeys(things, 0), self._hand()
        return result

    def _hand(self) -> tuple[Vector, Vector]:
        return self.data.site_xpos[self._site].copy(), self.data.site_xmat[self._site].reshape(3, 3).copy()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        One control step, 50 ms.

        :param action: shape (7,), see the class.
        :raises RuntimeError: before ``reset`` and after the episode's end.
        """
        self._check_started("step")
        array = np.clip(np.asarray(action, np.float64), -1.0, 1.0)
        position, rotation = self._goal
        angle = float(np.linalg.norm(array[3:6]))
        if angle > 0:
            rotation = about_axis(array[3:6] / angle, TURN * angle) @ rotation
        self._goal = (position + REACH * array[:3], rotation)
        self._move(self._joints_for(*self._goal), closed=array[6] > 0)
        self._goal = self._hand()  # where it got: an unreachable goal does not run away
        self._elapsed += 1

        sim = self.sim
        sim._atoms = None
        sim.scene.update_burners()
        self._hold(closed=array[6] > 0)
        success = sim.success()
        truncated = not success and self._elapsed >= self._step_cap
        if success or truncated:
            self._phase = "over"
        return {}, float(success), success, truncated, {"is_success": success}

    def _joints_for(self, position: Vector, rotation: Vector) -> Vector:
        """Joint angles of the arm at which the hand is there, or nearest to it: damped least squares."""
        model, data, arm = self.model, self._scratch, self._arm
        data.qpos[:] = self.data.qpos
        start = data.qpos[arm].copy()
        low, high = model.jnt_range[arm].T
        jac = np.zeros((6, model.nv))
        for _ in range(_ITERATIONS):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            turn = rotation_vector(rotation @ data.site_xmat[self._site].reshape(3, 3).T)
            error = np.concatenate([position - data.site_xpos[self._site], turn])
            if float(np.abs(error).max()) < 1e-6:
                break
            mujoco.mj_jacSite(model, data, jac[:3], jac[3:], self._site)
            j = jac[:, arm]
            inverse = j.T @ np.linalg.inv(j @ j.T + _DAMPING * np.eye(6))
            step = inverse @ error + _POSTURE * (np.eye(7) - inverse @ j) @ (start - data.qpos[arm])
            data.qpos[arm] = np.clip(data.qpos[arm] + step, low, high)
        return data.qpos[arm].copy()

    def _move(self, joints: Vector, closed: bool) -> None:
        """The arm on a straight way to these joint angles, physics for the rest."""
        model, data, arm = self.model, self.data, self._arm
        start = data.qpos[arm].copy()
        speed = (joints - start) / (SUBSTEPS * model.opt.timestep)
        low, high = model.actuator_ctrlrange[self._fingers].T
        data.ctrl[:] = 0.0
        data.ctrl[self._fingers] = (low[0], high[1]) if closed else (high[0], low[1])
        if not closed:
            self._held = ""
        for substep in range(SUBSTEPS):
            self._set(start + (joints - start) * (substep / SUBSTEPS), speed)
            mujoco.mj_step(model, data)
        self._set(joints, speed)
        mujoco.mj_forward(model, data)

    def _set(self, joints: Vector, speed: Vector) -> None:
        data = self.data
        data.qpos[self._arm], data.qvel[self._arm] = joints, speed
        if self._held:
            mujoco.mj_kinematics(self.model, data)
            position, rotation = self._hand()
            offset, turn = self._relative
            at, dof = self._objects[self._held]
            data.qpos[at : at + 3] = position + rotation @ offset
            mujoco.mju_mat2Quat(data.qpos[at + 3 : at + 7], (rotation @ turn).ravel())
            data.qvel[dof : dof + 6] = 0.0
            data.qpos[self._finger_joints], data.qvel[self._finger_dofs] = self._width, 0.0

    def _hold(self, closed: bool) -> None:
        """Take hold of what both finger pads have touched for some steps; a plate is too flat for that: any touch will do."""
        if not closed or self._held:
            self._contact = dict.fromkeys(self._contact, 0)
            return
        state = self.facts()
        for name in self._contact:
            self._contact[name] = self._contact[name] + 1 if state[self._holds_by[name]] else 0
            if self._contact[name] >= _HELD_STEPS and not self._held:
                position, rotation = self._hand()
                at, _ = self._objects[name]
                turn = np.zeros(9)
                mujoco.mju_quat2Mat(turn, self.data.qpos[at + 3 : at + 7])
                self._held, self._width = name, self.data.qpos[self._finger_joints].copy()
                self._relative = (
                    rotation.T @ (self.data.qpos[at : at + 3] - position),
                    rotation.T @ turn.reshape(3, 3),
                )
