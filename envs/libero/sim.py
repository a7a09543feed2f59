"""
The simulator behind :class:`~sb3_tgrpo.envs.libero.env.LiberoEnv`: scene, controller, goal, facts and cameras together.

Import this after :func:`~sb3_tgrpo.envs.libero.process.prepare_process`: MuJoCo and robosuite load an OpenGL backend when they
are imported.
"""

import logging
import warnings
from collections.abc import Sequence

import mujoco
import numpy as np

from sb3_tgrpo.envs.libero.assets import Assets
from sb3_tgrpo.envs.libero.controller import SUBSTEPS, ArmController
from sb3_tgrpo.envs.libero.facts import FactsReader
from sb3_tgrpo.envs.libero.goal import GoalPredicates
from sb3_tgrpo.envs.libero.render import OffscreenRenderer
from sb3_tgrpo.envs.libero.scene import CONTROL_FREQ, LiberoScene
from sb3_tgrpo.envs.libero.starts import place_with_noise, turn_joints
from sb3_tgrpo.envs.libero.tasks import LiberoTask
from sb3_tgrpo.rewards.facts.vocabulary import State

logger = logging.getLogger(__name__)

PINNED_MUJOCO = "3.3.2"
PHYSICS_TIMESTEP = 0.002


class ObservationClock:
    """
    When robosuite takes its observations.

    Each observation has a timer that wraps at 50 ms and samples once per turn, at the first physics step of a turn. Reset and
    ``set_init_state`` each advance the timer by one tick, so observations are one or two physics steps older than the control
    step's end, and the timer's rounding error decides which. Replayed here with the same floating-point operations.
    """

    def __init__(self) -> None:
        """As after LIBERO's reset, which takes one observation by force."""
        self._time, self._sampled = 0.0, False
        self.tick(force=True)

    def tick(self, force: bool = False) -> bool:
        """Whether an observation is taken; by force if it is one outside a step, as in ``set_init_state``."""
        period = 1.0 / CONTROL_FREQ
        self._time += PHYSICS_TIMESTEP
        sample = force or (not self._sampled and period >= self._time)
        if sample:
            self._sampled = True
        if self._time >= period:
            sample = sample or not self._sampled
            self._time %= period
            self._sampled = False
        return sample

    def next_step(self) -> int | None:
        """
        Advance by one control step.

        :return: The physics step, from 0, after which its last observation is taken; None if it takes none.
        """
        last = None
        for substep in range(SUBSTEPS):
            if self.tick():
                last = substep
        return last

    def samples_within(self, n_steps: int) -> bool:
        """Whether an observation is taken in the ``n_steps`` control steps after the next one."""
        ahead = ObservationClock()
        ahead._time, ahead._sampled = self._time, self._sampled
        ahead.next_step()
        return any(ahead.next_step() is not None for _ in range(n_steps))


