"""Collecting demonstrations with a scripted expert, in parallel, resumable."""

import dataclasses
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sb3_tgrpo.envs.demos.files import RecordedDemo, write_demos
from sb3_tgrpo.envs.demos.reader import OWN, libero_task, moving_steps
from sb3_tgrpo.envs.experts.disturbances import Disturbance
from sb3_tgrpo.envs.experts.motion import ActionNoise
from sb3_tgrpo.envs.groups.worker import described, restored
from sb3_tgrpo.envs.libero.assets import resolve_assets
from sb3_tgrpo.envs.libero.target_variants import target_facts
from sb3_tgrpo.envs.libero.tasks import get_task, stored_starts
from sb3_tgrpo.files import atomic_write
from sb3_tgrpo.processes import end_with_parent
from sb3_tgrpo.rewards.facts.task_facts import TaskFacts, load_task_facts
from sb3_tgrpo.rewards.facts.task_name import TaskName
from sb3_tgrpo.run_folder import RunFolder, versions
from sb3_tgrpo.settings import REQUIRED, check_number, check_settings, setting
from sb3_tgrpo.version import __version__

if TYPE_CHECKING:
    from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
    from sb3_tgrpo.envs.experts.smooth import SmoothExpert
    from sb3_tgrpo.envs.libero.env import LiberoEnv

logger = logging.getLogger(__name__)

Outcomes = dict[int, dict[str, Any]]
"""What became of the attempts, by their numbers: ``{"success": bool, "steps": int}``."""
_LIBRARIES = ("mujoco", "robosuite", "hf-libero", "numpy", "h5py")


@dataclass(frozen=True)
class CollectionSettings:
    """
    What is collected. The same settings give the same file, whatever the number of processes.

    :raises ValueError: For a value out of range.
    """

    task: str = setting(REQUIRED, "task, such as libero_object-3 or LIBERO/libero_object-3-v0")
    demos: int = setting(REQUIRED, "demonstrations in the file", low=1)
    seed: int = setting(0, "seed of initial states, expert and noise", low=0)
    noise: float = setting(0.0, "std of noise on the motion, executed and recorded (action units)", low=0, high=1)
    dart: float = setting(0.0, "std of noise that is executed but not recorded (DART, arXiv 1703.09327)", low=0, high=1)
    pushes: float = setting(0.0, "probability per step of a push off the way for a few steps, not recorded", low=0, high=1)
    slips: float = setting(0.0, "probability per step that the gripper does the opposite for a while", low=0, high=1)
    expert: Literal["scripted", "smooth"] = setting(
        "scripted", "expert; smooth: easier to imitate for small networks, LIBERO-Object's scenes only"
    )
    detour: float = setting(0.02, "metres by which the expert's ways vary", low=0, high=0.2)
    start_noise: float = setting(0.0, "metres per object by which drawn initial states are widened", low=0, high=0.5)
    joint_noise: float = setting(0.0, "std of noise on the arm's joints in drawn initial states, radians", low=0, high=0.5)
    stored_starts: bool = setting(False, "LIBERO's 50 stored initial states, in turn, instead of drawn ones")
    keep_failures: bool = setting(False, "keep unsuccessful episodes too, instead of trying further initial states")
    drop_noops: bool = setting(False, "leave out steps without motion or gripper change, as OpenVLA's preparation does")
    assets: Literal["auto", "full", "light"] = setting("auto", "LIBERO's assets")
    image_size: int = setting(256, "height and width of the pictures, pixels", low=1)
    wrist_image: bool = setting(False, "also record the gripper's camera, which LIBERO's own loader expects")
    target: str | None = setting(None, "another object of the task's scene, such as ketchup; none: the task's own")

    def __post_init__(self) -> None:
        check_settings(self)
        if self.stored_starts and (self.start_noise or self.joint_noise):
            raise ValueError(
                f"stored_starts=True: start_noise={self.start_noise} and joint_noise={self.joint_noise} widen drawn initial "
                "states. Set them to 0, or leave stored_starts out."
            )

    @property
    def name(self) -> str:
        """What is demonstrated: ``libero_object-3``, or ``libero_object-3:ketchup`` with another target."""
        return self.task if self.target is None else f"{self.task}:{self.target}"

    @property
    def max_attempts(self) -> int:
        """Episodes tried before giving up."""
        return self.demos if self.keep_failures else 4 * self.demos + 20


class CollectionError(RuntimeError):
    """A collection that can't be completed. Finished episodes are kept."""


# ---------------------------------------------------------------------- one episode


