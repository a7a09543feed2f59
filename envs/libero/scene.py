"""
A LIBERO task as one MuJoCo model: built once, reset without rebuilding.

LIBERO's reset parses the XML again, compiles a new model and a new renderer. What really changes from episode to
episode is small: object poses, joint positions of drawers and knobs, and the poses of fixtures (which LIBERO writes into
the model). :class:`LiberoScene` builds through LIBERO's own code, keeps LIBERO's samplers, and replays the rest on the live
model in LIBERO's order, forward passes included, so that even the constraint solver's warm start is the same.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from sb3_tgrpo.envs.libero.assets import Assets
from sb3_tgrpo.envs.libero.installation import import_libero, libero_assets
from sb3_tgrpo.envs.libero.light_assets import lighten_model, require_light
from sb3_tgrpo.envs.libero.process import prepare_process
from sb3_tgrpo.envs.libero.tasks import LiberoTask

CONTROL_FREQ = 20
MAX_SEED = 2**32 - 1
_MAX_ATTEMPTS = 100


@contextmanager
def global_numpy_seed(seed: int | None = None) -> Iterator[None]:
    """LIBERO draws from numpy's global generator: seed it for the block, and put it back afterwards."""
    state = np.random.get_state()
    try:
        if seed is not None:
            np.random.seed(seed)
        yield
    finally:
        np.random.set_state(state)


@contextmanager
def _definition_on_disk(task: LiberoTask) -> Iterator[LiberoTask]:
    """LIBERO reads problem definitions from files: the task with a file that holds its definition."""
    if task.bddl_text is None:
        yield task
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{task.name}.bddl"
        file.write_text(task.bddl_text, encoding="utf-8")
        yield replace(task, bddl_file=file)


def _problem_class(task: LiberoTask) -> Any:
    """LIBERO's class for the kind of scene that a BDDL file describes."""
    prepare_process()
    import_libero()
    from libero.libero.envs import TASK_MAPPING
    from libero.libero.envs.bddl_utils import robosuite_parse_problem

    try:
        name = robosuite_parse_problem(str(task.bddl_file))["problem_name"]
    except Exception as error:  # the parser asserts, and stumbles over what it does not expect
        raise ValueError(f"{task.bddl_file} can't be read as a BDDL problem of LIBERO's: {error!r}.") from error
    if name not in TASK_MAPPING:
        raise ValueError(f"{task.bddl_file}: unknown problem {name!r}. Available: {', '.join(TASK_MAPPING)}.")
    return TASK_MAPPING[name]


def _build_problem(domain: Any, task: LiberoTask, assets: Assets, process_xml: Callable[[str], str] | None) -> Any:
    """LIBERO's own environment object for a task, without cameras or renderer; ``process_xml`` edits the final MJCF."""
    with libero_assets(assets.path), global_numpy_seed():
        import robosuite

        class Problem(domain):
            def _initialize_sim(self, xml_string: str | None = None) -> None:
                self._xml_processor = process_xml
                super()._initialize_sim(xml_string)
                # LIBERO's reset writes the fixtures' poses into the model; samplers start from the unplaced one.
                self.unplaced = (self.sim.model.body_pos.copy(), self.sim.model.body_quat.copy())

            def _assert_problem_name(self) -> None:
                """LIBERO compares with the class name, which is ours here; the look-up above has checked it."""

        return Problem(
            str(task.bddl_file),
            robots=["Panda"],
            controller_configs=robosuite.load_controller_config(default_controller="OSC_POSE"),
            gripper_types="default",
            initialization_noise=None,
            use_camera_obs=False,
            has_renderer=False,
            has_offscreen_renderer=False,
            control_freq=CONTROL_FREQ,
            horizon=1000,
            hard_reset=True,
        )