class LiberoSim:
    """A task's simulator."""

    def __init__(self, task: LiberoTask, assets: Assets, image_size: int) -> None:
        if mujoco.__version__ != PINNED_MUJOCO:
            warnings.warn(
                f"MuJoCo {mujoco.__version__} is installed. LIBERO's tasks, checkpoints and this package's tests are for "
                f"{PINNED_MUJOCO}; 3.8 is known to draw LIBERO darker. Remedy: pip install mujoco=={PINNED_MUJOCO}.",
                stacklevel=2,
            )
        self.scene = LiberoScene(task, assets)
        self.model, self.data = self.scene.model, self.scene.data
        self.controller = ArmController(self.model, self.data, self.scene.robot)
        self.goal = GoalPredicates(self.scene)
        self.facts_reader = FactsReader(self.scene, self.goal)
        self.clock = ObservationClock()
        self.renderer = OffscreenRenderer(self.model, self.data, image_size, image_size)
        self.pictures: dict[str, np.ndarray] = {}
        self._atoms: list[bool] | None = None
        robot = self.scene.robot
        self._hand_site, self._fingers = robot.eef_site_id, robot._ref_gripper_joint_pos_indexes
        self._hand_body = self.model.body(robot.robot_model.eef_name).id
        self._arm = robot._ref_joint_pos_indexes
        # When the last observation was taken: position and quaternion of the hand, fingers, the arm's joints.
        self._sensed = np.zeros(9 + len(self._arm))

    def reset(
        self,
        seed: int,
        start: np.ndarray | None = None,
        start_noise: float = 0.0,
        noise_seed: int | Sequence[int] | None = None,
        earlier_resets: int = 0,
        joint_noise: float = 0.0,
    ) -> None:
        """
        Place everything as :meth:`LiberoScene.reset`; nothing has settled yet. Noise is in metres and radians.

        :param start: A flattened state to restore afterwards.
        :param noise_seed: Seed of the noise; None = ``seed``.
        """
        self.scene.reset(seed, earlier_resets)
        self.controller.reset()
        self.clock = ObservationClock()
        self.pictures = {}
        self._atoms = None
        if start is not None:
            self.set_state(start)
        if start_noise > 0:
            place_with_noise(self.scene, seed if noise_seed is None else noise_seed, start_noise)
        if joint_noise > 0:
            turn_joints(self.scene, seed if noise_seed is None else noise_seed, joint_noise)
            self.clock.tick(force=True)

    def set_state(self, flat: np.ndarray) -> None:
        """Restore a flattened state."""
        self.scene.set_state(flat)
        self.clock.tick(force=True)
        self._atoms = None

    def step(self, action: np.ndarray, pictures: dict[str, str]) -> None:
        """
        One control step.

        :param action: Array float64 of shape (7,).
        :param pictures: Names of observations and their cameras, to be taken when LIBERO takes them.
        """
        self.controller.set_action(action)
        sample = self.clock.next_step()
        if sample is None:
            self.controller.advance(SUBSTEPS, first=True)
        else:
            self.controller.advance(sample + 1, first=True)
            for name, camera in pictures.items():
                self.pictures[name] = self.picture(camera)
            self._note_proprioception()
            if sample + 1 < SUBSTEPS:
                self.controller.advance(SUBSTEPS - sample - 1, first=False)
        self._atoms = None
        self.scene.update_burners()

    def picture(self, camera: str) -> np.ndarray:
        """The current state from a camera, bottom row first."""
        return self.renderer.render(self.model.camera(camera).id)

    def goal_atoms(self) -> list[bool]:
        """Truth of the goal's atoms, judged once per state."""
        if self._atoms is None:
            self._atoms = self.goal.evaluate()
        return self._atoms

    def success(self) -> bool:
        """All atoms of the goal hold."""
        return all(self.goal_atoms())

    def facts(self) -> State:
        """The state in the vocabulary's terms."""
        return self.facts_reader.read(self.goal_atoms())

    def _note_proprioception(self) -> None:
        self._sensed[:3] = self.data.site_xpos[self._hand_site]
        self._sensed[3:7] = self.data.xquat[self._hand_body]
        self._sensed[7:9] = self.data.qpos[self._fingers]
        self._sensed[9:] = self.data.qpos[self._arm]

    @property
    def sensed_quat(self) -> np.ndarray:
        """The hand's quaternion (x, y, z, w) at the last observation."""
        return self._sensed[[4, 5, 6, 3]]

    @property
    def sensed_joints(self) -> np.ndarray:
        """The arm's joints at the last observation, radians."""
        return self._sensed[9:].copy()

    def proprioception(self) -> np.ndarray:
        """End-effector position, axis-angle rotation and finger positions at the last observation."""
        from robosuite.utils.transform_utils import quat2axisangle

        return np.concatenate([self._sensed[:3], quat2axisangle(self.sensed_quat), self._sensed[7:9]])

    def close(self) -> None:
        """Free the OpenGL context."""
        self.renderer.close()