def record_episode(env: "LiberoEnv", settings: CollectionSettings, index: int) -> RecordedDemo:
    """
    Play and record one episode.

    :param env: Environment with observations ``image``, ``state`` and, if wanted, ``wrist_image``.
    :param settings: Settings of the collection.
    :param index: Number of the attempt; together with the settings' seed it decides everything random.
    """
    seeds = np.random.SeedSequence([settings.seed, index]).generate_state(3)
    if settings.stored_starts:
        state_id = index % len(stored_starts(env.task))
        observation, info = env.reset(seed=0, options={"init_state_id": state_id})
    else:
        observation, info = env.reset(seed=int(seeds[0]))
    expert = _make_expert(settings, int(seeds[1]))
    rng = np.random.default_rng(int(seeds[2]))
    noise, disturb = ActionNoise(settings.noise, rng), Disturbance(settings.dart, rng, settings.pushes, settings.slips)
    disturbed = settings.dart > 0 or settings.pushes > 0 or settings.slips > 0
    rows = _Rows(env)
    finished = success = False
    while not finished:
        label = expert.act(env.facts())
        if settings.noise > 0:
            label = noise(label)
        rows.append(observation, label)
        observation, _, success, truncated, _ = env.step(disturb(label) if disturbed else label)
        finished = success or truncated
    record = {"episode": index, "seed": int(info["scene_seed"]), "init_state_id": info["init_state_id"], "dropped": 0}
    return rows.demo(success, settings.drop_noops, record)


class _Rows:
    """What is recorded of an episode, step by step."""

    def __init__(self, env: "LiberoEnv") -> None:
        self._env = env
        self._rows: dict[str, list[np.ndarray]] = {}

    def append(self, observation: dict[str, np.ndarray], action: np.ndarray) -> None:
        """
        The state before an action, and the action. As in LIBERO, all of the robot is from the moment of the observation,
        which can be a few milliseconds before that of ``states`` and facts.
        """
        env = self._env
        state = observation["state"]
        row = {
            "actions": np.asarray(action, np.float64),
            "states": env.flat_state(),
            "robot_states": np.concatenate([state[6:], state[:3], env.sim.sensed_quat]),
            "agentview_rgb": observation["image"],
            "ee_states": state[:6],
            "ee_pos": state[:3],
            "ee_ori": state[3:6],
            "gripper_states": state[6:],
            "joint_states": env.sim.sensed_joints,
        }
        if "wrist_image" in observation:
            row["eye_in_hand_rgb"] = observation["wrist_image"]
        row |= {f"facts/{key}": np.asarray(value) for key, value in env.facts().items()}
        for name, value in row.items():
            self._rows.setdefault(name, []).append(np.array(value))

    def demo(self, success: bool, drop_noops: bool, record: dict[str, Any]) -> RecordedDemo:
        """The episode."""
        arrays = {name: np.stack(values) for name, values in self._rows.items()}
        if drop_noops:
            kept = moving_steps(arrays["actions"])
            record = {**record, "dropped": len(arrays["actions"]) - len(kept)}
            arrays = {name: values[kept] for name, values in arrays.items()}
        facts = {name[6:]: arrays.pop(name) for name in list(arrays) if name.startswith("facts/")}
        top = {name: arrays.pop(name) for name in ("actions", "states", "robot_states")}
        model_file = self._env.sim.scene.problem.sim.model.get_xml()
        return RecordedDemo(**top, observations=arrays, success=success, facts=facts, model_file=model_file, record=record)


def _task_facts(settings: CollectionSettings) -> TaskFacts:
    """What the expert needs to know."""
    facts = load_task_facts(settings.task)
    return facts if settings.target is None else target_facts(facts, settings.target)


def _make_expert(settings: CollectionSettings, seed: int) -> "ScriptedExpert | SmoothExpert":
    """The expert that demonstrates; a ``ValueError`` if it can't do the task."""
    from sb3_tgrpo.envs.experts.scripted import ScriptedExpert
    from sb3_tgrpo.envs.experts.smooth import SmoothExpert

    expert_class = SmoothExpert if settings.expert == "smooth" else ScriptedExpert
    return expert_class(_task_facts(settings), detour=settings.detour, seed=seed)


def _plain(settings: CollectionSettings) -> CollectionSettings:
    """The same settings with one name for each thing: no gym id, no instance's name, no target that is the task's own."""
    name = TaskName.parse(settings.task)
    target = None
    if libero_task(settings.name) != get_task(*name):
        kind = {thing.name: thing.kind for thing in load_task_facts(settings.task).objects}
        target = kind.get(settings.target or "", settings.target)
    return dataclasses.replace(settings, task=str(name), target=target, assets=resolve_assets(settings.assets).kind)