class LiberoScene:
    """The model of a task, its data, and the placement of everything in it."""

    def __init__(self, task: LiberoTask, assets: Assets) -> None:
        self.task = task
        with _definition_on_disk(task) as readable:
            domain = _problem_class(readable)
            if assets.kind == "light":
                require_light(readable.bddl_file)
            self.problem = _build_problem(domain, readable, assets, lighten_model if assets.kind == "light" else None)
        # As LIBERO's reset does: hide the sites that mark grasp points and regions.
        self.problem.visualize({name: False for name in self.problem._visualizations})
        self.model: mujoco.MjModel = self.problem.sim.model._model
        self.data: mujoco.MjData = self.problem.sim.data._data
        self.robot = self.problem.robots[0]
        self._body_pos, self._body_quat = self.problem.unplaced
        self._site_rgba = self.model.site_rgba.copy()
        self._init_qpos = np.array(self.robot.init_qpos)
        self.burners = [
            _Burner(self, name, obj)
            for name, obj in {**self.problem.fixtures_dict, **self.problem.objects_dict}.items()
            if "burner" in obj.object_properties["vis_site_names"]
        ]

    def reset(self, seed: int, earlier_resets: int = 0) -> None:
        """
        Place robot, fixtures and objects as ``seed(seed); reset()`` of a fresh LIBERO environment would.

        :param seed: 0 to 2**32 - 1.
        :param earlier_resets: Number of resets of that environment since it was seeded: its random numbers go on from
            there, and each reset adds to its samplers.
        """
        from robosuite.utils.errors import RandomizationError

        n_property_draws = 1
        with global_numpy_seed(seed):
            for _ in range(earlier_resets + 1):
                for _ in range(_MAX_ATTEMPTS):
                    self._place_robot()
                    n_property_draws += 1
                    try:
                        placements = self._sample(n_property_draws)
                    except RandomizationError:
                        continue
                    break
                else:
                    raise RuntimeError(
                        f"LIBERO's sampler found no collision-free placement for {self.task.name} with seed {seed} in "
                        f"{_MAX_ATTEMPTS} attempts: the regions of {self.task.bddl_file} are too small for its objects."
                    )
            self._apply(placements)
        mujoco.mj_forward(self.model, self.data)

    def _place_robot(self) -> None:
        model, data = self.model, self.data
        model.body_pos[:], model.body_quat[:], model.site_rgba[:] = self._body_pos, self._body_quat, self._site_rgba
        for burner in self.burners:
            burner.on = False
        mujoco.mj_resetData(model, data)
        mujoco.mj_forward(model, data)  # LIBERO: new simulator
        mujoco.mj_forward(model, data)  # new render context
        np.random.randn(len(self._init_qpos))  # noise of magnitude 0 on the arm's joints, drawn nevertheless
        data.qpos[self.robot._ref_joint_pos_indexes] = self._init_qpos
        mujoco.mj_forward(model, data)  # new controller
        mujoco.mj_forward(model, data)  # its first update
        data.qpos[self.robot._ref_gripper_joint_pos_indexes] = self.robot.gripper.init_qpos

    def _sample(self, n_property_draws: int) -> dict[str, tuple[Any, Any, Any]]:
        problem = self.problem
        # LIBERO appends its joint samplers again at every reset and never clears them: construction and one reset make
        # two, and each failed attempt one more. All draw; the last one counts.
        for _ in range(n_property_draws):
            for sampler in problem.object_property_initializers:
                problem.object_states_dict[sampler.name].set_joint(sampler.sample())
        mujoco.mj_step1(self.model, self.data)
        placements = problem.placement_initializer.sample()
        placements = problem.conditional_placement_initializer.sample(problem.sim, placements)
        return problem.conditional_placement_on_objects_initializer.sample(placements)

    def _apply(self, placements: dict[str, tuple[Any, Any, Any]]) -> None:
        for position, quaternion, thing in placements.values():
            if thing.name in self.problem.fixtures_dict:
                body = self.model.body(thing.root_body).id
                self.model.body_pos[body], self.model.body_quat[body] = position, quaternion
            else:
                address = self.model.joint(thing.joints[-1]).qposadr[0]
                self.data.qpos[address : address + 3] = position
                self.data.qpos[address + 3 : address + 7] = quaternion

    def set_state(self, flat: np.ndarray) -> None:
        """
        Restore a flattened simulator state, as LIBERO's ``set_init_state``; fixtures stay where they are.

        :param flat: Time, qpos, qvel.
        :raises ValueError: If the length is wrong or a value is not finite.
        """
        state = np.asarray(flat, np.float64)
        expected = (1 + self.model.nq + self.model.nv,)
        if state.shape != expected or not np.isfinite(state).all():
            raise ValueError(
                f"A flattened state of {self.task.name} has shape {expected} (time, qpos, qvel) and finite values, "
                f"got shape {state.shape}."
            )
        nq = self.model.nq
        self.data.time = state[0]
        self.data.qpos[:] = state[1 : 1 + nq]
        self.data.qvel[:] = state[1 + nq :]
        mujoco.mj_forward(self.model, self.data)
        self.update_burners()

    def flat_state(self) -> np.ndarray:
        """The simulator's state as LIBERO stores it: time, qpos, qvel."""
        return np.concatenate([[self.data.time], self.data.qpos, self.data.qvel])

    def update_burners(self) -> None:
        """Show or hide the flame of a stove by its knob, as LIBERO does at the end of each step."""
        for burner in self.burners:
            burner.update()


class _Burner:
    """The site that marks a stove as on."""

    def __init__(self, scene: LiberoScene, name: str, stove: Any) -> None:
        model = scene.model
        self._site_rgba = model.site_rgba
        self._qpos = scene.data.qpos
        site_name, _ = stove.object_properties["vis_site_names"]["burner"]
        self._site = model.site(site_name).id
        self._joints = [int(model.joint(joint).qposadr[0]) for joint in stove.joints]
        self._threshold = min(stove.object_properties["articulation"]["default_turnon_ranges"])
        self.on = False

    def update(self) -> None:
        self.on = any(self._qpos[joint] >= self._threshold for joint in self._joints)
        alpha = self._site_rgba[self._site, 3]
        if (alpha > 0) != self.on:
            self._site_rgba[self._site, 3] = 1 - alpha
