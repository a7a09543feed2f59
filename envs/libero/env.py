"""LIBERO tasks as Gymnasium environments."""

import gc
import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, cast

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from sb3_tgrpo.envs.libero.assets import Assets, AssetsChoice, resolve_assets
from sb3_tgrpo.envs.libero.target_variants import target_variant
from sb3_tgrpo.envs.libero.tasks import LiberoTask, get_task, stored_starts, task_from_bddl
from sb3_tgrpo.envs.spaces import InstructionSpace, encode_instruction
from sb3_tgrpo.rewards.facts.task_name import TaskName
from sb3_tgrpo.rewards.facts.vocabulary import State

if TYPE_CHECKING:
    import mujoco

    from sb3_tgrpo.envs.libero.sim import LiberoSim

logger = logging.getLogger(__name__)

Observation = dict[str, np.ndarray]

CAMERAS = {"image": "agentview", "wrist_image": "robot0_eye_in_hand"}
SETTLE_STEPS = 10
SETTLE_ACTION = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0)
MAX_SEED = 2**32 - 1
_RESET_OPTIONS = {"init_state_id", "start_noise", "noise_seed", "earlier_resets"}

_of_parent_process: list[Any] = []  # simulators inherited by a fork: freeing their OpenGL contexts here would crash


class LiberoEnv(gym.Env[Observation, np.ndarray]):
    """
    One LIBERO task: the physics, initial states, success and camera image of LIBERO's own environment.

    Trajectories are equal to LIBERO's bit for bit; ``reset`` takes milliseconds because the model is built once, and only
    what is observed is rendered. The simulator is created at the first ``reset``, in the process that calls it.

    Observation, a flat dictionary:

    - ``image``: uint8 (image_size, image_size, 3), LIBERO's raw agentview (upside down, as LIBERO stores it);
    - ``instruction``: uint8 (256,), the sentence as zero-padded UTF-8 bytes;
    - ``wrist_image``: like ``image``, from the gripper's camera (on request);
    - ``state``: float64 (8,): end-effector position, axis-angle rotation, the two finger positions (on request).

    Like LIBERO's, images and ``state`` are taken a few milliseconds before the end of the control step; reward, success
    and :meth:`facts` at its end.

    Action: float32 (7,) in [-1, 1]: change of position (x 0.05 m) and rotation (x 0.5 rad) of the end effector, and the
    gripper (positive closes).

    :param suite: ``libero_spatial``, ``libero_object``, ``libero_goal``, ``libero_10`` or ``libero_90``; or a task of
        :func:`~sb3_tgrpo.envs.libero.tasks.get_task`.
    :param task: Index in the suite, in LIBERO's own order.
    :param target: Another object of the scene to ask for, such as ``"ketchup"``; None = the task's own
        (:mod:`~sb3_tgrpo.envs.libero.target_variants`).
    :param reward: None = 1 at the step that succeeds, else 0; or a reward program, the name of a shipped one such as
        ``"libero_object-3"``, or a path to a reward specification.
    :param assets: ``"full"`` = LIBERO's own meshes and textures, ``"light"`` = built-in primitives, ``"auto"`` = full if
        found on this machine, else light.
    :param observations: Some of ``image``, ``wrist_image`` and ``state``, besides the instruction.
    :param image_size: Height and width of the images in pixels.
    :param render_mode: ``"rgb_array"`` or None.
    :param start_noise: Metres by which drawn initial states are widened along x and y, at most, per movable object.
    :param joint_noise: Standard deviation of noise on the arm's joints in drawn initial states, radians. LIBERO's sampler
        always puts the arm into the same posture; in its stored initial states the joints vary by 0.02.
    :param max_episode_steps: Step limit; None = the suite's (220/280/300/520/400). Under ``gym.make``, its own argument of
        the same name decides.
    :raises ValueError: If an argument is not valid, listing what is; or if a reward belongs to another task or target.
    :raises FileNotFoundError: If assets are asked for that are missing or not complete.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}  # noqa: RUF012  (Gymnasium's own declaration)

    def __init__(
        self,
        suite: str | LiberoTask,
        task: int = 0,
        *,
        target: str | None = None,
        reward: Any = None,
        assets: AssetsChoice = "auto",
        observations: Sequence[str] = ("image",),
        image_size: int = 256,
        render_mode: str | None = None,
        start_noise: float = 0.0,
        joint_noise: float = 0.0,
        max_episode_steps: int | None = None,
    ) -> None:
        known = suite if isinstance(suite, LiberoTask) else get_task(suite, task)
        self.task = known if target is None else target_variant(known, target)
        self.suite, self.task_index, self.instruction = self.task.suite, self.task.index, self.task.instruction
        if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
            raise ValueError(f"image_size must be a positive integer (pixels), got {image_size!r}.")
        self.image_size = image_size
        self.observations = _observations(observations)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode={render_mode!r}. Available: None, {', '.join(self.metadata['render_modes'])}.")
        self.render_mode = render_mode
        self.start_noise = _start_noise(start_noise)
        if not 0 <= joint_noise <= 0.5:
            raise ValueError(f"joint_noise must be between 0 and 0.5 radians, got {joint_noise!r}.")
        self.joint_noise = float(joint_noise)
        if max_episode_steps is not None and max_episode_steps < 1:
            raise ValueError(f"max_episode_steps must be positive, got {max_episode_steps!r}.")
        self._step_cap = self.task.step_cap if max_episode_steps is None else int(max_episode_steps)
        self.assets: Assets = resolve_assets(assets)
        self.reward_program = _load_reward(reward)
        if self.suite:
            _check_reward(self.reward_program, self.task)

        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        state = spaces.Box(-np.inf, np.inf, (8,), np.float64)
        self.observation_space: spaces.Dict = spaces.Dict(  # type: ignore[assignment]
            {
                **{name: state if name == "state" else image for name in self.observations},
                "instruction": InstructionSpace(self.suite, self.assets.kind, assets_by_name=assets != "auto"),
            }
        )
        self.action_space = spaces.Box(-1.0, 1.0, (7,), np.float32)

        self._instruction = encode_instruction(self.instruction)
        self._sim: LiberoSim | None = None
        self._pid = -1
        self._elapsed = 0
        self._phase: Literal["new", "running", "over"] = "new"
        self._memory: Any = None

    @classmethod
    def from_bddl(cls, path: str | os.PathLike[str], *, instruction: str | None = None, **settings: Any) -> "LiberoEnv":
        """
        An environment from a BDDL file of your own, made of LIBERO's objects and scenes.

        :param path: The BDDL file.
        :param instruction: Sentence for the policy. None takes the file's name as words, as LIBERO does, and warns if the
            file's ``(:language)`` asks for something else.
        :param settings: Keyword arguments of the constructor. The step limit is 300 by default.
        :raises FileNotFoundError: If there is no such file.
        """
        return cls(task_from_bddl(path, instruction), **settings)

    @property
    def sim(self) -> "LiberoSim":
        """The simulator, created on first use in each process."""
        if self._sim is None or self._pid != os.getpid():
            from sb3_tgrpo.envs.libero.process import prepare_process

            prepare_process()
            from sb3_tgrpo.envs.libero.sim import LiberoSim

            if self._sim is not None:
                _of_parent_process.append(self._sim)
            self._sim = LiberoSim(self.task, self.assets, self.image_size)
            self._pid = os.getpid()
            self._phase = "new"
        return self._sim

    @property
    def model(self) -> "mujoco.MjModel":
        """MuJoCo's model."""
        return self.sim.model

    @property
    def data(self) -> "mujoco.MjData":
        """MuJoCo's data."""
        return self.sim.data

    def facts(self) -> State:
        """
        The current state as rewards see it, by the names of :data:`~sb3_tgrpo.rewards.facts.vocabulary.VOCABULARY`.

        :return: A new dictionary of floats, bools and tuples.
        """
        return self.sim.facts()

    def task_facts(self) -> dict[str, Any]:
        """
        What is known about the task before any step: :class:`~sb3_tgrpo.rewards.facts.task_facts.TaskFacts` as plain values.

        They are measured at the first stored initial state, or the one drawn with seed 0: the current episode is over then.
        """
        self.reset(seed=0, options={"init_state_id": 0} if self.task.init_file is not None else None)
        from sb3_tgrpo.envs.libero.task_facts import measure_task_facts  # imports robosuite: after prepare_process

        self._phase = "new"
        return measure_task_facts(self.task, self.sim).to_dict()

    def flat_state(self) -> np.ndarray:
        """
        The simulator's state as LIBERO stores it: time, qpos, qvel, flattened.

        Fixtures' poses belong to the model, not to the state; the gripper's command and the controller's goal are not part
        of it either.
        """
        return self.sim.scene.flat_state()

    def set_state(self, flat: np.ndarray) -> None:
        """
        Set the simulator's state, as LIBERO's ``set_init_state`` does, without settling. Call ``reset`` first.

        :param flat: State from :meth:`flat_state`, or a row of a demonstration's ``states``.
        :raises ValueError: If its length is wrong or a value is not finite.
        """
        self._check_started("set_state")
        self.sim.set_state(flat)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        """
        Start an episode.

        Without options an initial state is drawn from LIBERO's own sampler, widened by ``start_noise`` and ``joint_noise``.
        The same ``seed`` gives the same one in every process; without a seed, initial states follow from the last seed given.
        Objects then settle for 10 steps.

        :param seed: 0 to 2**32 - 1.
        :param options: ``{"init_state_id": k}`` restores the k-th stored initial state instead. Fixtures are then placed by
            ``seed`` (0 if None), as in LIBERO's evaluation, where the stored state does not hold them. Three more go with it:
            ``"start_noise"``, metres by which the stored state is widened, with ``"noise_seed"`` (0 by default); and
            ``"earlier_resets"``, the number of resets that LIBERO's environment would have had since ``seed``: the official
            evaluation seeds once per task, and the random numbers of each reset place the fixtures of the next.
        :return: Observation and info; the latter names the ``scene_seed`` used and the ``init_state_id``.
        :raises ValueError: If an option is unknown, or if a seed or an ``init_state_id`` is out of range.
        """
        if seed is not None and not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be between 0 and 2**32 - 1, got {seed}.")
        super().reset(seed=seed)
        state_id, options = self._parse_options(options)
        if state_id is not None:
            scene_seed = 0 if seed is None else seed
            self.sim.reset(
                scene_seed,
                start=stored_starts(self.task)[state_id],
                start_noise=options.get("start_noise", 0.0),
                noise_seed=(options.get("noise_seed", 0), state_id),
                earlier_resets=options.get("earlier_resets", 0),
            )
        else:
            scene_seed = int(self.np_random.integers(2**31)) if seed is None else seed
            self.sim.reset(scene_seed, start_noise=self.start_noise, joint_noise=self.joint_noise)
        pictures = self._pictures()
        action = np.array(SETTLE_ACTION)
        for remaining in reversed(range(SETTLE_STEPS)):
            self.sim.step(action, pictures if not self.sim.clock.samples_within(remaining) else {})
        self._elapsed = 0
        self._phase = "running"
        info: dict[str, Any] = {"is_success": self.sim.success(), "scene_seed": scene_seed, "init_state_id": state_id}
        if self.reward_program is not None:
            step, self._memory = self.reward_program(self.facts(), {"step": 0}, self.reward_program.reset())
            info.update(_stage_info(step))
        return self._observation(), info

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """
        One control step, 50 ms.

        :param action: Shape (7,), finite; clipped to [-1, 1] by LIBERO's controller.
        :return: Observation, reward, terminated (success), truncated (step limit), info with ``is_success`` and, under a
            reward program, ``stage``, ``n_stages``, ``progress``, ``step_signal`` and the program's terms.
        :raises ValueError: If the action has the wrong shape or is not finite.
        :raises RuntimeError: Before ``reset`` and after the episode's end.
        """
        self._check_started("step")
        array = np.asarray(action, np.float64)
        if array.shape != (7,) or not np.isfinite(array).all():
            raise ValueError(f"action must be 7 finite numbers (6 for the arm, 1 for the gripper), got {action!r}.")
        self.sim.step(array, self._pictures())
        self._elapsed += 1

        success = self.sim.success()
        reward = float(success)
        info: dict[str, Any] = {"is_success": success}
        if self.reward_program is not None:
            step, self._memory = self.reward_program(self.facts(), {"step": self._elapsed}, self._memory)
            reward = float(step.reward)
            info.update(_stage_info(step))
        # Under gym.make the limit is that of its TimeLimit wrapper.
        truncated = self.spec is None and not success and self._elapsed >= self._step_cap
        if success or truncated:
            self._phase = "over"
        return self._observation(), reward, success, truncated, info

    def render(self) -> np.ndarray | None:
        """The current state seen from the agentview camera, upright; None without a render mode."""
        if self.render_mode is None:
            gym.logger.warn('render() was called without render_mode="rgb_array".')
            return None
        self._check_started("render", over=True)
        return self.sim.picture(CAMERAS["image"])[::-1].copy()

    def close(self) -> None:
        """Free the OpenGL context and the simulator."""
        if self._sim is not None and self._pid == os.getpid():
            self._sim.close()
            self._sim = None
            gc.collect()  # LIBERO's objects refer to each other in circles, and hold tens of megabytes of meshes
        self._sim = None
        self._phase = "new"

    def _pictures(self) -> dict[str, str]:
        return {name: CAMERAS[name] for name in self.observations if name in CAMERAS}

    def _observation(self) -> Observation:
        observation = {name: self.sim.pictures[name] for name in self._pictures()}
        if "state" in self.observations:
            observation["state"] = self.sim.proprioception()
        observation["instruction"] = self._instruction.copy()
        return observation

    def _check_started(self, method: str, over: bool = False) -> None:
        if self._phase == "new" or self._sim is None:
            raise RuntimeError(f"{method}() was called before reset(): call reset() first.")
        if self._phase == "over" and not over:
            raise RuntimeError(f"{method}() was called after the end of the episode: call reset() first.")

    def _parse_options(self, options: dict[str, Any] | None) -> tuple[int | None, dict[str, Any]]:
        options = options or {}
        if unknown := sorted(set(options) - _RESET_OPTIONS):
            raise ValueError(f"Unknown reset options {unknown}. Available: {', '.join(sorted(_RESET_OPTIONS))}.")
        state_id = options.get("init_state_id")
        if state_id is None:
            if options.keys() - {"init_state_id"}:
                raise ValueError(f"Reset options {sorted(options)} belong to a stored initial state: pass init_state_id too.")
            return None, {}
        if isinstance(state_id, bool) or not isinstance(state_id, int | np.integer):
            raise ValueError(f"init_state_id must be an integer, got {state_id!r}.")
        count = len(stored_starts(self.task))
        if not 0 <= state_id < count:
            raise ValueError(f"init_state_id={state_id}: {self.task.name} has stored initial states 0 to {count - 1}.")
        _start_noise(options.get("start_noise", 0.0))
        for name in ("noise_seed", "earlier_resets"):
            value = options.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 0:
                raise ValueError(f"{name} must be an integer of at least 0, got {value!r}.")
        return int(state_id), options