def _make_env(settings: CollectionSettings) -> "LiberoEnv":
    from sb3_tgrpo.envs.libero.env import LiberoEnv

    cameras = ("image", "wrist_image") if settings.wrist_image else ("image",)
    return LiberoEnv(
        *TaskName.parse(settings.task),
        target=settings.target,
        assets=settings.assets,
        observations=(*cameras, "state"),
        image_size=settings.image_size,
        start_noise=settings.start_noise,
        joint_noise=settings.joint_noise,
    )


# ---------------------------------------------------------------------- processes and shards

_worker_env: "LiberoEnv | None" = None


def _shard(folder: Path, index: int) -> Path:
    return folder / f"episode_{index:05d}.hdf5"


def _outcome(folder: Path, index: int) -> Path:
    return folder / f"episode_{index:05d}.json"


def _try_one(settings: CollectionSettings, folder: Path, index: int) -> tuple[str, str, bytes | None] | None:
    """In a worker: :func:`_collect_one`. Returns its exception, which the pool's own pickling can lose or be broken by."""
    try:
        _collect_one(settings, folder, index)
    except Exception as error:
        return described(error)
    return None


def _collect_one(settings: CollectionSettings, folder: Path, index: int) -> None:
    """Play an episode, and store it if it is to be kept. The outcome's file comes last."""
    global _worker_env
    if _worker_env is None:
        _worker_env = _make_env(settings)
    demo = record_episode(_worker_env, settings, index)
    outcome: dict[str, Any] = {"success": demo.success, "steps": len(demo.actions)}
    if demo.success or settings.keep_failures:
        write_demos(_shard(folder, index), {}, [demo])
        outcome["sha256"] = _digest(_shard(folder, index))
    atomic_write(_outcome(folder, index), json.dumps(outcome))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_outcomes(folder: Path, keep_failures: bool) -> Outcomes:
    """Outcomes of the episodes that an earlier call finished. What is damaged counts as not played."""
    outcomes: Outcomes = {}
    for path in sorted(folder.glob("episode_*.json")):
        index = int(path.stem[8:])
        try:
            outcome = json.loads(path.read_text())
            if (outcome["success"] or keep_failures) and _digest(_shard(folder, index)) != outcome["sha256"]:
                raise ValueError("it is not as it was written")
            outcomes[index] = {"success": bool(outcome["success"]), "steps": int(outcome["steps"])}
        except (FileNotFoundError, KeyError, TypeError, ValueError) as error:
            logger.warning("%s: episode %d is damaged (%s) and is played again.", folder, index, error)
    return outcomes


def _chosen(settings: CollectionSettings, outcomes: Outcomes) -> list[int] | None:
    """The attempts that make up the file: the first ones that count. None while one of them is missing."""
    chosen: list[int] = []
    for index in range(settings.max_attempts):
        if index not in outcomes:
            return None
        if outcomes[index]["success"] or settings.keep_failures:
            chosen.append(index)
        if len(chosen) == settings.demos:
            return chosen
    failures = settings.max_attempts - len(chosen)
    raise CollectionError(
        f"{settings.name}: the expert failed in {failures} of {settings.max_attempts} episodes, so that {settings.demos} "
        "demonstrations were not reached. Lower noise, dart, detour or start_noise, or keep failures."
    )


def _claim(folder: RunFolder, settings: CollectionSettings) -> Outcomes:
    """Bind a folder of finished episodes to settings, all but the number of demonstrations."""
    wanted = {**dataclasses.asdict(settings), "version": __version__}
    folder.claim("settings.json", wanted, results=["episode_*.json"], may_change=("demos",))
    return _read_outcomes(folder.path, settings.keep_failures)


def collect_demos(
    settings: CollectionSettings,
    out: str | os.PathLike[str],
    *,
    workers: int = 1,
    command: str = "",
    progress: Callable[[Outcomes], None] | None = None,
) -> Path:
    """
    Collect demonstrations into a file.

    Finished episodes are kept in a folder beside it (``<out>.partial``) until the file is complete, so that the same call
    continues after an interruption.

    :param settings: Settings of the collection.
    :param out: The HDF5 file; replaced if it exists.
    :param workers: Number of processes; the file does not depend on it.
    :param command: Command line, recorded in the file.
    :param progress: Function that is called with the outcomes so far, by attempt: ``{"success": bool, "steps": int}``.
    :return: The file.
    :raises ValueError: If the folder holds episodes collected with other settings, or the expert can't do the task.
    :raises OSError: If another process collects into the file.
    :raises CollectionError: If the expert fails too often, or a process dies.
    """
    check_number("workers", workers, int)
    out = Path(out)
    if out.is_dir():
        raise ValueError(f"out={out} is a folder: name a file in it, such as {out / 'demos.hdf5'}.")
    settings = _plain(settings)  # an unknown name is refused here, not in every process
    _make_expert(settings, 0)  # a task that the expert can't do is refused here as well
    folder = RunFolder(out.with_name(f"{out.name}.partial"))
    with folder.locked():
        outcomes = _claim(folder, settings)
        if progress:
            progress(outcomes)
        _fill(settings, folder.path, outcomes, workers, progress)
        chosen = _chosen(settings, outcomes)
        assert chosen is not None
        # Attempts past the last chosen one depend on the number of workers, and are not counted.
        counted = {index: outcomes[index] for index in range(chosen[-1] + 1)}
        write_demos(out, file_attributes(settings, command, counted), [_shard(folder.path, index) for index in chosen])
        shutil.rmtree(folder.path)
    return out


def _fill(
    settings: CollectionSettings,
    folder: Path,
    outcomes: Outcomes,
    workers: int,
    progress: Callable[[Outcomes], None] | None,
) -> None:
    """Play attempts in order until enough of them count."""
    attempts = iter(index for index in range(settings.max_attempts) if index not in outcomes)
    context = multiprocessing.get_context("spawn")
    pending: dict[Future[Any], int] = {}
    with ProcessPoolExecutor(workers, context, end_with_parent, (os.getpid(),)) as pool:
        try:
            while _chosen(settings, outcomes) is None:
                enough = settings.demos - sum(o["success"] or settings.keep_failures for o in outcomes.values())
                # Not more attempts than could still be needed: each costs its time even when it is not used.
                while len(pending) < min(2 * workers, max(enough, 1)) and (index := next(attempts, None)) is not None:
                    pending[pool.submit(_try_one, settings, folder, index)] = index
                for future in wait(pending, return_when=FIRST_COMPLETED).done:
                    index = pending.pop(future)
                    if (error := future.result()) is not None:
                        raise restored(*error)
                    outcomes[index] = json.loads(_outcome(folder, index).read_text())
                if progress:
                    progress(outcomes)
        except BrokenProcessPool as broken:
            raise CollectionError(
                f"A process died (out of memory?). Finished episodes are kept in {folder}: the same command continues."
            ) from broken
        finally:
            for future in pending:
                future.cancel()


def file_attributes(settings: CollectionSettings, command: str, outcomes: Outcomes) -> dict[str, Any]:
    """The attributes of the file's group ``data``: LIBERO's own, and ours."""
    name = TaskName.parse(settings.task)
    task = libero_task(settings.name)
    text = task.read_bddl()
    # A variant is none of LIBERO's files, although one may have its name.
    bddl_name = f"bddl_files/{name.suite}/{task.name}.bddl" if settings.target is None else f"{task.name}.bddl"
    problem = text.split("(define (problem ", 1)[1].split(")", 1)[0].strip().lower()
    cameras = ["robot0_eye_in_hand", "agentview"]
    env_kwargs = {
        "robots": ["Panda"],
        "bddl_file_name": bddl_name,
        "has_renderer": False,
        "has_offscreen_renderer": True,
        "ignore_done": True,
        "use_camera_obs": True,
        "camera_depths": False,
        "camera_names": cameras,
        "reward_shaping": True,
        "control_freq": 20,
        "camera_heights": settings.image_size,
        "camera_widths": settings.image_size,
        "camera_segmentations": None,
    }
    env_name = "_".join(part.capitalize() for part in problem.split("_"))
    plain = dataclasses.asdict(settings)
    if settings.target is None:
        del plain["target"]  # files of LIBERO's own tasks are what they were before there were variants
    own = {
        **plain,
        "env_id": name.gym_id,
        "observation": "before the action",
        "attempts": len(outcomes),
        "successes": sum(outcome["success"] for outcome in outcomes.values()),
        "version": __version__,
        "libraries": {name: versions().get(name, "") for name in (*_LIBRARIES, "python")},
        "command": command,
    }
    return {
        "env_name": env_name,
        "env_args": json.dumps(
            {"type": 1, "env_name": env_name, "problem_name": problem, "bddl_file": bddl_name, "env_kwargs": env_kwargs}
        ),
        "problem_info": json.dumps(
            {"problem_name": problem, "domain_name": "robosuite", "language_instruction": task.instruction}
        ),
        "bddl_file_name": bddl_name,
        "bddl_file_content": text,
        "macros_image_convention": "opengl",
        "tag": "libero-v1",
        "suite": name.suite,
        "task": settings.name,
        "assets": settings.assets,
        OWN: json.dumps(own),
    }