def _observations(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names of observations, in the order of the observation space."""
    names = (names,) if isinstance(names, str) else tuple(names)
    valid = (*CAMERAS, "state")
    if unknown := [name for name in names if name not in valid]:
        raise ValueError(f"observations={names}: unknown {unknown}. Available: {', '.join(valid)}.")
    return tuple(name for name in valid if name in names)


def _start_noise(metres: float) -> float:
    if not 0 <= metres < 1:
        raise ValueError(f"start_noise must be a distance in metres, from 0 up to 1, got {metres!r}.")
    return float(metres)


def _load_reward(reward: Any) -> Any:
    """A reward program, or None for the sparse reward."""
    if reward is None or (callable(reward) and hasattr(reward, "reset")):
        return reward
    if isinstance(reward, str | os.PathLike):
        from sb3_tgrpo.rewards import load_reward

        return load_reward(cast(str, reward))
    raise TypeError(f"reward must be None, a name such as 'libero_object-3', a path or a RewardProgram, got {reward!r}.")


def _check_reward(program: Any, task: LiberoTask) -> None:
    """A program has a task and a sentence, as a scene may have several targets; a callable of the user's has neither."""
    own = str(TaskName(task.suite, task.index))
    rewarded = getattr(program, "task", own)
    if rewarded != own:
        raise ValueError(f"reward is for {rewarded}, not for {own}: pass that of {own}, or leave it out.")
    asked = getattr(program, "instruction", task.instruction)
    if asked != task.instruction:
        raise ValueError(f"reward is for {asked!r}, not for {task.instruction!r}: write one for it, or leave it out.")


def _stage_info(step: Any) -> dict[str, Any]:
    info = {
        "stage": int(step.stage),
        "n_stages": int(step.n_stages),
        "progress": float(step.progress),
        "step_signal": float(getattr(step, "signal", step.progress)),
    }
    return {**{name: float(value) for name, value in getattr(step, "terms", {}).items()}, **info}
